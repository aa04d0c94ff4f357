"""A zip with one PNG per layer, each of the whole canvas, numbered from the bottom."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

from ..layers import LayerStack, spread
from ..options import MAX_PIXELS
from ..refusal import Refusal
from . import png, whole_file
from .names import slug

EARLIEST = (1980, 1, 1, 0, 0, 0)  # date that a zip can hold, always this one: the same layers make the same file


def write(stack: LayerStack, path: str | os.PathLike[str]) -> None:
    """Write the stack; the file appears whole or not at all. Refusal when it can't be written."""
    with whole_file(path) as file:
        write_to(stack, file)


def write_to(stack: LayerStack, file: BinaryIO) -> None:
    """Write the stack to an open file; what reaches beyond the canvas is cut off. Refusal when it is too much."""
    count, (width, height) = len(stack.layers), stack.size
    if count * width * height > MAX_PIXELS:
        raise Refusal(
            f"A zip holds each layer on the whole canvas, and {count} of {width}x{height} have more than the "
            f"{MAX_PIXELS} pixels that are written: take ORA or PSD, or use smaller images or offsets."
        )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, layer in enumerate(stack.layers, start=1):
            entry = zipfile.ZipInfo(f"{number:02d}-{slug(layer.name)}.png", EARLIEST)
            archive.writestr(entry, png.encode(spread(layer, stack.size)))
