"""Axes for the WebUIs' X/Y/Z plot script, and the sentence in a cell that is refused."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..modes import MODE_NAMES, name_mode
from ..options import VIEW_COUNTS, LayerOptions
from ..refusal import Refusal
from .replacing import Replaced, replace_method

logger = logging.getLogger(__name__)

SCRIPT = "xyz_grid.py"
ATTRIBUTE = "layerdiffusion_axes"  # of `p`: options that are laid over the panel's


TELLS = "layerdiffusion_tells"  # of the script's function: it is ours
PAPER, INK, MARGIN = (250, 240, 238), (150, 30, 20), 4


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


def add() -> list[Replaced]:
    """Add the axes to the loaded plot script and let it show refusals, once; before the WebUI builds its pages.

    Returns what was replaced in the script.
    """
    plot = find_script()
    if plot is None:
        logger.debug("This WebUI has no X/Y/Z plot script, so there are no axes for it")
        return []
    present = {option.label for option in plot.axis_options}
    plot.axis_options.extend(_make(plot.AxisOption, axis) for axis in AXES if axis.label not in present)
    if hasattr(plot.process_images, TELLS):
        return []
    return [replace_method(plot, "process_images", lambda original: _tell_refusals(original, plot.Processed))]


def _tell_refusals(process_images: Callable[[Any], Any], answer: Callable[..., Any]) -> Callable[[Any], Any]:
    """The script leaves a cell empty where `process_images` raises, so what it says becomes the cell's picture."""

    def make_or_tell(p: Any) -> Any:
        try:
            return process_images(p)
        except Refusal as refusal:
            return answer(p, [draw_sentence(str(refusal), (p.width, p.height))], p.seed, "")

    setattr(make_or_tell, TELLS, True)
    return make_or_tell


def draw_sentence(text: str, size: tuple[int, int]) -> Image.Image:
    """A picture (width, height) with a text on it, in letters that grow with the picture."""
    font = ImageFont.load_default()
    across, down = font.getbbox("M")[2], font.getbbox("Mg")[3] + 4
    scale = 1 + min(size) // 400
    width, height = (max(1, side // scale) for side in size)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    lines = textwrap.wrap(text, max(8, (width - 2 * MARGIN) // across))
    top = max(MARGIN, (height - down * len(lines)) // 2)
    for index, line in enumerate(lines):
        draw.text((MARGIN, top + down * index), line, fill=INK, font=font)
    return picture.resize(size, Image.Resampling.BICUBIC)


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
