"""The tabs whose components hand pictures over as RGB: with layers on, the transparency is there again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.webui import page_images

pytestmark = pytest.mark.slow


def draw(lowest_alpha: int = 0) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 4), np.uint8)
    pixels[..., 3] = pixels[..., 3].clip(lowest_alpha)
    return Image.fromarray(pixels)


def hand_over(elem_id: str, image: Image.Image, folder: Path) -> Image.Image:
    """What the WebUI gets from such a component, with the hook after it was made."""
    gr = pytest.importorskip("gradio")
    data_classes = pytest.importorskip("gradio.data_classes")
    image.save(folder / "picture.png")
    component = gr.Image(type="pil", elem_id=elem_id)
    page_images.watch(component)
    return component.preprocess(data_classes.FileData(path=str(folder / "picture.png")))


@pytest.mark.parametrize("elem_id", ["img_inpaint_base", "inpaint_sketch", "img2img_sketch", "another"])
@pytest.mark.parametrize("lowest_alpha", [0, 254, 255])
def test_what_the_webui_gets_is_the_same(tmp_path, elem_id, lowest_alpha):
    image = draw(lowest_alpha)
    handed = hand_over(elem_id, image, tmp_path)
    assert handed.mode == "RGB"
    assert np.array_equal(np.asarray(handed), np.asarray(image)[..., :3])
    dropped = lowest_alpha < 255
    given = page_images.give_back_alpha(handed.copy())
    assert given.mode == ("RGBA" if dropped and elem_id == "img_inpaint_base" else "RGB")
    assert page_images.is_sketch(handed.copy()) == (dropped and elem_id.endswith("sketch"))


def inpaint(webui: Any, start: Image.Image) -> Any:
    mask = Image.new("L", start.size)
    mask.paste(255, (20, 20, 40, 40))
    settings = {"steps": 3, "denoising_strength": 0.9, "inpaint_full_res": False, "mask_blur": 0}
    return webui.img2img({"views": 1}, init_images=[start], mask=mask, **settings), np.asarray(mask) == 0


def test_an_uploaded_picture_keeps_its_transparency_where_it_is_not_masked(webui, tmp_path):
    image = draw()
    handed = hand_over("img_inpaint_base", image, tmp_path)
    processed, outside = inpaint(webui, handed)
    assert np.array_equal(np.asarray(processed.images[0])[outside], np.asarray(image)[outside])
    assert processed.p.init_images == [handed], "the request is as it was"
    assert "layerdiffusion_notes" not in processed.extra_generation_params


def test_a_sketched_picture_stays_opaque_and_that_is_said(webui, tmp_path):
    image = draw()
    processed, outside = inpaint(webui, hand_over("inpaint_sketch", image, tmp_path))
    assert np.array_equal(
        np.asarray(processed.images[0])[outside], np.asarray(image.convert("RGB").convert("RGBA"))[outside]
    )
    assert processed.extra_generation_params["layerdiffusion_notes"] == [page_images.SKETCHED]
