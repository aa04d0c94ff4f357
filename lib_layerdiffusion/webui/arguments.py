"""The arguments that a WebUI hands to the script's hooks: the page's values in order, or what an API client sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..options import POSITIONAL, LayerOptions
from .inputs import OPTIONAL, wanted

# The page begins like the reference extension's positional list, so that its API clients' lists land where they should.
PAGE_ORDER: tuple[str, ...] = (*POSITIONAL, "start_at", "views", "outputs")
TITLE = "LayerDiffuse"  # what API clients call the script
PLACEHOLDERS = ("output_origin",)


def read_options(args: Sequence[Any], from_api: bool, changes: Mapping[str, Any] | None = None) -> LayerOptions:
    """Options from a hook's arguments; Refusal when a value isn't allowed.

    A WebUI lays what an API client sent over the page's values at rest, so a short list is complete here. What the page
    hides for the mode has no effect. `changes` replace single values, as an axis of X/Y/Z does.
    """
    changes = dict(changes or {})
    if args and isinstance(args[0], Mapping):
        return LayerOptions.from_dict({**args[0], **changes})
    values = dict(zip(PAGE_ORDER, args, strict=False))
    if not from_api:
        values |= changes
        shown = wanted(values.get("mode", LayerOptions.mode))
        values = {name: value for name, value in values.items() if name in shown or name not in OPTIONAL}
        return LayerOptions.from_dict(without_placeholders(values))
    listed = [values.pop(name, None) for name in POSITIONAL]
    values.pop("outputs", None)
    return LayerOptions.from_dict(LayerOptions.from_positional(listed).to_dict() | values | changes)


def without_placeholders(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are options."""
    return {name: value for name, value in values.items() if name not in PLACEHOLDERS}


def is_enabled(args: Sequence[Any]) -> bool:
    """Whether a request wants layers at all; one object does unless it says otherwise."""
    if not args:
        return False
    if isinstance(args[0], Mapping):
        return args[0].get("enabled") is not False
    return bool(args[0])
