"""Inpainting with layers on: what isn't masked keeps its bytes, in either area, of opaque and transparent pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.masked_pictures import draw_mask, draw_noise, find_unmasked
from tests.webui.jobs import decode_image, encode_image

pytestmark = pytest.mark.slow

FAST: dict[str, Any] = {"views": 1}
BODY: dict[str, Any] = {"steps": 3, "denoising_strength": 0.9, "prompt": "red apple"}


@pytest.mark.parametrize("host", ["A1111", "Forge"])
@pytest.mark.parametrize("only_masked", [True, False])
@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
@pytest.mark.parametrize("blur", [0, 4])
def test_what_is_not_masked_keeps_its_bytes(webui, host, only_masked, kind, blur):
    webui.act_like(host)
    start, mask = draw_noise(kind, (128, 128)), draw_mask((128, 128))
    body = BODY | {"init_images": [encode_image(start)], "mask": encode_image(mask), "mask_blur": blur}
    answer = webui.post("img2img", FAST, **body, inpaint_full_res=only_masked, width=128, height=128).json()
    made = decode_image(answer["images"][0])
    assert (made.mode, made.size) == ("RGBA", (128, 128))
    far, painted, given = find_unmasked(mask, blur), np.asarray(made), np.asarray(start.convert("RGBA"))
    assert np.array_equal(painted[far], given[far])
    inside = np.asarray(mask.resize((128, 128))) == 255
    assert not np.array_equal(painted[inside], given[inside])
    if kind == "RGB":
        assert (painted[far][:, 3] == 255).all()
        assert (painted[inside][:, 3] < 250).any(), "the generated part has its own alpha"


@pytest.mark.parametrize("size", [(96, 160), (200, 96)])
def test_a_picture_larger_than_what_is_sampled(webui, size):
    start, mask = draw_noise("RGB", size), draw_mask(size)
    processed = webui.img2img(
        FAST, init_images=[start], mask=mask, inpaint_full_res=True, inpaint_full_res_padding=8, mask_blur=2, **BODY
    )
    painted, far = np.asarray(processed.images[0]), find_unmasked(mask, 2)
    assert processed.images[0].size == size
    assert np.array_equal(painted[far], np.asarray(start.convert("RGBA"))[far])


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_a_size_that_is_not_sampled(webui, kind):
    """The whole picture, 70x66: sampled in 72x72, of which the edges are cut off again."""
    start, mask = draw_noise(kind, (70, 66)), Image.new("L", (70, 66))
    mask.paste(255, (20, 20, 40, 40))
    processed = webui.img2img(
        FAST, init_images=[start], mask=mask, inpaint_full_res=False, mask_blur=0, **BODY | {"width": 70, "height": 66}
    )
    painted, outside = np.asarray(processed.images[0]), np.asarray(mask) == 0
    assert painted.shape == (66, 70, 4)
    assert np.array_equal(painted[outside], np.asarray(start.convert("RGBA"))[outside])
    assert processed.p.image_mask is mask, "the request is as it was"


def test_a_batch_of_opaque_pictures(webui):
    starts = [Image.fromarray(np.asarray(draw_noise("RGB", (128, 128)))[:, ::flip]) for flip in (1, -1)]
    mask = draw_mask((128, 128))
    processed = webui.img2img(
        FAST, init_images=starts, batch_size=2, seed=[1, 1], mask=mask, inpaint_full_res=False, mask_blur=0, **BODY,
        width=128, height=128,
    )  # fmt: skip
    outside = np.asarray(mask) == 0
    for made, start in zip(processed.images, starts, strict=True):
        assert np.array_equal(np.asarray(made)[outside], np.asarray(start.convert("RGBA"))[outside])


def test_an_empty_mask_is_image_to_image(webui):
    mask = Image.new("L", (128, 128))
    for kind in ("RGB", "RGBA"):
        processed = webui.img2img(
            FAST, init_images=[draw_noise(kind, (128, 128))], mask=mask, inpaint_full_res=False, mask_blur=0, **BODY
        )
        assert processed.images[0].size == (64, 64)


def test_without_the_overlay_the_generated_picture_is_handed_back(webui, monkeypatch):
    """The WebUI's own setting against laying the original over it."""
    monkeypatch.setitem(webui.shared.opts.data, "overlay_inpaint", False)
    start, mask = draw_noise("RGB", (64, 64)), Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 40, 40))
    (made,) = webui.img2img(FAST, init_images=[start], mask=mask, inpaint_full_res=False, **BODY).images
    assert not np.array_equal(np.asarray(made)[..., 3], np.full((64, 64), 255))


def add_script(webui, path: str, change: Any) -> int:
    """Add a script to img2img's list, which changes `p` and makes the images; returns its number."""

    class Chosen(webui.scripts.Script):
        def title(self):
            return "Painter"

        def show(self, is_img2img):
            return is_img2img

        def run(self, p, *args):
            change(p)
            return webui.module("processing").process_images(p)

    runner = webui.scripts.scripts_img2img
    runner.add(Chosen(), path)
    runner.create_script_ui(runner.scripts[-1])
    return len(runner.selectable_scripts)


def run_chosen(webui, number: int, **fields: Any) -> Any:
    p = webui.job("img2img", FAST, **BODY, **fields)
    args = (number, *p.script_args[1:])
    p._script_args = args
    webui.shared.state.begin("test")
    try:
        return p, p.scripts.run(p, *args)
    finally:
        webui.shared.state.end()


def test_a_script_that_paints_in_tiles_of_its_own_keeps_the_picture_opaque(webui):
    """As Ultimate SD Upscale does: the whole picture, and a mask for each tile."""

    def paint_tile(p: Any) -> None:
        p.image_mask = draw_mask((64, 64))

    number = add_script(webui, "/extensions/ultimate-upscale.py", paint_tile)
    start = draw_noise("RGB", (64, 64))
    p, processed = run_chosen(webui, number, init_images=[start], inpaint_full_res=False, mask_blur=0)
    assert [image.mode for image in processed.images] == ["RGB"]
    sentence = "The script 'Painter' paints in tiles of its own"
    assert any(sentence in comment for comment in p.comments)
    assert sentence in processed.extra_generation_params["layerdiffusion_notes"][0]
    assert "layerdiffusion_mode" not in processed.infotexts[0]


def test_a_script_that_keeps_the_users_mask_paints_layers(webui):
    number = add_script(webui, "/scripts/xyz_grid.py", lambda p: None)
    start, mask = draw_noise("RGB", (64, 64)), Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 40, 40))
    _, processed = run_chosen(webui, number, init_images=[start], mask=mask, inpaint_full_res=False, mask_blur=0)
    made = np.asarray(processed.images[0])
    outside = np.asarray(mask) == 0
    assert np.array_equal(made[outside], np.asarray(start.convert("RGBA"))[outside])


@pytest.mark.parametrize("file", ["sd_upscale.py", "outpainting_mk_2.py", "poor_mans_outpainting.py"])
def test_the_webuis_scripts_that_make_opaque_tiles_are_refused(webui, file):
    number = add_script(webui, f"/webui/scripts/{file}", lambda p: None)
    with pytest.raises(Exception, match=r"'Painter' puts its picture together from opaque tiles.*: switch LayerDiff"):
        run_chosen(webui, number, init_images=[draw_noise("RGB", (64, 64))])
