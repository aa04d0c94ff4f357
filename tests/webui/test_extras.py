"""The Extras tab's script: transparency is kept around scripts that see and give RGB pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.upscaling import upscale
from tests.webui.jobs import WebUI


@pytest.fixture
def run(webui: WebUI) -> Any:
    """Run a picture through a script of the WebUI's kind, with ours."""
    from lib_layerdiffusion.webui.extras import make_extras

    postprocessing = webui.module("scripts_postprocessing")
    keep = make_extras()
    assert keep is not None

    class Other(postprocessing.ScriptPostprocessing):
        def __init__(self, change: Any) -> None:
            self.change = change

        def process(self, pp: Any, **args: Any) -> None:
            pp.image = self.change(pp.image)

    return lambda image, change: postprocessing.run(image, [keep(), Other(change)]).image


def draw_disc() -> Image.Image:
    y, x = np.mgrid[:40, :56]
    alpha = (15 - np.hypot(x - 28, y - 20)).clip(0, 1) * 255
    colour = np.where(alpha[..., None] > 0, (250, 90, 20), (0, 0, 0))
    return Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))


def enlarge(image: Image.Image) -> Image.Image:
    assert image.mode == "RGB"  # what upscaling models take
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS)


@pytest.mark.slow
def test_a_transparent_picture_is_enlarged_without_a_fringe(run: Any) -> None:
    made = run(draw_disc(), enlarge)

    assert made.mode == "RGBA"
    assert made.size == (112, 80)
    wanted = upscale(np.asarray(draw_disc()), (112, 80))
    assert (np.asarray(made)[..., 3] == wanted[..., 3]).all()
    visible = np.asarray(made)[..., 3] > 0
    assert np.abs(np.asarray(made)[visible][:, :3].astype(int) - (250, 90, 20)).max() <= 2


def test_sides_rounded_to_eights_are_still_scaled(run: Any) -> None:
    assert run(draw_disc(), lambda image: image.resize((88, 64))).mode == "RGBA"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_opaque_picture_is_left_to_the_webui(run: Any, mode: str) -> None:
    seen: list[Image.Image] = []
    opaque = Image.new(mode, (16, 16), "red")

    made = run(opaque, lambda image: seen.append(image) or image)

    assert seen == [opaque]
    assert made is opaque


def test_a_cropped_picture_stays_opaque_and_says_so(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = run(draw_disc(), lambda image: image.crop((0, 0, 20, 40)))

    assert made.mode == "RGB"
    assert "switch off cropping" in caplog.text


def test_texts_of_the_picture_are_kept(run: Any) -> None:
    disc = draw_disc()
    disc.info["parameters"] = "a cat"

    assert run(disc, lambda image: image).info["parameters"] == "a cat"


def test_webuis_find_the_script(webui: WebUI) -> None:
    base = webui.module("scripts_postprocessing").ScriptPostprocessing
    (entry,) = {data.module for data in webui.scripts.scripts_data}

    assert [each for each in vars(entry).values() if isinstance(each, type) and issubclass(each, base)]
