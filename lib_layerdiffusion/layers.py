"""Layers as straight-alpha images: their colour where they are invisible, fitting them to a size, and composing them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def pad_rgb(image: Bytes) -> Floats:
    """Continue the visible colour smoothly into the invisible pixels: straight RGBA [H, W, 4] uint8 -> [H, W, 3] 0..1.

    A pyramid of premultiplied colour, each level 1/1.2 of the last, whose one-pixel top is spread down under the
    visible pixels of every level. An empty image gives black.
    """
    alpha = image[..., 3:].astype(np.float32) / 255
    level = np.concatenate([image[..., :3].astype(np.float32) / 255 * alpha, alpha], axis=-1)
    levels = [level]
    while min(level.shape[:2]) > 1:
        height, width = (int(side / 1.2) for side in level.shape[:2])
        level = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
        levels.append(level)
    total = level.sum(axis=(0, 1), keepdims=True)
    colour = total[..., :3] / np.maximum(total[..., 3:], np.float32(1e-8))
    for level in reversed(levels):
        height, width = level.shape[:2]
        colour = cv2.resize(colour, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
        colour = level[..., :3] + colour * (1 - level[..., 3:])
    return colour
