"""What tests do with the stand-in WebUI: jobs, requests to its API, and the images that come and go."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


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
        from lib_layerdiffusion.stand_in import traits

        self.shared.traits = {each.name: each for each in (traits.A1111, traits.FORGE)}[name]
        labels = {key: info for key, info in self.shared.opts.data_labels.items() if key != "stealth_pnginfo_option"}
        if self.shared.traits.stealth_infotext:
            labels["stealth_pnginfo_option"] = self.shared.OptionInfo("Alpha")
        self.shared.opts.data_labels = labels

    def load(self, pipe: Any, name: str = "other") -> None:
        """Load another model, as a user does between two jobs; undone at the end of the test."""
        from lib_layerdiffusion.stand_in.model import LoadedModel

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
        if script is not None:
            args[script.args_from] = False  # the page begins with the panel on, a request with it off
        sent = [layers] if isinstance(layers, dict) else list(layers or [])
        if page is not None:
            from lib_layerdiffusion.webui.arguments import OUTPUT_BOXES, PAGE_ORDER

            boxes = {box: box.removeprefix("outputs_") in page["outputs"] for box in OUTPUT_BOXES if "outputs" in page}
            for name, value in {**{name: page[name] for name in page if name != "outputs"}, **boxes}.items():
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
