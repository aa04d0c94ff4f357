# README.md has the two commands for newcomers, `make demo` and `make test`, and what to type where there is no make.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
  BIN := Scripts
else
  BIN := bin
endif
VERSION_CHECK := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "Python 3.10 to 3.13 is needed: make PYTHON=/path/to/python3.11 and so on")
INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Each environment is a folder of its own; these are the extras of pyproject.toml that are installed in it.
EXTRAS_demo := demo
EXTRAS_webui := webui
EXTRAS_test := demo,webui,train,test
EXTRAS_gradio3 := demo,gradio3
EXTRAS_scale := demo,webui,test,cloud,ray,scale

# A process for each core, at most four; a file's tests run in one of them. `make test PYTEST=` has one process for all.
PYTEST = -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo webui test test-fast test-gradio3 test-scale screenshots e2e bench soak lint format clean
.DELETE_ON_ERROR:

demo: .venv-demo/installed
	.venv-demo/$(BIN)/python -m lib_layerdiffusion demo

webui: .venv-webui/installed
	.venv-webui/$(BIN)/python -m lib_layerdiffusion webui $(if $(PORT),--port $(PORT))

test: .venv-test/installed
	.venv-test/$(BIN)/python -m pytest $(PYTEST)

# What isn't marked slow: under a minute on two cores.
test-fast: .venv-test/installed
	.venv-test/$(BIN)/python -m pytest $(PYTEST) -m "not slow"

# The panel on the older gradio that some WebUIs have; `make test` uses the newer one.
test-gradio3: .venv-gradio3/installed
	.venv-gradio3/$(BIN)/python -m pytest $(PYTEST) $(addprefix tests/webui/test_,$(addsuffix .py,panel every_option xyz settings status))

# Tables of prompts on a Ray cluster and to an S3 server, and two WebUIs behind nginx (if that is installed), with 200
# requests.
test-scale: export LAYERDIFFUSION_REQUESTS = 200
test-scale: .venv-scale/installed
	.venv-scale/$(BIN)/python -m pytest tests/cli/test_destination.py tests/cli/test_workers.py tests/webui/test_behind_nginx.py

# In a real WebUI: LAYERDIFFUSION_WEBUI is its checkout, LAYERDIFFUSION_WEBUI_PYTHON its Python. Keeps what it saw in
# docs/hosts.json and makes docs/hosts.md from that.
e2e: export LAYERDIFFUSION_HOSTS = docs/hosts.json
e2e: .venv-test/installed
	.venv-test/$(BIN)/python -m pytest tests/e2e

# The pictures of the panel on both gradios and that of the page; they need chromium and chromedriver.
screenshots: .venv-gradio3/installed .venv-test/installed
	.venv-gradio3/$(BIN)/python -m tests.webui.screenshots
	.venv-test/$(BIN)/python -m tests.webui.screenshots
	.venv-test/$(BIN)/python -m tests.webui.screenshot_page

# The tables of docs/benchmarks.md, each against the same work done plainly in the same run; on a quiet machine.
bench: export OMP_NUM_THREADS = 1
bench: .venv-test/installed
	.venv-test/$(BIN)/python benchmarks/decode.py --sizes 256 512
	.venv-test/$(BIN)/python benchmarks/attention.py --sizes 256
	.venv-test/$(BIN)/python benchmarks/side_path.py --size 256
	.venv-test/$(BIN)/python benchmarks/views.py
	.venv-test/$(BIN)/python benchmarks/start.py

# An hour of two clients at the small WebUI.
soak: .venv-test/installed
	.venv-test/$(BIN)/python benchmarks/soak.py

lint: .venv-test/lint-installed
	.venv-test/$(BIN)/ruff check .
	.venv-test/$(BIN)/ruff format --check .
	.venv-test/$(BIN)/lint-imports
	.venv-test/$(BIN)/codespell
	.venv-test/$(BIN)/pyright --pythonpath .venv-test/$(BIN)/python

format: .venv-test/lint-installed
	.venv-test/$(BIN)/ruff check --fix .
	.venv-test/$(BIN)/ruff format .

.venv-test/lint-installed: .venv-test/installed
	.venv-test/$(BIN)/python $(INSTALL) -e ".[lint]"
	@touch $@

# A stamp file is written only after everything is installed, so a rerun after a broken download starts over.
.venv-%/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(VERSION_CHECK)'
	$(PYTHON) -m venv .venv-$*
	.venv-$*/$(BIN)/python $(INSTALL) -e ".[$(EXTRAS_$*)]"
	@touch $@

clean:
	rm -rf .venv-demo .venv-webui .venv-test .venv-gradio3 .venv-scale demo-output .pytest_cache .ruff_cache .hypothesis *.egg-info build dist
