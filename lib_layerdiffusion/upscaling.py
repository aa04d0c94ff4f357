"""Scaling a finished transparent image: colour and alpha apart, so that no edge gets a fringe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from .layers import Bytes, Size, check_rgba, fit, pad_rgb, to_bytes, to_float
from .refusal import Refusal

Enlarge = Callable[[Bytes], Bytes]  # RGB uint8 [H, W, 3] to the same picture in a larger size

CERTAIN = 0.05  # alpha from which a pixel's own colour counts in full; below, that around it counts too
TILE, OVERLAP = 512, 32  # pixels that a model sees at once, and of its tiles' edges that are thrown away


def continue_colour(image: Bytes) -> Bytes:
    """Opaque RGB [H, W, 3] uint8 of straight RGBA [H, W, 4]: the colour of what is visible, continued under the rest.

    The fainter a pixel is, the less its colour can be trusted, so that of the pixels around it takes part.
    """
    check_rgba(image, "The image whose colour is to be continued")
    own, around = to_float(image[..., :3]), pad_rgb(image)
    certain = np.minimum(1, to_float(image[..., 3:]) / np.float32(CERTAIN))
    return to_bytes(np.asarray(around + (own - around) * certain, np.float32))


def join(colour: Bytes, alpha: Bytes) -> Bytes:
    """Straight RGBA [H, W, 4] uint8 of an enlarged colour [H, W, 3] and an alpha [h, w], scaled to its size."""
    height, width = colour.shape[:2]
    return np.dstack([colour, _scale(alpha, (width, height))])


def upscale(image: Bytes, size: Size, enlarge: Enlarge | None = None) -> Bytes:
    """Bring straight RGBA [H, W, 4] uint8 to `size` (width, height).

    Colour is enlarged by `enlarge` (an upscaling model), and brought to the size from what that gives; without it by
    Lanczos interpolation, as alpha is. Refusal when a side of `size` isn't positive.
    """
    if min(size) < 1:
        raise Refusal(f"An image can't be scaled to {size[0]}x{size[1]}: use a size of 1x1 or more.")
    colour = continue_colour(image)
    if enlarge is not None:
        colour = fit(enlarge(colour), size, "stretch")
    elif image.shape[1::-1] != tuple(size):
        colour = _scale(colour, size)
    return join(colour, image[..., 3])


def load_upscaler(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Enlarge:
    """An upscaling model (ESRGAN, SwinIR, ...) from its file, by the package spandrel; it works in tiles.

    ModuleNotFoundError when spandrel isn't installed; Refusal when it can't be loaded or the file isn't such a model.
    """
    try:
        import spandrel  # pyright: ignore[reportMissingImports] - the extra [upscale]
    except ModuleNotFoundError:
        raise
    except (ImportError, RuntimeError, OSError) as error:  # of a torchvision made for another torch
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise Refusal(
            f"The Python package spandrel can't be loaded ({reason}): install the torchvision that is made for torch "
            f"{torch.__version__}."
        ) from error
    if not Path(path).is_file():
        raise Refusal(f"There is no file {path}: name an upscaling model, such as an ESRGAN .pth or .safetensors file.")
    try:
        model = spandrel.ModelLoader(device).load_from_file(path)
    except Exception as error:  # of each format its own kinds
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"{path} can't be read as an upscaling model ({type(error).__name__}: {reason}).") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise Refusal(f"{path} isn't a model that enlarges RGB pictures: name one such as RealESRGAN_x4plus.")
    model.eval()
    factor = model.scale

    @torch.inference_mode()
    def enlarge(colour: Bytes) -> Bytes:
        height, width = colour.shape[:2]
        made = np.empty((height * factor, width * factor, 3), np.uint8)
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                rows = slice(max(0, top - OVERLAP), min(height, top + TILE + OVERLAP))
                columns = slice(max(0, left - OVERLAP), min(width, left + TILE + OVERLAP))
                given = torch.from_numpy(np.ascontiguousarray(colour[rows, columns].transpose(2, 0, 1)))[None]
                tile = model(given.to(device).float() / 255)[0].clamp(0, 1).cpu().numpy().transpose(1, 2, 0)
                inner = tile[(top - rows.start) * factor :, (left - columns.start) * factor :]
                bottom, right = min(height, top + TILE) * factor, min(width, left + TILE) * factor
                target = made[top * factor : bottom, left * factor : right]
                target[:] = to_bytes(inner[: target.shape[0], : target.shape[1]])
        return made

    return enlarge


def _scale(image: Bytes, size: Size) -> Bytes:
    """Area interpolation to fewer pixels, Lanczos to more."""
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    scaled = cv2.resize(to_float(image), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)
    return to_bytes(np.asarray(scaled, np.float32))
