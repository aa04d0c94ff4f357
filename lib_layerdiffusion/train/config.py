"""Typed TOML configuration of the trainings; the resolved text is stored in the metadata of every file they write."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from ..refusal import Refusal, using_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = TypeVar("Config")

Count = Annotated[int, Field(gt=0)]
Many = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Workers = Annotated[int, Field(ge=0, le=256)]  # processes that draw ahead; 0: none, the training draws by itself
Side = Annotated[int, Field(gt=0, multiple_of=64)]  # pixels; the UNet halves the latent's side three times

strict = with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
"""Class decorator of every configuration dataclass: no unknown keys, no conversion between types, no NaN."""


def from_table(cls: type[Config], table: dict[str, Any]) -> Config:
    """Build a configuration dataclass from a TOML table; what doesn't fit is refused by name."""
    try:
        return TypeAdapter(cls).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise Refusal(f"The configuration has no {name}; it knows {', '.join(_list_keys(cls))}.") from error
        raise Refusal(f"The configuration's {name} is {repr(first['input'])[:100]}. {first['msg']}.") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(f"The configuration can't be read ({error}); write plain tables and values.") from error


def _list_keys(cls: Any) -> list[str]:
    """Names of a configuration's options, those of its tables with a dot."""
    keys: list[str] = []
    for option in dataclasses.fields(cls):
        inner: Any = option.default_factory
        nested = dataclasses.is_dataclass(inner)
        keys += [f"{option.name}.{key}" for key in _list_keys(inner)] if nested else [option.name]
    return sorted(keys)


def read_config(cls: type[Config], path: Path | None, overrides: list[str]) -> Config:
    """Read a TOML file (None: all defaults) and lay `key=value` overrides over it, values in TOML notation."""
    content = b""
    if path is not None:
        with using_path(path):
            if path.exists() and not path.is_file():
                raise Refusal(f"The configuration {path} is not an ordinary file; name a TOML file.")
            content = path.read_bytes()
    try:
        table = tomllib.loads(content.decode())
        for override in overrides:
            key, _, value = override.partition("=")
            table[key.strip()] = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        given = str(path or overrides)[:200]
        raise Refusal(f"The configuration {given} is not valid TOML: {error}; mend that line.") from error
    return from_table(cls, table)


def check_stages(sizes: tuple[int, ...], size_steps: tuple[int, ...], batches: tuple[int, ...]) -> None:
    """Refuse lists that don't describe the same stages, and batches that don't come in pairs."""
    if not 0 < len(sizes) == len(size_steps) == len(batches):
        raise Refusal("sizes, size_steps and batches describe the same stages; give lists of equal length.")
    if odd := [batch for batch in batches if batch < 2 or batch % 2]:
        raise Refusal(f"batches holds {odd[0]}; half of a batch is drawn from other images, so give even numbers.")


def find_stage(step: int, size_steps: tuple[int, ...], batches: tuple[int, ...]) -> tuple[int, int]:
    """The stage that a step belongs to, and how many images all steps before it have taken."""
    taken = 0
    for stage, (steps, batch) in enumerate(zip(size_steps, batches, strict=True)):
        if step < steps:
            return stage, taken + step * batch
        step, taken = step - steps, taken + steps * batch
    raise ValueError("the stages have fewer steps")


def as_metadata(config: Any) -> dict[str, str]:
    """The resolved configuration as safetensors metadata: one JSON text under `training_config`.

    Without `workers`, on which the result doesn't depend.
    """
    options = {name: value for name, value in dataclasses.asdict(config).items() if name != "workers"}
    return {"training_config": json.dumps(options, default=str, sort_keys=True)}
