"""Pictures, masks and what lies outside them, for tests of inpainting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def draw_noise(kind: str, size: tuple[int, int]) -> Image.Image:
    """Noise of every colour, also where it is invisible; "RGBA" has alpha of every value."""
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels).convert(kind)


def draw_mask(size: tuple[int, int]) -> Image.Image:
    """A rectangle in the middle, of a third of each side."""
    mask = Image.new("L", size)
    left, top = size[0] // 3, size[1] // 3
    mask.paste(255, (left, top, 2 * left + 1, 2 * top + 1))
    return mask


def find_unmasked(mask: Image.Image, blur: int) -> NDArray[np.bool_]:
    """Where the mask can't have any share, however it is blurred: [H, W]."""
    box = mask.getbbox()
    assert box is not None
    far = np.ones(mask.size[::-1], bool)
    margin = 3 * blur + 1 if blur else 0
    far[max(0, box[1] - margin) : box[3] + margin, max(0, box[0] - margin) : box[2] + margin] = False
    return far
