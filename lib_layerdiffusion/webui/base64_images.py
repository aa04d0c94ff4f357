"""Reads the images that come in by page or API: encoded texts, Pillow images, arrays, and what editors wrap them in."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..image_file import DAMAGED, check_size, open_image, read_image
from ..options import MAX_PIXELS
from ..refusal import Refusal

Pixels = NDArray[np.uint8]
Opened = PIL.Image.Image | NDArray[Any]  # known to be small enough; not yet decoded if it was encoded

MAX_CHARACTERS = 2**28  # of an encoded text
WRAPPED = ("image", "composite", "background")  # where the editors of the two gradio generations put the picture
CURE = "send a PNG, JPEG or WebP in base64, with or without data:image/...;base64, before it"


def read_input_image(value: Any, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Straight RGBA uint8 [H, W, 4] from an array, a Pillow image, a base64 text, a data URL or an editor's object.

    A text is never taken for a path, so no client can read the server's files. Refusal names the argument and the cure.
    """
    return load_input_image(open_input_image(value, name, max_pixels), name)


def open_input_image(value: Any, name: str, max_pixels: int = MAX_PIXELS) -> Opened:
    """What `load_input_image` reads; of an encoded image only the header is read, to refuse one that is too large."""
    match value:
        case str():
            return _open(value, name, max_pixels)
        case Mapping():
            inner = next((value[key] for key in WRAPPED if value.get(key) is not None), None)
            if inner is None or isinstance(inner, Mapping):
                raise Refusal(f"{name} is an object without an image: {CURE}.")
            return open_input_image(inner, name, max_pixels)
        case np.ndarray() | PIL.Image.Image():
            check_size(_size(value), name, max_pixels)
            return value
        case None:
            raise Refusal(f"{name} is missing: {CURE}.")
        case _:
            raise Refusal(f"{name} can't be a {type(value).__name__}: {CURE}.")


def load_input_image(opened: Opened, name: str) -> Pixels:
    """Straight RGBA uint8 [H, W, 4] of what `open_input_image` gave."""
    if isinstance(opened, PIL.Image.Image):
        try:
            opened.load()
        except DAMAGED:
            raise Refusal(f"{name} is damaged or cut off: {CURE}.") from None
    return read_image(opened)


def count_pixels(opened: Opened) -> int:
    """Pixels of what `open_input_image` gave."""
    return math.prod(_size(opened))


def decode_base64(text: str) -> bytes:
    """Bytes of a base64 text, with or without the head of a data URL and line breaks; ValueError otherwise."""
    encoded = text.partition(",")[2] if text[:5].lower() == "data:" else text
    return base64.b64decode("".join(encoded.split()), validate=True)


def _open(text: str, name: str, max_pixels: int) -> PIL.Image.Image:
    if len(text) > MAX_CHARACTERS:
        raise Refusal(
            f"{name} has {len(text)} characters, more than the {MAX_CHARACTERS} that are read: scale it down."
        )
    try:
        content = decode_base64(text)
    except ValueError:
        raise Refusal(f"{name} is not base64 ({text[:20]!r}...): {CURE}.") from None
    return open_image(io.BytesIO(content), name, CURE, max_pixels)


def _size(opened: Opened) -> tuple[int, int]:
    """Width and height."""
    if isinstance(opened, PIL.Image.Image):
        return opened.size
    height, width = np.atleast_2d(opened).shape[:2]  # fewer dimensions are refused when it is read
    return width, height
