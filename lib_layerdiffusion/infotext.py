"""The options in an image's infotext and back, through the WebUIs' own way of writing and parsing it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from ..modes import Role
from ..options import FIELDS, LayerOptions
from ..refusal import Refusal
from .arguments import PAGE_ORDER, PLACEHOLDERS

PREFIX = "layerdiffusion_"
PAGE_OPTIONS: tuple[str, ...] = tuple(name for name in PAGE_ORDER if name not in PLACEHOLDERS)

# The reference extension's names where they differ from ours.
_REFERENCE = {
    "mode": "method",
    "stop_at": "ending_step",
    "foreground_image": "fg_image",
    "background_image": "bg_image",
    "foreground_prompt": "fg_additional_prompt",
    "background_prompt": "bg_additional_prompt",
    "blend_prompt": "blend_additional_prompt",
}

# Text that the WebUIs' parser gives back changed: they cut what surrounds it, take a size apart, read what looks like
# quoted, and lose control characters in some file formats. It is written as a JSON list with one text.
_CHANGES = re.compile(r'\A\s|\s\Z|\A"|\A\["|\A\d+x\d+\Z|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def describe(options: LayerOptions) -> dict[str, str]:
    """What to write for the options: the mode and what differs from its default; nothing when they are disabled.

    Images aren't in an infotext, only that one was given.
    """
    if not options.enabled:
        return {}
    written: dict[str, str] = {}
    for name in PAGE_OPTIONS:
        value, about = getattr(options, name), FIELDS[name]
        if name == "mode" or (name != "enabled" and not _is_default(about, value)):
            written[PREFIX + name] = _write(about, value)
    return written


def read(params: Mapping[str, str]) -> dict[str, Any]:
    """Each option of the page by name, from a parsed infotext: absent or unreadable ones are at their default.

    Images are None; `gives_image` tells whether one was given. The reference extension's names are read, too.
    """
    values = {name: _read(params, name) for name in PAGE_OPTIONS}
    return values | {"enabled": _is_enabled(params)}


def gives_image(params: Mapping[str, str], role: Role) -> bool:
    """Whether the image was made from a given one in that role."""
    return _find(params, f"{role}_image") == "True"


def _is_default(about: Field[Any], value: Any) -> bool:
    return value is None if about.metadata["kind"] == "image" else value == about.default


def _write(about: Field[Any], value: Any) -> str:
    match about.metadata["kind"]:
        case "image":
            return "True"
        case "choices":
            return "+".join(value)
        case "text":
            # A WebUI that finds name and value equal writes the name only.
            return json.dumps([value]) if _CHANGES.search(value) or value == PREFIX + about.name else value
        case "number":
            short = f"{value:g}"
            return short if float(short) == value else repr(value)
        case _:
            return str(value)


def _is_enabled(params: Mapping[str, str]) -> bool:
    """Layers were made if their mode is named, unless it is said otherwise (the text "False" is no truth)."""
    mode = _find(params, "mode")
    said = _find(params, "enabled")
    return mode is not None and _parse(FIELDS["mode"], mode) is not None and said in (None, "True")


def _read(params: Mapping[str, str], name: str) -> Any:
    about, text = FIELDS[name], _find(params, name)
    value = None if text is None else _parse(about, text)
    return value if value is not None else list(about.default) if isinstance(about.default, tuple) else about.default


def _find(params: Mapping[str, str], name: str) -> str | None:
    names = (name, _REFERENCE.get(name, name))
    return next((params[PREFIX + each] for each in names if PREFIX + each in params), None)


def _parse(about: Field[Any], text: str) -> Any:
    """The option's value from its text; None if it can't be read."""
    try:
        match about.metadata["kind"]:
            case "number":
                value: Any = float(text)
            case "choice":
                value = int(text) if about.name == "views" else text
            case "choices":
                value = text.split("+")
            case "text":
                value = json.loads(text)[0] if text.startswith('["') else text
            case _:  # the switch is decided by all, images aren't in a text
                return None
        return LayerOptions.from_dict({about.name: value}).to_dict()[about.name]
    except (Refusal, ValueError):
        return None
