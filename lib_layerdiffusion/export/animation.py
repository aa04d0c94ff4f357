"""Animations with straight alpha: APNG, and WebP, which loses nothing but the colour of invisible pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import Blend, Disposal

from ..layers import Bytes, check_rgba
from ..refusal import Refusal
from . import whole_file

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "png": {"format": "PNG", "default_image": False, "disposal": Disposal.OP_NONE, "blend": Blend.OP_SOURCE},
    "webp": {"format": "WEBP", "lossless": True},
}


def write(frames: Sequence[Bytes], path: str | os.PathLike[str], fps: float = 12, loops: int = 0) -> None:
    """Write straight RGBA frames [H, W, 4] uint8 of one size, `fps` in a second, `loops` times (0: for ever).

    The name's ending decides: .png is APNG, .webp WebP. The file appears whole or not at all. Refusal when the frames
    differ in size, or it can't be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".webp"):
        raise Refusal(f"There is no animation {path.suffix or 'without an ending'}: name the file .png or .webp.")
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
    with whole_file(path) as file:
        first.save(
            file, save_all=True, append_images=rest, duration=1000 / fps, loop=loops, **SETTINGS[path.suffix[1:]]
        )
