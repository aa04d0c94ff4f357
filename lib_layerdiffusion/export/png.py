"""Write layers as one straight-alpha PNG with the text by which WebUIs find the settings again."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..layers import Bytes, LayerStack, composite
from ..refusal import Refusal
from . import whole_file

TEXT_KEY = "parameters"  # where WebUIs write and read their settings


def write(
    image: LayerStack | Bytes, path: str | os.PathLike[str], infotext: str | None = None, software: str | None = None
) -> None:
    """Write a stack (composed, over nothing) or an image [H, W, 3 or 4] uint8; the file appears whole or not at all.

    infotext: the text chunk `parameters`; None takes the stack's, and what UTF-8 can't encode becomes "?".
    software: the text chunk of that name. Refusal when the file can't be written.
    """
    if isinstance(image, LayerStack):
        infotext = image.infotext if infotext is None else infotext
        image = composite(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
        raise Refusal(f"A PNG takes uint8 [H, W, 3 or 4], not {image.dtype} {list(image.shape)}: convert the image.")
    with whole_file(path) as file:
        file.write(encode(image, infotext, software))


def encode(image: Bytes, infotext: str | None = None, software: str | None = None) -> bytes:
    """The PNG of an image [H, W, 3 or 4] uint8; text chunks: `parameters` is the infotext, `Software` what made it."""
    text = PngInfo()
    if software:
        text.add_text("Software", software)
    if infotext:  # a shell can pass lone surrogates, which no encoding takes
        text.add_text(TEXT_KEY, infotext.encode("utf-8", "replace").decode("utf-8"))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
