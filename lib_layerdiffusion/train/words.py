"""Which of a model's words a picture shows: the nearest sprite's, by a distance that is blind to place and size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .dataset import Sprite, find_prompts, split_sprites
from .measures import find_box

COMPARE_SIZE = 32
OUTSIDE = 0.02  # mean alpha below which a place counts as empty
VISIBLE = 25  # of 255


def describe(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the distance compares: the sprite's visible box, fitted to a square of 32 pixels, over mid-grey.

    The crop makes the distance blind to place and size, which the augmentation varies.
    """
    box = find_box(rgba[..., 3], VISIBLE)
    if box is None:
        return np.full((COMPARE_SIZE, COMPARE_SIZE, 3), 0.5, np.float32)
    top, left, bottom, right = box
    cut = Image.fromarray(rgba[top:bottom, left:right])
    side = max(cut.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    pixels = np.asarray(square.resize((COMPARE_SIZE, COMPARE_SIZE), Image.Resampling.BOX), np.float32) / 255
    return 0.5 + (pixels[..., :3] - 0.5) * pixels[..., 3:]


def nearest_caption(rgba: NDArray[np.uint8], sprites: list[Sprite]) -> str:
    """Caption of the sprite with the least mean squared difference (`describe`), mirror images allowed."""
    image = describe(rgba)

    def distance(sprite: Sprite) -> float:
        other = describe(sprite.rgba)
        return min(float(((image - view) ** 2).mean()) for view in (other, other[:, ::-1]))

    return min(sprites, key=distance).text


def find_words(model: Path, sprites: list[Sprite]) -> list[Sprite]:
    """The sprites that the model has words for, by its captions.json if it has one."""
    known = find_prompts(split_sprites(sprites)[0])
    file = model / "captions.json"
    if not file.exists():
        return known
    words = {row["caption"] for row in json.loads(file.read_text(encoding="utf-8"))}
    return [sprite for sprite in known if sprite.text in words]
