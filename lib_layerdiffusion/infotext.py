"""The options in the text that WebUIs write into an image: its keys, how they are written, and how they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from .options import FIELDS, LayerOptions, parse
from .refusal import Refusal

PREFIX = "layerdiffusion_"
# What the batch size of a request counted shows in no image.
OPTIONS: tuple[str, ...] = tuple(name for name in FIELDS if name != "batch_counts")
LAYER = f"{PREFIX}layer"  # which layer of its set an image is
NOTES = f"{PREFIX}notes"  # sentences about what came out otherwise than asked for; in a WebUI's answer only
PREVIEW = f"{PREFIX}preview"  # which preview an image is, or whether it is the job's sheet or animation
SHEETS = f"{PREFIX}sheets"  # the JSON of each sheet; in a WebUI's answer to API clients only

# The reference extension's names where they differ.
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
_CHANGES = re.compile(r'\A\s|\s\Z|\A"|\A\["|\A\d+x\d+\Z|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]')


def describe(options: LayerOptions) -> dict[str, str]:
    """What to write for the options: the mode and what differs from its default; nothing when they are disabled.

    Images aren't in an infotext, only that one was given.
    """
    if not options.enabled:
        return {}
    written: dict[str, str] = {}
    for name in OPTIONS:
        value, about = getattr(options, name), FIELDS[name]
        if name == "mode" or (name != "enabled" and not _is_default(about, value)):
            written[PREFIX + name] = _write(about, value)
    return written


def compose(prompt: str, negative_prompt: str, settings: Mapping[str, Any]) -> str:
    """A whole infotext as WebUIs write it: the prompts, then all settings in one line."""
    lines = [prompt, f"Negative prompt: {negative_prompt}" if negative_prompt else ""]
    return "\n".join([*filter(None, lines), ", ".join(f"{key}: {_quote(value)}" for key, value in settings.items())])


def mark_preview(text: str, preview: str) -> str:
    """The infotext of a preview, from that of the image that it shows."""
    return f"{text}, {PREVIEW}: {preview}"


def mark_layer(text: str, name: str) -> str:
    """The infotext of one layer, from that of the stack that it belongs to."""
    return f"{text}, {LAYER}: {_quote(name)}"


def read(params: Mapping[str, str]) -> dict[str, Any]:
    """Each option in `OPTIONS` by name, from a parsed infotext: absent or unreadable ones are at their default.

    Images are None; `gives_image` tells whether one was given. The reference extension's names are read, too.
    """
    values = {name: _read(params, name) for name in OPTIONS}
    return values | {"enabled": _is_enabled(params)}


def gives_image(params: Mapping[str, str], option: str) -> bool:
    """Whether an image was given for that option, such as "foreground_image"."""
    return _find(params, option) == "True"


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


def _quote(value: Any) -> str:
    """A value as it stands in an infotext: in quotes where it has what separates the entries."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _is_enabled(params: Mapping[str, str]) -> bool:
    """Layers were made if a known mode is named, unless the text says that they were disabled."""
    mode = _find(params, "mode")
    said = _find(params, "enabled")
    return mode is not None and _parse(FIELDS["mode"], mode) is not None and said in (None, "True")


def _read(params: Mapping[str, str], name: str) -> Any:
    about, text = FIELDS[name], _find(params, name)
    value = about.default if text is None else _parse(about, text)
    value = about.default if value is None else value
    return list(value) if isinstance(value, tuple) else value


def _find(params: Mapping[str, str], name: str) -> str | None:
    names = (name, _REFERENCE.get(name, name))
    return next((params[PREFIX + each] for each in names if PREFIX + each in params), None)


def _parse(about: Field[Any], text: str) -> Any:
    """The option's value from its text; None if it can't be read."""
    try:
        match about.metadata["kind"]:
            case "number" | "choice" | "choices":
                return parse(about.name, text)
            case "text":
                return parse(about.name, json.loads(text)[0] if text.startswith('["') else text)
            case "switch":
                return {"True": True, "False": False}.get(text)
            case _:  # images aren't in a text
                return None
    except (Refusal, ValueError):
        return None
