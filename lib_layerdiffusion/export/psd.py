"""Photoshop documents with one layer of pixels for each layer of a stack, by nothing but numpy.

A writer of its own, since installing one would move packages that WebUIs pin. The format: "Adobe Photoshop File Formats
Specification", version 1 of the file, 8 bits, RGB. All numbers are big-endian.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from struct import pack
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..layers import Bytes, Layer, LayerStack, composite
from ..refusal import Refusal
from . import whole_file

LARGEST_SIDE = 30_000  # pixels, by the format's specification
LARGEST_SECTION = 2**31 - 1  # bytes; Photoshop opens documents of up to 2 GB

_RGB = 3  # colour mode
_PACK_BITS = pack(">H", 1)  # compression of a channel
_ALPHA_FIRST = ((-1, 3), (0, 0), (1, 1), (2, 2))  # a channel's name in the format, and its place in RGBA
_RUN = re.compile(rb"(.)\1{2,127}", re.DOTALL)  # shorter ones are cheaper as they are
_LONGEST = 128  # bytes of a packet without runs


def write(stack: LayerStack, path: str | os.PathLike[str]) -> None:
    """Write the stack; the file appears whole or not at all. Refusal when it is too large or can't be written."""
    parts = list(_build(stack))
    with whole_file(path) as file:
        file.writelines(parts)


def write_to(stack: LayerStack, file: BinaryIO) -> None:
    """Write the stack to an open file; Refusal when it is too large for the format."""
    file.writelines(_build(stack))


def _build(stack: LayerStack) -> Iterator[bytes]:
    largest = max(*stack.size, *(side for layer in stack.layers for side in layer.image.shape[:2]))
    if largest > LARGEST_SIDE:
        raise Refusal(
            f"A PSD has at most {LARGEST_SIDE} pixels on each side, not {largest}: scale the layers down, or take ORA."
        )
    width, height = stack.size
    yield pack(">4sH6xHIIHH", b"8BPS", 1, 4, height, width, 8, _RGB)
    yield pack(">II", 0, 0)  # neither a palette nor resources
    yield _section(_section(_list_layers(stack.layers), even=True) + pack(">I", 0))  # and no mask of all layers
    # Photoshop saves the merged picture on white, and readers that use its alpha take the white out again.
    merged = composite(stack)
    shortfall = (255 - merged[..., :3]).astype(np.uint16) * merged[..., 3:]
    merged[..., :3] = 255 - (shortfall + 127) // 255
    counts, rows = zip(*(_pack_channel(channel) for channel in _channels(merged)), strict=True)
    yield b"".join((_PACK_BITS, *counts, *rows))


def _list_layers(layers: Sequence[Layer]) -> bytes:
    """The records of all layers from the bottom, then their pixels."""
    records: list[bytes] = [pack(">h", -len(layers))]  # negative: the merged picture has alpha
    pixels: list[bytes] = []
    for layer in layers:
        channels = list(_channels(layer.image))
        packed = [b"".join((_PACK_BITS, *_pack_channel(channels[place]))) for _, place in _ALPHA_FIRST]
        x, y = layer.offset
        height, width = layer.image.shape[:2]
        records.append(pack(">4iH", y, x, y + height, x + width, len(packed)))
        records += (pack(">hI", name, len(data)) for (name, _), data in zip(_ALPHA_FIRST, packed, strict=True))
        records += (pack(">4s4sBBBx", b"8BIM", b"norm", 255, 0, 8), _section(_describe(layer.name)))
        pixels += packed
    return b"".join(records + pixels)


def _describe(name: str) -> bytes:
    """What follows a layer's record: no mask, no blending ranges, and its name, once in ASCII and once in Unicode."""
    short = name.encode("ascii", "replace")[:31]
    pascal = pack("B", len(short)) + short
    pascal += bytes(-len(pascal) % 4)
    text = name.encode("utf-16-be", "replace")
    unicode_name = pack(">I", len(text) // 2) + text
    unicode_name += bytes(-len(unicode_name) % 4)
    return pack(">II", 0, 0) + pascal + b"8BIMluni" + _section(unicode_name)


def _section(content: bytes, even: bool = False) -> bytes:
    """Content after its length."""
    if len(content) > LARGEST_SECTION:
        raise Refusal("A PSD holds at most 2 GB: scale the layers down, or take ORA.")
    content += bytes(len(content) % 2 if even else 0)
    return pack(">I", len(content)) + content


def _channels(image: Bytes) -> Iterator[NDArray[np.uint8]]:
    """The four channels [H, W] of an image [H, W, 4]."""
    return (np.ascontiguousarray(image[..., index]) for index in range(4))


def _pack_channel(channel: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """The lengths of a channel's rows, packed, and those rows."""
    rows = [_pack_row(row.tobytes()) for row in channel]
    return pack(f">{len(rows)}H", *map(len, rows)), b"".join(rows)


def _pack_row(row: bytes) -> bytes:
    """PackBits: 257 - n and a byte for n equal ones, n - 1 and n bytes for others."""
    packed = bytearray()
    done = 0
    for run in _RUN.finditer(row):
        _add_others(packed, row[done : run.start()])
        packed += bytes((257 - len(run[0]), run[0][0]))
        done = run.end()
    _add_others(packed, row[done:])
    return bytes(packed)


def _add_others(packed: bytearray, others: bytes) -> None:
    for start in range(0, len(others), _LONGEST):
        part = others[start : start + _LONGEST]
        packed.append(len(part) - 1)
        packed += part
