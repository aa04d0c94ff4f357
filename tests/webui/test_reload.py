"""The WebUI's "Reload UI", also with the extension disabled in between: nothing of it doubles up or stays behind.

Scripts are loaded anew then, while the modules that they import stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webui.jobs import WebUI, decode_image

pytestmark = pytest.mark.slow

MOMENTS = ("app_started", "before_ui", "cfg_denoiser", "script_unloaded", "ui_settings")
LAYERS = {"views": 1}


class Reloading(WebUI):
    """The stand-in, which can be reloaded."""

    def __init__(self, stand_in: Any, outputs: Path) -> None:
        super().__init__(stand_in)
        self.page_outputs = outputs
        (path,) = {script.path for script in self.scripts.scripts_data}
        self.path = Path(path)

    def reload(self, enabled: bool = True) -> None:
        """Everything in the order in which WebUIs do it."""
        from lib_layerdiffusion.stand_in.launch import make_page

        scripts, callbacks = self.scripts, self.module("script_callbacks")
        callbacks.call("script_unloaded")
        scripts.scripts_data.clear()
        callbacks.clear_callbacks()
        if enabled:
            scripts.load_script(self.path)
        scripts.scripts_txt2img = scripts.ScriptRunner(is_img2img=False)
        scripts.scripts_img2img = scripts.ScriptRunner(is_img2img=True)
        self.stand_in = make_page(self.page_outputs)

    @property
    def method(self) -> Any:
        return vars(self.module("api.api").Api)["init_script_args"]

    def routes(self) -> Counter[str]:
        found = (getattr(route, "path", "") for route in self.stand_in.app.routes)
        return Counter(path for path in found if path.startswith("/layerdiffusion/"))

    def image(self, layers: Any = LAYERS) -> Any:
        answer = self.post("txt2img", layers)
        assert answer.status_code == 200, answer.text
        return decode_image(answer.json()["images"][0])

    def hooks(self) -> int:
        parts = (self.model.model.diffusion_model, self.model.first_stage_model)
        modules = [module for part in parts for module in part.modules()]
        assert not any("forward" in vars(module) for module in modules)
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@pytest.fixture
def webui(embedded_pipeline: Any, tmp_path: Path) -> Iterator[Reloading]:
    pytest.importorskip("gradio")
    from lib_layerdiffusion.stand_in.launch import running

    with running(embedded_pipeline, outputs=tmp_path, offline=True) as started:
        yield Reloading(started, tmp_path)


def depth(method: Any) -> int:
    """How many times a method was wrapped."""
    return 1 + depth(method.__wrapped__) if hasattr(method, "__wrapped__") else 0


def test_reloading_twice_leaves_one_of_everything(webui):
    before, plain, routes, hooks = webui.image(), webui.image(None), webui.routes(), webui.hooks()
    assert before.mode == "RGBA"
    assert depth(webui.method) == 1
    for _ in range(2):
        webui.reload()
        callbacks = webui.module("script_callbacks").callback_map
        assert {moment: len(callbacks[moment]) for moment in MOMENTS} == dict.fromkeys(MOMENTS, 1)
        assert webui.routes() == routes
        assert set(routes.values()) == {1}
        assert depth(webui.method) == 1
        titles = [script.title() for script in webui.scripts.scripts_txt2img.scripts]
        assert titles.count("LayerDiffuse") == 1
        assert webui.image().tobytes() == before.tobytes()
        assert webui.image(None).tobytes() == plain.tobytes()
        assert webui.hooks() == hooks


def test_disabled_nothing_of_it_is_left_and_enabled_again_it_works(webui):
    before, plain = webui.image(), webui.image(None)
    original = webui.method.__wrapped__
    webui.reload(enabled=False)
    assert webui.method is original
    assert not webui.routes()
    assert not any(webui.module("script_callbacks").callback_map.values())
    assert webui.image(None).tobytes() == plain.tobytes()
    assert "LayerDiffuse not found" in webui.post("txt2img", LAYERS).json()["detail"]
    webui.reload()
    assert webui.request("GET", "/layerdiffusion/v1/version").status_code == 200
    assert webui.image().tobytes() == before.tobytes()


def test_what_another_extension_wrapped_since_stays_and_works(webui):
    before, api = webui.image(), webui.module("api.api").Api
    original, calls = webui.method, []

    def theirs(self: Any, *args: Any, **named: Any) -> Any:
        calls.append(None)
        return original(self, *args, **named)

    api.init_script_args = theirs
    webui.reload()
    assert webui.image().tobytes() == before.tobytes()
    assert len(calls) == 1


def test_a_job_that_runs_while_the_page_is_reloaded_comes_to_its_end(webui):
    before, hooks, reloaded = webui.image(), webui.hooks(), []
    options = dict(webui.shared.opts.data)

    def reload_once(*args: Any) -> None:
        if not reloaded:
            reloaded.append(None)
            webui.reload()

    p = webui.job("txt2img", LAYERS)
    with webui.model.model.diffusion_model.register_forward_pre_hook(reload_once):
        processed = webui.run(p)
    assert reloaded
    assert processed.images[0].tobytes() == before.tobytes()
    assert webui.hooks() == hooks
    assert webui.shared.opts.data == options
    assert webui.image().tobytes() == before.tobytes()
