"""Which of the panel's images and prompts a layer mode uses; the others are hidden and have no effect."""

from __future__ import annotations

from ..modes import ROLES, any_row, name_mode

IMAGES: tuple[str, ...] = tuple(f"{role}_image" for role in ROLES)
PROMPTS: tuple[str, ...] = tuple(f"{role}_prompt" for role in ROLES)
OPTIONAL: tuple[str, ...] = (*IMAGES, *PROMPTS, "resize_mode")


def wanted(mode_name: str) -> frozenset[str]:
    """Names of the options among `OPTIONAL` that a mode (by name or alias) needs; Refusal if there is no such mode.

    A mode that makes a single image has the main prompt for it and needs no other.
    """
    mode = any_row(name_mode(mode_name))
    images = [f"{role}_image" for role in mode.inputs]
    prompts = [f"{role}_prompt" for role in mode.frames if len(mode.frames) > 1]
    return frozenset([*images, *prompts, *(["resize_mode"] if images else [])])
