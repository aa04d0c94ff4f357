"""Reads a user's image of whatever kind as straight sRGB bytes with alpha, or says in one sentence why it can't."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms, ImageOps, UnidentifiedImageError

from .options import MAX_PIXELS
from .refusal import Refusal, using_path

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow hands others, such as EPS, to programs that run them
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # by which folders are searched for them
MAX_SIDE = 2**15  # of pixels; a thinner image would be enlarged to far more than it holds
# What Pillow's readers raise; TypeError is a TIFF page without dimensions.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


def read_image(image: str | os.PathLike[str] | PIL.Image.Image | NDArray[Any]) -> Bytes:
    """Straight RGBA [H, W, 4] uint8 from a path, a Pillow image or an array [H, W], [H, W, 3] or [H, W, 4] of uint8.

    Files are of FORMATS. Palettes, 16 bits, CMYK and greyscale are converted, a colour profile is converted to sRGB, a
    camera's rotation is applied, and of an animation the first frame is taken. Refusal names the file, what is wrong
    with it, and the cure.
    """
    match image:
        case np.ndarray():
            return _read_array(image)
        case PIL.Image.Image():
            check_size(image.size, "The image", MAX_PIXELS)
            try:
                return _convert(image, "The image")
            except DAMAGED as error:
                raise Refusal(f"The image can't be read ({_quote(error)}): open it again.") from error
        case _:
            return _read_file(Path(image), _convert)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image file as it lies, without decoding it; Refusal as of `read_image`."""
    return _read_file(Path(path), lambda image, _: image.size)


def is_animated(path: str | os.PathLike[str]) -> bool:
    """Whether an image file has several frames; False where it can't be read."""
    try:
        return _read_file(Path(path), lambda image, _: _has_more_frames(image))
    except Refusal:
        return False


def read_content(content: bytes, name: str) -> Bytes:
    """Straight RGBA [H, W, 4] uint8 of an image file's content, as `read_image` has it; `name` is for the Refusal."""
    cure = "save it again as PNG, JPEG or WebP"
    with _refusing(name, cure), open_image(io.BytesIO(content), name, cure) as image:
        return _convert(image, name)


def open_image(file: IO[bytes] | Path, name: str, cure: str, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """An image of which only the header has been read, to refuse other formats than FORMATS and too large ones."""
    with _refusing(name, cure), warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # the size is checked below
        image = PIL.Image.open(file, formats=FORMATS)
    try:
        check_size(image.size, name, max_pixels)
    except Refusal:
        image.close()
        raise
    return image


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Refusal when an image of `size` (width, height) has more pixels, or a longer side, than are read."""
    width, height = size
    if width * height > max_pixels:
        raise Refusal(f"{name} has {width * height} pixels, more than the {max_pixels} that are read: scale it down.")
    if max(size) > MAX_SIDE:
        raise Refusal(
            f"{name} is {width}x{height}, and sides of up to {MAX_SIDE} pixels are read: scale it down or cut it up."
        )


def has_transparency(image: PIL.Image.Image) -> bool:
    """Whether an image has an alpha channel, a transparent colour or transparent entries in its palette."""
    return "A" in image.getbands() or "transparency" in image.info


def is_opaque(image: PIL.Image.Image) -> bool:
    """Whether nothing shines through, also where there is an alpha channel, as Forge's grids have one."""
    return not has_transparency(image) or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)


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


def _read_file(path: Path, read: Callable[[PIL.Image.Image, str], Any]) -> Any:
    cure = "save or download it again"
    with using_path(path):
        if path.is_dir():
            raise Refusal(f"{path} is a folder, not an image: name an image file in it.")
        if path.exists() and not path.is_file():
            raise Refusal(f"{path} is not an ordinary file: name a PNG, JPEG or WebP file.")
        if path.stat().st_size == 0:
            raise Refusal(f"{path} is an empty file: {cure}.")
        with _refusing(str(path), cure), open_image(path, str(path), cure) as image:
            return read(image, str(path))


@contextmanager
def _refusing(name: str, cure: str) -> Iterator[None]:
    """Turn what Pillow raises on a bad file into a Refusal."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except UnidentifiedImageError:
        raise Refusal(f"{name} is not an image that can be read: convert it to PNG, JPEG or WebP.") from None
    except PIL.Image.DecompressionBombError:
        raise Refusal(f"{name} has more than the {MAX_PIXELS} pixels that are read: scale it down.") from None
    except DAMAGED as error:
        raise Refusal(f"{name} is damaged or cut off ({_quote(error)}): {cure}.") from error


def _convert(image: PIL.Image.Image, name: str) -> Bytes:
    if _has_more_frames(image):
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
    image = _convert_profile(image, name)
    if image.mode in ("CMYK", "LAB"):  # which Pillow can't convert to RGBA directly, or not with alpha
        image = image.convert("RGB")
    return np.array(image.convert("RGBA"))


def _has_more_frames(image: PIL.Image.Image) -> bool:
    """Whether a frame follows; counting all of them, as `n_frames` does, can take minutes."""
    frame = image.tell()
    try:
        image.seek(frame + 1)
    except DAMAGED:
        return False
    image.seek(frame)
    return True


def _convert_profile(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """An image of 8 bits with its colours in sRGB; the same one if it has no colour profile of its own."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):  # a palette, or alpha in one way or another
        image = image.convert("LA" if image.mode == "LA" else "RGBA" if has_transparency(image) else "RGB")
    colour = image.convert("L" if image.mode == "LA" else "RGB") if "A" in image.getbands() else image
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        logger.warning("The colour profile of %s can't be used (%s); it is taken as sRGB", name, _quote(error))
        return image
    if converted is None:  # only of a conversion in place
        return image
    if "A" in image.getbands():
        converted.putalpha(image.getchannel("A"))
    elif "transparency" in image.info:  # one colour of an image without alpha: it has to be told before the conversion
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def _reduce_depth(values: NDArray[Any], name: str) -> Bytes:
    """Greyscale of 16 bits (which Pillow also holds in 32) to 8."""
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise Refusal(f"{name} has more than 16 bits per channel: save it with 8 or 16.")
    return np.rint(values / 257).astype(np.uint8)


def _quote(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
