"""The panel's status line: checkpoint, weight files or the size of their download, and how the last run ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Literal

from ..hosts import DetectedHost
from ..modes import FAMILIES, MODE_NAMES, MODES, Mode, any_row, name_mode
from ..refusal import Refusal
from ..weights import WeightStore
from ..weights.header import describe_bytes
from .extension import Extension
from .labels import to_label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """One statement; details are shown where the mouse rests on it."""

    kind: Literal["good", "note", "bad"]
    heading: str
    text: str
    details: str = ""


@dataclass(frozen=True)
class Obstacle:
    """Why a mode can't run with what is there."""

    short: str  # for a list of modes
    sentence: str


# Headings and fixed texts are in elements of their own, since WebUIs translate text by element.
HINT = "Checkpoint, weight files and the last run's outcome are shown here once the panel is open."
CHECKPOINT, MODE, LAST_RUN = "Checkpoint", "Layer mode", "Last run"
FILES, PRESENT, DOWNLOAD = "Weight files", "present", "Download before the first run"
NO_FILE, DAMAGED, OTHER_CHECKPOINT = "file missing", "file damaged", "not for this checkpoint"


def hint() -> str:
    """What is shown before anything is looked up, as HTML."""
    return _to_html([Line("note", "", HINT)], None)


def describe(extension: Extension, mode_name: str, is_img2img: bool = False) -> str:
    """The state of things for a mode, as HTML that also tells the page which modes can't run; never raises."""
    try:
        lines = list(_describe(extension, mode_name, is_img2img))
        return _to_html(lines, find_unavailable(extension))
    except Exception as error:  # a status line must not break the page
        logger.warning("The status can't be shown", exc_info=not isinstance(error, Refusal))
        return _to_html([Line("bad", "", str(error) or type(error).__name__)], {})


def find_host(extension: Extension) -> DetectedHost | None:
    """The adapter for the loaded checkpoint; None when there can be none."""
    try:
        return extension.current_host()
    except Exception as error:  # noqa: BLE001 - whatever a WebUI's model raises, pages only sort by the family
        logger.debug("The checkpoint can't be told: %s", error)
        return None


def find_family(extension: Extension) -> str | None:
    """The loaded checkpoint's family; None when that can't be told."""
    host = find_host(extension)
    return None if host is None else host.family


def find_unavailable(extension: Extension) -> dict[str, Obstacle]:
    """The modes, by name, that can't run with the loaded checkpoint and the files that are there or can be had."""
    host = find_host(extension)
    if host is None:
        return {}
    found = {name: _find_obstacle(name, host, extension.store()) for name in MODE_NAMES}
    return {name: obstacle for name, obstacle in found.items() if obstacle is not None}


def _find_obstacle(name: str, host: DetectedHost, store: WeightStore) -> Obstacle | None:
    rows = [mode for mode in MODES if mode.name == name]
    own = next((mode for mode in rows if mode.family == host.family), None)
    reason = host.why_not(name, store)
    if own is None:
        others = " or ".join(FAMILIES[mode.family] for mode in rows)
        return Obstacle(f"needs {others}", reason or f"{any_row(name).label} needs an {others} checkpoint.")
    if reason:
        return Obstacle(OTHER_CHECKPOINT, reason)
    can_download = not store.offline and store.download_to
    bad = [row for row in store.check(_list_files(own)) if row.state != "found"]
    bad = [row for row in bad if row.state == "damaged" or not can_download]
    if not bad:
        return None
    return Obstacle(NO_FILE if bad[0].state == "missing" else DAMAGED, bad[0].cure)


def _list_files(mode: Mode, is_img2img: bool = False) -> list[str]:
    return [name for name in (mode.file, mode.decoder, mode.encoder if is_img2img else None) if name]


def _describe(extension: Extension, mode_name: str, is_img2img: bool) -> Iterator[Line]:
    name = name_mode(mode_name)
    rows = [mode for mode in MODES if mode.name == name]
    try:
        host = extension.current_host()
    except Refusal as refusal:  # such as for a checkpoint that isn't loaded yet, on whose family the files depend
        yield Line("note", CHECKPOINT, str(refusal))
    else:
        yield Line("good", CHECKPOINT, f"{FAMILIES.get(host.family, host.family)} ({host.name})")
        obstacle = _find_obstacle(name, host, extension.store())
        rows = [mode for mode in rows if mode.family == host.family]
        if obstacle and (not rows or obstacle.short == OTHER_CHECKPOINT):
            rows = []
            yield Line("bad", MODE, obstacle.sentence)
    for mode in rows:
        yield from _describe_files(extension.store(), mode, is_img2img, FAMILIES[mode.family] if len(rows) > 1 else "")
    last = extension.last_run
    if last is not None and last.mode == name:  # what another mode came to says nothing about this one
        kind = "good" if last.outcome.startswith("ok") else "bad"
        yield Line(kind, LAST_RUN, f"{last.when:%H:%M}, {last.plan}: {last.outcome}")


def _describe_files(store: WeightStore, mode: Mode, is_img2img: bool, label: str) -> Iterator[Line]:
    found = store.check(_list_files(mode, is_img2img))
    prefix = f"{label}: " if label else ""
    missing = [row for row in found if row.state == "missing"]
    if all(row.state == "found" for row in found):
        yield Line("good", FILES, f"{prefix}{PRESENT}")
    elif missing and not store.offline and store.download_to:
        each = ", ".join(f"{row.name} {describe_bytes(row.size)}" for row in missing)
        yield Line("note", DOWNLOAD, f"{prefix}{describe_bytes(sum(row.size for row in missing))}", each)
        missing = []
    for row in found:
        if row.state == "damaged" or row in missing:
            yield Line("bad", FILES, f"{prefix}{row.cure}")


def _to_html(lines: list[Line], unavailable: dict[str, Obstacle] | None) -> str:
    """Statements, and what the page is to mark in its list of modes; None if that wasn't looked up."""
    data = ""
    if unavailable is not None:
        reasons = {to_label("mode", name): [each.short, each.sentence] for name, each in unavailable.items()}
        data = f' data-unavailable="{escape(json.dumps(reasons, ensure_ascii=False))}"'
    return f'<div class="layerdiffusion-status"{data}>{"".join(map(_row_to_html, lines))}</div>'


def _row_to_html(line: Line) -> str:
    details = f' title="{escape(line.details)}"' if line.details else ""
    heading = f"<b>{escape(line.heading)}</b> " if line.heading else ""
    return f'<div class="layerdiffusion-{line.kind}"{details}>{heading}<span>{escape(line.text)}</span></div>'
