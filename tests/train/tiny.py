"""Drawn images and configurations small enough to train within a test."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lib_layerdiffusion.train.autoencoder import AutoencoderConfig
from lib_layerdiffusion.train.base import BaseConfig
from lib_layerdiffusion.train.transparency import TransparencyConfig

TINY_VAE = AutoencoderConfig(widths=(4, 4, 8, 8), groups=2, sizes=(64,), size_steps=(1,), batches=(2,))
TINY_BASE = BaseConfig(size=64, widths=(8, 8, 16, 16), groups=4, heads=2, text_width=24, text_layers=1)
TINY_TRANSPARENCY = TransparencyConfig(
    decoder_widths=(8,) * 7,
    encoder_widths=(4, 4, 8, 8),
    sizes=(64,),
    size_steps=(4,),
    batches=(2,),
    log_every=2,
    grid_every=0,
)


def draw_disc(size: int, colour: tuple[int, int, int], opacity: float) -> np.ndarray:
    """A disc of one colour; its surroundings are invisible and green, which nobody may see."""
    axis = np.linspace(-1, 1, size)
    inside = np.hypot(*np.meshgrid(axis, axis)) < 0.7
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[...] = (0, 255, 0, 0)
    rgba[inside] = (*colour, round(255 * opacity))
    return rgba


def png(rgba: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return buffer.getvalue()
