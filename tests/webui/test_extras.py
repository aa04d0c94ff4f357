"""The Extras tab's script: transparency is kept around scripts that see and give RGB pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from lib_layerdiffusion.upscaling import upscale
from tests.webui.jobs import WebUI


@pytest.fixture
def run_all(webui: WebUI) -> Any:
    """Run a picture through scripts with their order, and ours: the WebUI's pictures that come out."""
    from lib_layerdiffusion.webui.extras import make_extras

    postprocessing = webui.module("scripts_postprocessing")

    class Other(postprocessing.ScriptPostprocessing):
        def __init__(self, order: int, process: Any) -> None:
            self.order, self.process = order, process

    def run(image: Image.Image, *others: tuple[int, Any]) -> list[Any]:
        keep, give = make_extras()
        assert keep is not None
        assert give is not None
        pp = postprocessing.run(image, [give(), *(Other(*other) for other in others), keep()])
        return [pp, *pp.extra_images]

    return run


@pytest.fixture
def run(run_all: Any) -> Any:
    """Run a picture through a script that changes it and has the upscalers' place, with ours."""

    def run(image: Image.Image, change: Any) -> Image.Image:
        (made,) = run_all(image, (1000, replacing(change)))
        return made.image

    return run


def replacing(change: Any) -> Any:
    def process(pp: Any) -> None:
        pp.image = change(pp.image)

    return process


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


# As AUTOMATIC1111 1.10.1 does it in its extension postprocessing-for-training.
def add_flipped_copies(pp: Any) -> None:
    pp.extra_images.append(ImageOps.mirror(pp.image))
    pp.extra_images.append(pp.image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


def split(pp: Any) -> None:
    whole = pp.image.resize((40, 28))
    pp.image = whole.crop((0, 0, 20, 28))
    pp.extra_images = [pp.create_copy(whole.crop((12, 0, 32, 28))), pp.create_copy(whole.crop((20, 0, 40, 28)))]


def crop_to_size(pp: Any) -> None:
    assert np.asarray(pp.image).shape[2] == 3  # a network that looks for faces takes no more
    pp.image = pp.image.resize((32, 32), Image.Resampling.LANCZOS, (16, 0, 96, 80))


def draw_lopsided() -> Image.Image:
    """Four quarters of different alpha and one colour, black where invisible."""
    rgba = np.zeros((40, 56, 4), np.uint8)
    for alpha, (y, x) in zip((250, 90, 0, 170), ((0, 0), (0, 28), (20, 0), (20, 28)), strict=True):
        rgba[y : y + 20, x : x + 28] = (250, 90, 20, alpha) if alpha else 0
    return Image.fromarray(rgba)


def read_corners(image: Image.Image) -> list[int]:
    """Alpha near the corners: left top, right top, left bottom, right bottom."""
    assert image.mode == "RGBA"
    x, y = image.width - 3, image.height - 3
    return [image.getpixel(place)[3] for place in ((2, 2), (x, 2), (2, y), (x, y))]


@pytest.mark.parametrize("change", [enlarge, lambda image: image])
def test_copies_that_a_script_flips_have_the_flipped_alpha(run_all: Any, change: Any) -> None:
    made = run_all(draw_lopsided(), (1000, replacing(change)), (4030, add_flipped_copies))

    assert [read_corners(each.image) for each in made] == [[250, 90, 0, 170], [90, 250, 170, 0], [0, 170, 250, 90]]
    for each in made:
        rgba = np.asarray(each.image)
        assert np.abs(rgba[rgba[..., 3] > 0][:, :3].astype(int) - (250, 90, 20)).max() <= 2
        assert not each.info


def test_pieces_of_a_picture_have_their_part_of_its_alpha(run_all: Any) -> None:
    made = run_all(draw_lopsided(), (1000, replacing(enlarge)), (4000, split), (4030, add_flipped_copies))

    left, middle, right = ([250, 250, 0, 0], [250, 90, 0, 170], [90, 90, 170, 170])
    corners = [read_corners(each.image) for each in made]
    assert np.abs(np.subtract(corners[:3], [left, middle, right])).max() <= 2
    assert len(made) == 9
    assert corners[5] == [corners[1][place] for place in (1, 0, 3, 2)]  # the middle, mirrored
    assert {each.image.size for each in made} == {(20, 28)}


def test_a_script_that_crops_after_the_upscalers_keeps_the_alpha_there(run_all: Any) -> None:
    (made,) = run_all(draw_lopsided(), (1000, replacing(enlarge)), (4020, crop_to_size))

    assert made.image.size == (32, 32)
    assert read_corners(made.image) == [250, 90, 0, 170]


@pytest.mark.parametrize("order", [1000, 20000])
def test_alpha_that_a_script_makes_is_multiplied_with_the_pictures_own(run_all: Any, order: int) -> None:
    def cut_out(image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        image.putalpha(102)
        return image

    (made,) = run_all(draw_lopsided(), (900, replacing(enlarge)), (order, replacing(cut_out)))

    assert made.image.size == (112, 80)
    assert read_corners(made.image) == [100, 36, 0, 68]


@pytest.mark.parametrize("order", [4030, 20000])
def test_alpha_outlasts_a_script_that_makes_the_picture_anew(run_all: Any, order: int) -> None:
    def paint(image: Image.Image) -> Image.Image:
        return Image.fromarray(255 - np.asarray(image))

    (made,) = run_all(draw_lopsided(), (order, replacing(paint)))

    assert read_corners(made.image) == [250, 90, 0, 170]
    assert made.image.getpixel((2, 2))[:3] == (5, 165, 235)


@pytest.mark.parametrize(
    "others",
    [
        [(500, add_flipped_copies)],  # before the upscalers, as a setting of the WebUI allows
        [(4030, add_flipped_copies), (20000, replacing(lambda image: Image.fromarray(np.asarray(image))))],
    ],
)
def test_copies_whose_alpha_is_not_known_say_so(run_all: Any, others: Any, caplog: pytest.LogCaptureFixture) -> None:
    original, *copies = run_all(draw_lopsided(), *others)

    assert read_corners(original.image) == [250, 90, 0, 170]
    assert not original.info
    assert [each.image.mode for each in copies] == ["RGB", "RGB"]
    assert all("is lost: switch off cropping" in each.info["LayerDiffusion transparency"] for each in copies)
    assert caplog.text.count("is lost: switch off cropping") == 2


def test_texts_of_the_picture_are_kept(run: Any) -> None:
    disc = draw_disc()
    disc.info["parameters"] = "a cat"

    assert run(disc, lambda image: image).info["parameters"] == "a cat"


def test_webuis_find_the_script(webui: WebUI) -> None:
    base = webui.module("scripts_postprocessing").ScriptPostprocessing
    (entry,) = {data.module for data in webui.scripts.scripts_data}

    found = [each for each in vars(entry).values() if isinstance(each, type) and issubclass(each, base)]
    assert [each.order for each in found] == [3900, 1_000_000]
