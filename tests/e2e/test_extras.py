"""The Extras tab's route enlarges a transparent picture without losing or dirtying its alpha."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.upscaling import upscale
from tests.e2e.server import encode, read

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer


def draw_disc() -> Image.Image:
    """An orange disc with a soft edge, green where it is invisible."""
    y, x = np.mgrid[:48, :64]
    alpha = ((18 - np.hypot(x - 32, y - 24)) / 3).clip(0, 1) * 255
    colour = np.where(alpha[..., None] > 0, (250, 120, 20), (0, 255, 0))
    return Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))


@pytest.mark.seen("any", "a transparent picture in the Extras tab")
@pytest.mark.parametrize("route", ["extra-single-image", "extra-batch-images"])
def test_transparent_picture_is_enlarged(webui: WebUIServer, route: str) -> None:
    body = {"resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "Lanczos"}
    if route == "extra-single-image":
        made = read(webui.post(f"/sdapi/v1/{route}", {**body, "image": encode(draw_disc())}).body["image"])
    else:
        rows = [{"data": encode(draw_disc()), "name": "disc.png"}]
        made = read(webui.post(f"/sdapi/v1/{route}", {**body, "imageList": rows}).body["images"][0])
    assert (made.mode, made.size) == ("RGBA", (128, 96))
    rgba = np.asarray(made)
    assert (rgba[..., 3] == upscale(np.asarray(draw_disc()), (128, 96))[..., 3]).all()
    assert np.abs(rgba[rgba[..., 3] > 0][:, :3].astype(int) - (250, 120, 20)).max() <= 3
    opaque = webui.post("/sdapi/v1/extra-single-image", {**body, "image": encode(draw_disc().convert("RGB"))})
    assert read(opaque.body["image"]).mode == "RGB"
