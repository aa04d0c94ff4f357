"""A real WebUI with the smallest model that it loads, in which the end-to-end tests work as an artist would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lib_layerdiffusion.layers import Layer, composite
from tests.e2e.server import CHECKPOINTS, Answer, State, WebUIServer, is_forge
from tests.e2e.test_embedded_checkpoint import CHECKPOINT, choose, embedded
from tests.masked_pictures import draw_mask, draw_noise

__all__ = ["at_first", "embedded", "studio", "unchanged"]  # fixtures

FOREGROUND: dict[str, Any] = {"mode": "foreground", "views": 1}
TOGETHER: dict[str, Any] = {"mode": "together", "views": 1}
OTHER = "layerdiffusion-other"  # a checkpoint's name
QUICK: dict[str, Any] = {"prompt": "red apple", "negative_prompt": "", "seed": 5, "cfg_scale": 3}


@dataclass(frozen=True)
class Studio:
    """A WebUI, the checkpoint that it works with, and the settings of its pictures."""

    server: WebUIServer
    checkpoint: str
    size: int
    usual: dict[str, Any]

    @property
    def is_forge(self) -> bool:
        return is_forge(self.server.folder)

    def txt2img(self, layers: Any = FOREGROUND, **values: Any) -> Answer:
        return self.server.txt2img(layers, **self.usual | values)

    def img2img(self, image: Image.Image, layers: Any = FOREGROUND, **values: Any) -> Answer:
        return self.server.img2img(image, layers, **self.usual | values)

    def draw(self, kind: str = "RGBA") -> Image.Image:
        """Noise of the size of its pictures."""
        return draw_noise(kind, (self.size, self.size))

    def draw_mask(self) -> Image.Image:
        """A square in the middle, of a third of the side."""
        return draw_mask((self.size, self.size))

    def saving_in(self, folder: Path) -> Any:
        """Save pictures as `picture.png` in a folder, for a while."""
        return self.server.options(
            outdir_txt2img_samples=str(folder),
            samples_filename_pattern="picture",
            save_images_add_number=False,
            save_to_dirs=False,
        )

    @contextmanager
    def another_checkpoint(self) -> Iterator[str]:
        """The name of a checkpoint of full shape that isn't loaded; its file is there for a while."""
        folder = self.server.folder / "models" / "Stable-diffusion"
        other = folder / f"{OTHER}.safetensors"
        other.unlink(missing_ok=True)  # left by a run that was killed
        other.hardlink_to(folder / f"{CHECKPOINTS['sd15']}.safetensors")
        try:
            assert self.server.post("/sdapi/v1/refresh-checkpoints").status == 200
            yield other.name
        finally:
            other.unlink()

    @contextmanager
    def seeded_files(self) -> Iterator[None]:
        """The checkpoint of full shape for a while, for which there are files of all modes."""
        choose(self.server, f"{CHECKPOINTS['sd15']}.safetensors")
        try:
            yield
        finally:
            choose(self.server, f"{self.checkpoint}.safetensors")

    @contextmanager
    def unfit_file(self) -> Iterator[None]:
        """For a while the checkpoint has no file of its own for the mode together, only that of full shape."""
        fitting = self.server.folder / "models" / "layer_model" / self.checkpoint / "layer_sd15_joint.safetensors"
        away = fitting.rename(fitting.with_suffix(".away"))
        try:
            yield
        finally:
            away.rename(fitting)


@pytest.fixture(scope="module")
def studio(webui_server: WebUIServer, request: pytest.FixtureRequest) -> Studio:
    """AUTOMATIC1111 with the embedded model, Forge and its forks with the seeded files."""
    if is_forge(webui_server.folder):
        return Studio(webui_server, CHECKPOINTS["sd15"], 64, QUICK | {"width": 64, "height": 64, "steps": 2})
    server = request.getfixturevalue("embedded")
    return Studio(server, CHECKPOINT, 128, QUICK | {"width": 128, "height": 128, "steps": 6, "sampler_name": "DDIM"})


@pytest.fixture(scope="module")
def at_first(studio: Studio) -> State:
    state = studio.server.observe(studio.checkpoint, steps=1)
    assert state.model["hooked"] == []
    return state


@pytest.fixture(autouse=True)
def unchanged(studio: Studio, at_first: State) -> Iterator[None]:
    """After each test the weights, the modules and the next pictures are the same, byte for byte."""
    yield
    assert not at_first.changes(studio.server.observe(studio.checkpoint, steps=1))


def put_on(image: Image.Image, background: str = "checker") -> NDArray[np.uint8]:
    """A transparent picture over a background: uint8 [H, W, 3]."""
    return composite([Layer("image", np.asarray(image), "foreground")], background)[..., :3]


def is_part(part: NDArray[np.uint8], whole: NDArray[np.uint8]) -> bool:
    """Whether a picture, [h, w, 3], is somewhere in a larger one, [H, W, 3]."""
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(whole, (1, width, 3))[:, :, 0, 0]
    starts = (windows == part[0]).all(axis=(-1, -2))
    return any(
        np.array_equal(whole[top : top + height, left : left + width], part) for top, left in np.argwhere(starts)
    )
