"""Whose code it is that changes a model, for sentences that name what to switch off."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

INSTALLED = ("extensions",)  # a WebUI's folder for those that users install
FOLDERS = (*INSTALLED, "extensions-builtin")


def name_extensions(functions: Iterable[Any]) -> str:
    """The folders of the extensions that these functions come from, as the subject of a sentence; "" for none."""
    names = dict.fromkeys(name for each in functions if (name := find_extension(each)))
    return " and ".join(names)


def find_extension(function: Any, folders: Sequence[str] = FOLDERS) -> str | None:
    """The extension that a function comes from, by its place in one of the folders; None when it isn't one's."""
    for each in _peel(function):
        code = getattr(each, "__code__", None) or getattr(type(each).__call__, "__code__", None)
        *parts, _file = PurePath(getattr(code, "co_filename", "")).parts or ("",)
        for place, name in itertools.pairwise(parts):
            if place in folders:
                return name
    return None


def list_attention_patches(options: Mapping[str, Any] | None) -> list[Any]:
    """The functions by which a Forge model's `transformer_options` change attention."""
    parts = [part for name in ("patches", "patches_replace") for part in (options or {}).get(name, {}).items()]
    return [function for name, part in parts if "attn" in name for function in _flatten(part)]


def _peel(function: Any) -> Iterator[Any]:
    """A function, and those that it wraps: an extension's own may be inside a library's decorator, or around one."""
    while function is not None:
        yield function
        function = function.func if isinstance(function, functools.partial) else getattr(function, "__wrapped__", None)


def _flatten(part: Any) -> Iterator[Any]:
    match part:
        case Mapping():
            for each in part.values():
                yield from _flatten(each)
        case Sequence():
            for each in part:
                yield from _flatten(each)
        case _:
            yield part
