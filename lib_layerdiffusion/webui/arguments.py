"""The arguments that a WebUI hands to the script's hooks: the page's values in order, or what an API client sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..options import FIELDS, OUTPUTS, POSITIONAL, LayerOptions
from .inputs import OPTIONAL, wanted
from .labels import from_label

OUTPUT_PREFIX = "outputs_"
OUTPUT_BOXES: tuple[str, ...] = tuple(OUTPUT_PREFIX + name for name in OUTPUTS)
# The page begins like the reference extension's positional list, so that its API clients' lists arrive where they
# should. Its batch size counts sets, so it has no widget for that, and every output has a box of its own. `pasted` is
# hidden: an infotext has set the others.
PAGE_ORDER: tuple[str, ...] = (
    *POSITIONAL,
    *(name for name in FIELDS if name not in (*POSITIONAL, "outputs", "batch_counts")),
    *OUTPUT_BOXES,
    "pasted",
)


def read_options(args: Sequence[Any], from_api: bool, changes: Mapping[str, Any] | None = None) -> LayerOptions:
    """Options from a hook's arguments; Refusal when a value isn't allowed.

    A WebUI lays what an API client sent over the page's default values, so a short list is complete here. What the
    mode and the outputs don't use has no effect. `changes` replace single values, as an axis of X/Y/Z does.
    """
    changes = dict(changes or {})
    if args and isinstance(args[0], Mapping):
        sent = LayerOptions.from_dict(args[0])  # all of it is checked, also what is changed
        return LayerOptions.from_dict(sent.to_dict() | changes)
    values = {name: from_label(name, value) for name, value in zip(PAGE_ORDER, args, strict=False)}
    boxes = {name: values.pop(OUTPUT_PREFIX + name, None) for name in OUTPUTS}
    if values.pop("pasted", False) or not from_api:  # an API client's infotext sets what the page would
        if any(ticked is not None for ticked in boxes.values()):
            values["outputs"] = [name for name, ticked in boxes.items() if ticked]
        values |= changes
        used = wanted(values.get("mode", LayerOptions.mode), values.get("outputs", LayerOptions.outputs))
        unused = [name for name in OPTIONAL if name not in used]
        return LayerOptions.from_dict(
            {name: value for name, value in values.items() if name in FIELDS and name not in unused}
        )
    listed = [values.pop(name, None) for name in POSITIONAL]
    return LayerOptions.from_dict(LayerOptions.from_positional(listed).to_dict() | values | changes)


def is_enabled(args: Sequence[Any]) -> bool:
    """Whether a request wants layers at all; one object does unless it says otherwise."""
    if not args:
        return False
    if isinstance(args[0], Mapping):
        return args[0].get("enabled") is not False
    return bool(args[0])
