"""Which of the panel's images and prompts a layer mode and its outputs use; the others have no effect."""

from __future__ import annotations

from collections.abc import Collection

from ..modes import ROLES, any_row, name_mode
from ..options import OUTPUTS

IMAGES: tuple[str, ...] = tuple(f"{role}_image" for role in ROLES)
PROMPTS: tuple[str, ...] = tuple(f"{role}_prompt" for role in ROLES)
OPTIONAL: tuple[str, ...] = (*IMAGES, *PROMPTS, "resize_mode", "preview_image")


def wanted(mode_name: str, outputs: Collection[str] = OUTPUTS) -> frozenset[str]:
    """Names of the options among `OPTIONAL` that a mode (by name or alias) needs; Refusal if there is no such mode.

    outputs: those that are asked for. A mode that makes a single image has the main prompt for it and needs no other.
    """
    mode = any_row(name_mode(mode_name))
    images = [f"{role}_image" for role in mode.inputs]
    prompts = [f"{role}_prompt" for role in mode.frames if len(mode.frames) > 1]
    if mode.transparent_frame is not None and "over_image" in outputs:
        images.append("preview_image")
    return frozenset([*images, *prompts, *(["resize_mode"] if images else [])])
