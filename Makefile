# The two commands a newcomer needs are `make demo` and `make test`; README.md has their equivalents without make.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
  BIN := Scripts
else
  BIN := bin
endif
DEMO := .venv-demo
WEBUI := .venv-webui
TEST := .venv-test

.PHONY: demo webui test lint format clean
.DELETE_ON_ERROR:

demo: $(DEMO)/installed
	$(DEMO)/$(BIN)/python -m lib_layerdiffusion demo

webui: $(WEBUI)/installed
	$(WEBUI)/$(BIN)/python -m lib_layerdiffusion webui

test: $(TEST)/installed
	$(TEST)/$(BIN)/python -m pytest

lint: $(TEST)/lint-installed
	$(TEST)/$(BIN)/ruff check .
	$(TEST)/$(BIN)/ruff format --check .
	$(TEST)/$(BIN)/lint-imports
	$(TEST)/$(BIN)/codespell
	$(TEST)/$(BIN)/pyright --pythonpath $(TEST)/$(BIN)/python

format: $(TEST)/lint-installed
	$(TEST)/$(BIN)/ruff check --fix .
	$(TEST)/$(BIN)/ruff format .

# A stamp file is written only after everything is installed, so a rerun after a broken download starts over.
$(DEMO)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and 'Python 3.10 to 3.13 is needed: make demo PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	@touch $@

$(WEBUI)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and 'Python 3.10 to 3.13 is needed: make webui PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(WEBUI)
	$(WEBUI)/$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[webui]"
	@touch $@

$(TEST)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and 'Python 3.10 to 3.13 is needed: make test PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(TEST)
	$(TEST)/$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,train,psd,test]"
	@touch $@

$(TEST)/lint-installed: $(TEST)/installed
	$(TEST)/$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lint]"
	@touch $@

clean:
	rm -rf $(DEMO) $(WEBUI) $(TEST) demo-output .pytest_cache .ruff_cache .hypothesis *.egg-info build dist
