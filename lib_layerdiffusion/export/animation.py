"""Animations with straight alpha: APNG, and WebP, which loses nothing but the colour of invisible pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import Blend, Disposal

from ..layers import Bytes, check_rgba
from ..options import LayerOptions
from ..refusal import Refusal
from . import whole_file

FPS = LayerOptions.animation_fps
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "png": {"format": "PNG", "default_image": False, "disposal": Disposal.OP_NONE, "blend": Blend.OP_SOURCE},
    "webp": {"format": "WEBP", "lossless": True},
}


def write(frames: Sequence[Bytes], path: str | os.PathLike[str], fps: float = FPS, loops: int = 0) -> None:
    """Write straight RGBA frames [H, W, 4] uint8 of one size, `fps` in a second, `loops` times (0: for ever).

    The name's ending decides: .png is APNG, .webp WebP. The file appears whole or not at all. Refusal when the frames
    differ in size, or it can't be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".webp"):
        raise Refusal(f"There is no animation {path.suffix or 'without an ending'}: name the file .png or .webp.")
    content = encode(frames, path.suffix[1:], fps, loops)
    with whole_file(path) as file:
        file.write(content)


def encode(frames: Sequence[Bytes], format: str = "png", fps: float = FPS, loops: int = 0) -> bytes:
    """What `write` puts into the file; format: png (APNG) or webp. Refusal when the frames differ in size."""
    if not frames:
        raise Refusal("There is no image to animate: give two or more.")
    for number, frame in enumerate(frames, start=1):
        check_rgba(frame, f"Image {number}")
        if frame.shape != frames[0].shape:
            raise Refusal(
                f"Image {number} is {frame.shape[1]}x{frame.shape[0]} and the first {frames[0].shape[1]}x"
                f"{frames[0].shape[0]}: an animation needs one size."
            )
    first, *rest = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, save_all=True, append_images=rest, duration=1000 / fps, loop=loops, **SETTINGS[format])
    return buffer.getvalue()
