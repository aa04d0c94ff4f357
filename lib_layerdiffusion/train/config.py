"""Typed TOML configuration of the trainings; the resolved text is stored in the metadata of every file they write."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from ..refusal import Refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = TypeVar("Config")


def _convert(name: str, value: Any, wanted: Any) -> Any:
    """Check one value against its annotation; lists become tuples and tables become dataclasses."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return from_table(typing.cast(type, wanted), value, f"{name}.")  # pyright: ignore[reportUnknownArgumentType]
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(name, value, next(choice for choice in arguments if choice is not type(None)))
    if origin is tuple and isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(name, item, arguments[0]) for item in items)
        if len(items) == len(arguments):
            return tuple(_convert(name, item, kind) for item, kind in zip(items, arguments, strict=True))
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise Refusal(f"The configuration's {name} is {value!r}; it must be one of {', '.join(map(str, arguments))}.")
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    kind = getattr(wanted, "__name__", None) if origin is None else str(wanted)
    raise Refusal(f"The configuration's {name} is {value!r}; it must be of type {kind}.")


def from_table(cls: type[Config], table: dict[str, Any], prefix: str = "") -> Config:
    """Build a configuration dataclass from a TOML table; an unknown or ill-typed key is refused by name."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise Refusal(f"The configuration has no {prefix}{unknown[0]}; it knows {', '.join(sorted(hints))}.")
    return cls(**{key: _convert(prefix + key, value, hints[key]) for key, value in table.items()})


def read_config(cls: type[Config], path: Path | None, overrides: list[str]) -> Config:
    """Read a TOML file (None: all defaults) and lay `key=value` overrides over it, values in TOML notation."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        for override in overrides:
            key, _, value = override.partition("=")
            table[key.strip()] = tomllib.loads(f"value = {value}")["value"]
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"The configuration {path} can't be read ({error}); name an existing TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise Refusal(f"The configuration {path or overrides} is not valid TOML: {error}; mend that line.") from error
    return from_table(cls, table)


def check_stages(sizes: tuple[int, ...], size_steps: tuple[int, ...], batches: tuple[int, ...]) -> None:
    """Refuse lists that don't describe the same stages, and batches that don't come in pairs."""
    if not 0 < len(sizes) == len(size_steps) == len(batches):
        raise Refusal("sizes, size_steps and batches describe the same stages; give lists of equal length.")
    if odd := [batch for batch in batches if batch < 2 or batch % 2]:
        raise Refusal(f"batches holds {odd[0]}; half of a batch is drawn from other images, so give even numbers.")


def as_metadata(config: Any) -> dict[str, str]:
    """The resolved configuration as safetensors metadata: one JSON text under `training_config`."""
    return {"training_config": json.dumps(dataclasses.asdict(config), default=str, sort_keys=True)}
