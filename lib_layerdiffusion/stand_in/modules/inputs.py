"""Numbers of a request, from the page as well as from API clients, read as WebUIs read them and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fastapi import HTTPException

from .processing import StableDiffusionProcessing

# What makes a picture on any machine, and what no machine has the memory for.
LIMITS: Mapping[str, tuple[float, float]] = {
    "width": (8, 8192),
    "height": (8, 8192),
    "steps": (1, 1000),
    "batch_size": (1, 64),
    "n_iter": (1, 1000),
    "cfg_scale": (0, 100),
    "denoising_strength": (0, 1),
    "subseed_strength": (0, 1),
    "seed": (-1, 2**64 - 1),
    "subseed": (-1, 2**64 - 1),
    "hr_scale": (0.1, 8),
    "hr_second_pass_steps": (0, 1000),
    "mask_blur": (0, 512),
    "inpaint_full_res_padding": (0, 4096),
}
WORDS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
KINDS = {str: "a text", list: "a list", dict: "an object"}


def read_inputs(kind: type[StableDiffusionProcessing], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the types of a request's fields: "512" and 512.0 are 512; HTTPException 422 for what isn't one."""
    hints = get_type_hints(kind) | {"seed": int, "subseed": int}
    return {name: _read(name, hints[name], value) if name in hints else value for name, value in values.items()}


def _read(name: str, hint: Any, value: Any) -> Any:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(each) or each for each in members if each is not type(None)]
    if value is None or len(kinds) != 1:
        return value
    match kinds[0]:
        case numeric if numeric in (int, float):
            return read_number(name, value, whole=numeric is int)
        case flag if flag is bool:
            return _read_flag(name, value)
        case other if other in KINDS and not isinstance(value, other):
            raise refuse(f"{name} must be {KINDS[other]}, not {_show(value)}.")
        case _:
            return value


def read_number(name: str, value: Any, whole: bool, limits: tuple[float, float] | None = None) -> int | float:
    """A number, or a text that is one, within the limits for its name; HTTPException 422 otherwise."""
    low, high = limits or LIMITS.get(name, (-math.inf, math.inf))
    wanted = f"{name} must be a {'whole ' if whole else ''}number"
    if limits or name in LIMITS:
        wanted += f" from {low:g} to {high:g}"
    try:
        number = int(value) if isinstance(value, int) or (whole and isinstance(value, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise refuse(f"{wanted}, not {_show(value)}.") from None
    if not low <= number <= high or not math.isfinite(number) or (whole and number != int(number)):
        raise refuse(f"{wanted}, not {_show(value)}.")
    return int(number) if whole else float(number)


def _read_flag(name: str, value: Any) -> bool:
    known = value if isinstance(value, bool) else WORDS.get(str(value).casefold())
    if known is None:
        raise refuse(f"{name} must be true or false, not {_show(value)}.")
    return known


def refuse(sentence: str) -> HTTPException:
    """What a route answers with 422, and the page shows."""
    return HTTPException(status_code=422, detail=sentence)


def _show(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
