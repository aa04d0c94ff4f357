"""Read a user's image of whatever kind as straight RGBA bytes, or say in one sentence why it can't be read."""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps, UnidentifiedImageError

from .refusal import Refusal

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]
MAX_PIXELS = 2**26  # 8192 x 8192, beyond what any layer mode can use; larger headers are refused before any decoding
# What Pillow's readers raise; TypeError is a TIFF page without dimensions.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


def read_image(image: str | os.PathLike[str] | PIL.Image.Image | NDArray[Any]) -> Bytes:
    """Straight RGBA [H, W, 4] uint8 from a path, a Pillow image or an array [H, W], [H, W, 3] or [H, W, 4] of uint8.

    Palettes, 16 bits, CMYK and greyscale are converted, a camera's rotation is applied, and of an animation the first
    frame is taken. Refusal names the file, what is wrong with it, and the cure.
    """
    match image:
        case np.ndarray():
            return _read_array(image)
        case PIL.Image.Image():
            try:
                return _convert(image, "The image")
            except DAMAGED as error:
                raise Refusal(f"The image can't be read ({_quote(error)}): open it again.") from error
        case _:
            return _read_file(Path(image))


def _read_array(image: NDArray[Any]) -> Bytes:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        raise Refusal(
            f"An image array has to be uint8 [H, W], [H, W, 3] or [H, W, 4], not {image.dtype} {list(image.shape)}: "
            "scale it to 0..255 and convert it."
        )
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] == 3:
        return np.concatenate([image, np.full_like(image[..., :1], 255)], axis=2)
    if image.shape[2] != 4:
        raise Refusal(f"An image array has 1, 3 or 4 channels, not {image.shape[2]}: convert it to RGB or RGBA.")
    return image


def _read_file(path: Path) -> Bytes:
    try:
        if path.is_dir():
            raise Refusal(f"{path} is a folder, not an image: name an image file in it.")
        if path.exists() and not path.is_file():
            raise Refusal(f"{path} is not an ordinary file: name a PNG, JPEG or WebP file.")
        if path.stat().st_size == 0:
            raise Refusal(f"{path} is an empty file: save or download it again.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # the size is checked below
            with PIL.Image.open(path) as image:
                return _convert(image, str(path))
    except FileNotFoundError:
        raise Refusal(f"There is no file {path}: check its name and folder.") from None
    except PermissionError:
        raise Refusal(f"{path} may not be read: change its permissions or copy it elsewhere.") from None
    except UnidentifiedImageError:
        raise Refusal(f"{path} is not an image that can be read: convert it to PNG, JPEG or WebP.") from None
    except PIL.Image.DecompressionBombError:
        raise _too_large(str(path)) from None
    except DAMAGED as error:
        raise Refusal(f"{path} is damaged or cut off ({_quote(error)}): save or download it again.") from error


def _convert(image: PIL.Image.Image, name: str) -> Bytes:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{name} ({image.width}x{image.height})")
    if getattr(image, "n_frames", 1) > 1:
        logger.warning("%s has several frames; the first is taken", name)
    image.load()
    try:
        image = ImageOps.exif_transpose(image) or image  # older Pillow declares that it may give None
    except DAMAGED as error:
        logger.warning("%s has unreadable EXIF data (%s); it is taken as it lies", name, _quote(error))
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        rgba = _read_array(_reduce_depth(values, name))
        if isinstance(clear := image.info.get("transparency"), int):  # a PNG's one invisible grey
            rgba[values == clear, 3] = 0
        return rgba
    if image.mode in ("CMYK", "LAB"):  # which Pillow can't convert to RGBA directly, or not with alpha
        image = image.convert("RGB")
    return np.array(image.convert("RGBA"))


def _reduce_depth(values: NDArray[Any], name: str) -> Bytes:
    """Greyscale of 16 bits (which Pillow also holds in 32) to 8."""
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise Refusal(f"{name} has more than 16 bits per channel: save it with 8 or 16.")
    return np.rint(values / 257).astype(np.uint8)


def _too_large(what: str) -> Refusal:
    return Refusal(f"{what} has more than the {MAX_PIXELS // 10**6} million pixels that are read: scale it down.")


def _quote(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
