"""Axes for the WebUIs' X/Y/Z plot script."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..modes import MODE_NAMES, name_mode
from ..options import VIEW_COUNTS, LayerOptions
from ..refusal import Refusal

logger = logging.getLogger(__name__)

SCRIPT = "xyz_grid.py"
ATTRIBUTE = "layerdiffusion_axes"  # of `p`: options that are laid over the panel's


@dataclass(frozen=True)
class Axis:
    """One axis: the option that it varies, and how its values are read."""

    label: str
    option: str
    kind: type
    choices: Callable[[], list[str]] | None = None


AXES: tuple[Axis, ...] = (
    Axis("[LayerDiffusion] Layer mode", "mode", str, lambda: list(MODE_NAMES)),
    Axis("[LayerDiffusion] Weight", "weight", float),
    Axis("[LayerDiffusion] Start at", "start_at", float),
    Axis("[LayerDiffusion] Stop at", "stop_at", float),
    Axis("[LayerDiffusion] Decode quality", "views", int, lambda: [str(views) for views in VIEW_COUNTS]),
)


def add() -> None:
    """Add the axes to the loaded plot script, once; called by the WebUI before it builds its pages."""
    plot = find_script()
    if plot is None:
        logger.debug("This WebUI has no X/Y/Z plot script, so there are no axes for it")
        return
    present = {option.label for option in plot.axis_options}
    plot.axis_options.extend(_make(plot.AxisOption, axis) for axis in AXES if axis.label not in present)


def find_script() -> Any | None:
    """The module of the plot script among the WebUI's loaded scripts."""
    from modules import scripts

    return next((data.module for data in scripts.scripts_data if PurePath(data.path).name == SCRIPT), None)


def _make(option_class: Callable[..., Any], axis: Axis) -> Any:
    def apply(p: Any, value: Any, values: Sequence[Any]) -> None:
        earlier = getattr(p, ATTRIBUTE, None) or {}
        setattr(p, ATTRIBUTE, {**earlier, axis.option: read(axis, value)})  # the script copies `p`, but not deeply

    def confirm(p: Any, values: Sequence[Any]) -> None:
        for value in values:
            read(axis, value)

    return option_class(axis.label, axis.kind, apply, confirm=confirm, choices=axis.choices)


def read(axis: Axis, value: Any) -> Any:
    """An axis's value as the option takes it; RuntimeError, as that script expects, when it isn't allowed."""
    try:
        value = name_mode(value.strip()) if axis.option == "mode" else axis.kind(value)
        return LayerOptions.from_dict({axis.option: value}).to_dict()[axis.option]
    except (Refusal, ValueError) as error:
        raise RuntimeError(f"{axis.label}: {error}") from error
