"""The stand-in WebUI with the real script, without a network socket (`webui`) and behind one (`server`)."""

from __future__ import annotations

import base64
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hosts.conftest import (  # noqa: F401 - fixtures
    control_files,
    layer_files,
    sd15,
    sd15_parts,
    sdxl,
    sdxl_parts,
    tokenizer,
)

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def embedded_pipeline() -> Any:
    """The embedded model's pipeline."""
    pytest.importorskip("diffusers")
    from lib_layerdiffusion.pipelines import load_pipeline

    return load_pipeline("embedded", device="cpu", offline=True)


@pytest.fixture(scope="module")
def stand_in(embedded_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running stand-in; there can be only one at a time."""
    pytest.importorskip("gradio")
    from lib_layerdiffusion.demo.webui.stand_in import running

    with running(embedded_pipeline, outputs=tmp_path_factory.mktemp("outputs"), offline=True) as started:
        yield started


@pytest.fixture
def webui(stand_in: Any) -> Iterator[WebUI]:
    """The stand-in as it was after the start, acting like Forge; see WebUI for what tests do with it."""
    webui = WebUI(stand_in)
    shared = webui.shared
    before = shared.traits, shared.sd_model, dict(shared.opts.data), dict(shared.opts.data_labels)
    runners = webui.scripts.scripts_txt2img, webui.scripts.scripts_img2img
    scripts = [(list(runner.scripts), list(runner.inputs)) for runner in runners]
    shared.state.reset()
    yield webui
    shared.traits, shared.sd_model, shared.opts.data, shared.opts.data_labels = before
    shared.prompt_styles.styles.clear()
    webui.module("extra_networks").extra_network_registry.clear()
    webui.module("script_callbacks").callback_map.pop("cfg_denoiser", None)
    for runner, (kept, inputs) in zip(runners, scripts, strict=True):
        runner.scripts[:], runner.inputs[:] = kept, inputs


@pytest.fixture(scope="module")
def server(stand_in: Any) -> Iterator[str]:
    """Address of the stand-in behind a socket of this machine."""
    import uvicorn

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(stand_in.app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not running.started:
        assert time.monotonic() < until, "the server doesn't start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(10)


class WebUI:
    """What a test does with the stand-in."""

    def __init__(self, stand_in: Any) -> None:
        self.stand_in = stand_in
        self.shared = stand_in.shared

    def module(self, name: str) -> Any:
        """One of the stand-in's `modules`."""
        import importlib

        return importlib.import_module(f"modules.{name}")

    @property
    def scripts(self) -> Any:
        return self.module("scripts")

    @property
    def script(self) -> Any:
        """The real script's instance for txt2img."""
        return next(each for each in self.scripts.scripts_txt2img.scripts if each.title() == "LayerDiffuse")

    @property
    def extension(self) -> Any:
        """The one Extension that the script file made."""
        return next(data.module.extension for data in self.scripts.scripts_data if hasattr(data.module, "extension"))

    @property
    def model(self) -> Any:
        return self.shared.sd_model

    def act_like(self, name: str) -> None:
        """Become "A1111" or "Forge"."""
        from lib_layerdiffusion.demo.webui import traits

        self.shared.traits = {each.name: each for each in (traits.A1111, traits.FORGE)}[name]
        labels = {key: info for key, info in self.shared.opts.data_labels.items() if key != "stealth_pnginfo_option"}
        if self.shared.traits.stealth_infotext:
            labels["stealth_pnginfo_option"] = self.shared.OptionInfo("Alpha")
        self.shared.opts.data_labels = labels

    def load(self, pipe: Any, name: str = "other") -> None:
        """Load another model, as a user does between two jobs; undone at the end of the test."""
        from lib_layerdiffusion.demo.webui.model import LoadedModel

        self.shared.sd_model = LoadedModel(pipe, name)

    def add(self, kind: type[Any], first: bool = False) -> Any:
        """Add a script without controls to both tabs, always on; returns its instance in txt2img."""
        made = []
        for runner in (self.scripts.scripts_txt2img, self.scripts.scripts_img2img):
            script = kind()
            runner.add(script, "probe.py")
            runner.create_script_ui(script)
            if first:
                runner.scripts.insert(0, runner.scripts.pop())
            made.append(script)
        return made[0]

    def job(self, tab: str, layers: Any = None, is_api: bool = True, page: dict[str, Any] | None = None, **fields: Any):
        """A `p`, ready for `process_images`.

        `layers`: `args` of the real script as an API client sends them (an object or a list). `page`: values of its
        controls by name, as a page sends them.
        """
        processing = self.module("processing")
        runner = self.scripts.scripts_img2img if tab == "img2img" else self.scripts.scripts_txt2img
        kind = "Img2Img" if tab == "img2img" else "Txt2Img"
        usual = {"prompt": "red apple", "seed": 1, "steps": 4, "width": 64, "height": 64, "cfg_scale": 3.0}
        usual |= {"do_not_save_samples": True, "do_not_save_grid": True, "outpath_samples": self.outputs}
        p = getattr(processing, f"StableDiffusionProcessing{kind}")(**usual | fields)
        p.is_api = is_api
        p.scripts = runner
        args = [0, *(control.value for control in runner.inputs[1:])]
        script = next((each for each in runner.scripts if each.title() == "LayerDiffuse"), None)
        sent = [layers] if isinstance(layers, dict) else list(layers or [])
        if page is not None:
            from lib_layerdiffusion.webui.arguments import PAGE_ORDER

            for name, value in page.items():
                args[script.args_from + PAGE_ORDER.index(name)] = value
        for index, value in enumerate(sent):
            args[script.args_from + index] = value
        p.script_args = tuple(args)
        return p

    @property
    def outputs(self) -> str:
        return self.shared.opts.outdir_txt2img_samples

    def run(self, p: Any) -> Any:
        """Make the images of a job: a `Processed`, whose job is at hand as `.p`."""
        self.shared.state.begin("test")
        try:
            processed = self.module("processing").process_images(p)
        finally:
            self.shared.state.end()
        processed.p = p
        return processed

    def txt2img(self, layers: Any = None, **fields: Any) -> Any:
        return self.run(self.job("txt2img", layers, **fields))

    def img2img(self, layers: Any = None, **fields: Any) -> Any:
        return self.run(self.job("img2img", layers, **fields))

    # -- the HTTP API, without a socket

    def request(self, method: str, path: str, **settings: Any) -> Any:
        """Ask the app; a failing job is an answer with an HTTP status, as for any client."""
        pytest.importorskip("httpx")
        from fastapi.testclient import TestClient

        return TestClient(self.stand_in.app, raise_server_exceptions=False).request(method, path, **settings)

    def post(self, tab: str, layers: Any = None, **body: Any) -> Any:
        """POST /sdapi/v1/txt2img or img2img."""
        usual = {"prompt": "red apple", "seed": 1, "steps": 4, "width": 64, "height": 64, "cfg_scale": 3.0}
        if layers is not None:
            usual["alwayson_scripts"] = {"LayerDiffuse": {"args": layers}}
        return self.request("POST", f"/sdapi/v1/{tab}", json=usual | body)


def decode_image(text: str) -> Image.Image:
    """An image of an API answer."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def encode_image(image: Image.Image) -> str:
    """An image for an API request."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def read_png(path: str | Path) -> Image.Image:
    """An image file, wholly read."""
    with Image.open(path) as image:
        image.load()
        return image


from tests.webui.families import every_file, families  # noqa: E402, F401 - fixtures that need the above
