"""Photoshop documents, by psd-tools where that is installed."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from PIL import Image

from ..layers import LayerStack
from ..refusal import Refusal
from . import whole_file

LARGEST_SIDE = 30_000  # pixels, by the format's specification


def write(stack: LayerStack, path: str | os.PathLike[str]) -> None:
    """Write the stack; the file appears whole or not at all. Refusal without psd-tools, or when it can't be written."""
    document = _build(stack)
    with whole_file(path) as file:
        document.save(file)


def write_to(stack: LayerStack, file: BinaryIO) -> None:
    """Write the stack to an open file."""
    _build(stack).save(file)


def find_psd_tools() -> Any:
    """The package psd-tools; Refusal without it. To be called before long work whose result is to be a PSD."""
    try:
        import psd_tools
    except ImportError:
        raise Refusal(
            "A PSD needs the package psd-tools: pip install psd-tools into this Python environment, or take ORA."
        ) from None
    return psd_tools


def _build(stack: LayerStack) -> Any:
    psd_tools = find_psd_tools()
    largest = max(*stack.size, *(side for layer in stack.layers for side in layer.image.shape[:2]))
    if largest > LARGEST_SIDE:
        raise Refusal(
            f"A PSD has at most {LARGEST_SIDE} pixels on each side, not {largest}: scale the layers down, or take ORA."
        )
    document: Any = psd_tools.PSDImage.new("RGBA", stack.size)  # with "RGB", alpha would become a layer mask
    for layer in stack.layers:
        x, y = layer.offset
        made = document.create_pixel_layer(Image.fromarray(layer.image), name="layer", top=y, left=x)
        made.name = layer.name  # names in other scripts can only be set afterwards
    info = document._record.layer_and_mask_information.layer_info
    info.layer_count = -abs(info.layer_count)  # negative: the merged picture has alpha
    return document
