"""Tiny models of both families in the stand-in, with a file for every layer mode, and a look at what a test left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from lib_layerdiffusion.transparent_vae import TransparentDecoder
from tests import seeded
from tests.webui.jobs import WebUI, decode_image, encode_image

ALIKE = {"layer_xl_fgble2bg": "layer_xl_bgble2fg", "layer_xl_bg2ble": "layer_xl_fg2ble"}  # of the same shapes
QUICK: dict[str, Any] = {"steps": 2, "prompt": "a cat"}


@pytest.fixture(scope="session")
def every_file(layer_files: Path, control_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all layer files of both families; their decoders differ."""
    folder = tmp_path_factory.mktemp("every_layer_model")
    sources = {path.stem: path for path in (*layer_files.iterdir(), *control_files.iterdir())}
    sources |= {name: sources[other] for name, other in ALIKE.items()}
    decoder = "vae_transparent_decoder"
    save_file(
        seeded.fill(TransparentDecoder(widths=(8,) * 7), 7, gain=2).state_dict(), folder / f"{decoder}.safetensors"
    )
    for name in sources.keys() - {decoder}:
        (folder / f"{name}.safetensors").symlink_to(sources[name].resolve())
    return folder


class Families:
    """The stand-in with a tiny model loaded: requests to it, and the state that has to be the same after each."""

    def __init__(self, webui: WebUI, pipes: dict[str, Any]) -> None:
        self.webui = webui
        self.pipes = pipes

    def load(self, family: str) -> None:
        """Load the model of a family, as a user does between two jobs."""
        self.webui.load(self.pipes[family], family)

    def ask(self, layers: Any = None, tab: str = "txt2img", **body: Any) -> Any:
        """An answer of the API."""
        return self.webui.post(tab, layers, **QUICK | body)

    def images(self, layers: Any = None, tab: str = "txt2img", **body: Any) -> list[Image.Image]:
        """The images of an answer that has to be good."""
        answer = self.ask(layers, tab, **body)
        assert answer.status_code == 200, answer.text
        return [decode_image(image) for image in answer.json()["images"]]

    def refusal(self, layers: Any, tab: str = "txt2img", **body: Any) -> str:
        """The one sentence of an answer without images."""
        answer = self.ask(layers, tab, **body)
        assert answer.status_code == 422, answer.text[:500]
        assert "images" not in answer.json()
        sentence = answer.json()["detail"]
        assert sentence.endswith(".")
        assert "\n" not in sentence
        return sentence

    def state(self) -> dict[str, Any]:
        """Weights and hooks of the loaded model, and a plain request's image: all that a generation could poison."""
        model, found = self.webui.model, {}
        for part in (model.model.diffusion_model, model.first_stage_model):
            for name, value in part.state_dict().items():
                found[name] = value.numpy().tobytes()
            for name, module in part.named_modules():
                hooks = [len(each) for each in (module._forward_hooks, module._forward_pre_hooks)]
                found[f"{name}()"] = type(module), hooks, sorted(vars(module))
        return found | {"plain": [image.tobytes() for image in self.images()]}


@pytest.fixture
def families(webui: WebUI, every_file: Path, sd15: Any, sdxl: Any) -> Iterator[Families]:
    """Both families at hand, SD1.5 loaded; at the test's end both have to be as they were."""
    flags = webui.shared.cmd_opts
    before = flags.layerdiffusion_dir
    flags.layerdiffusion_dir = str(every_file)
    families = Families(webui, {"sd15": sd15, "sdxl": sdxl})
    states = {}
    for family in ("sdxl", "sd15"):
        families.load(family)
        states[family] = families.state()
    yield families
    for family, state in states.items():
        families.load(family)
        assert families.state() == state, f"the {family} model isn't as before"
    flags.layerdiffusion_dir = before


def disc(mode: str = "RGBA", size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    """Noise, in RGBA on a disc with nothing around it."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    pixels[..., 3] = 255 * (np.hypot(rows - height / 2, columns - width / 2) < min(size) / 3)
    return Image.fromarray(pixels).convert(mode)


def given(mode: str = "RGBA", **about: Any) -> str:
    """`disc` as an API client sends it."""
    return encode_image(disc(mode, **about))


def modes_of(images: list[Image.Image]) -> list[str]:
    """RGBA or RGB, of each image."""
    return [image.mode for image in images]
