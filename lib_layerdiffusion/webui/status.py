"""The panel's status line: checkpoint, weight files or the size of their download, and how the last run ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from html import escape

from ..hosts import DetectedHost
from ..modes import FAMILIES, MODES, Mode, name_mode
from ..refusal import Refusal
from ..weights import WeightStore
from ..weights.header import describe_bytes
from .extension import Extension

logger = logging.getLogger(__name__)

Line = tuple[str, str, str]  # class, heading, text

# Headings and fixed texts are in elements of their own, since WebUIs translate text by element.
HINT = "Checkpoint, weight files and the last run's outcome are shown here once the panel is open."
CHECKPOINT, MODE, LAST_RUN = "Checkpoint", "Layer mode", "Last run"
FILES, PRESENT, DOWNLOAD = "Weight files", "present", "Download before the first run"


def hint() -> str:
    """What is shown before anything is looked up, as HTML."""
    return _to_html([("note", "", HINT)])


def describe(extension: Extension, mode_name: str, is_img2img: bool = False) -> str:
    """The state of things for a mode, as HTML; never raises."""
    try:
        return _to_html(list(_describe(extension, mode_name, is_img2img)))
    except Exception as error:  # a status line must not break the page
        logger.warning("The status can't be shown", exc_info=not isinstance(error, Refusal))
        return _to_html([("bad", "", str(error) or type(error).__name__)])


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


def _describe(extension: Extension, mode_name: str, is_img2img: bool) -> Iterator[Line]:
    name = name_mode(mode_name)
    rows = [mode for mode in MODES if mode.name == name]
    try:
        host = extension.current_host()
    except Refusal as refusal:  # such as for a checkpoint that isn't loaded yet, on whose family the files depend
        yield "note", CHECKPOINT, str(refusal)
    else:
        yield "good", CHECKPOINT, f"{FAMILIES.get(host.family, host.family)} ({host.name})"
        others = " or ".join(FAMILIES[mode.family] for mode in rows)
        label = rows[0].label
        rows = [mode for mode in rows if mode.family == host.family]
        if (reason := host.why_not(name, extension.store())) or not rows:
            rows = []
            yield "bad", MODE, reason or f"{label} needs an {others} checkpoint."
    for mode in rows:
        yield from _describe_files(extension.store(), mode, is_img2img, FAMILIES[mode.family] if len(rows) > 1 else "")
    yield from _describe_last_run(extension)


def _describe_files(store: WeightStore, mode: Mode, is_img2img: bool, label: str) -> Iterator[Line]:
    names = [name for name in (mode.file, mode.decoder, mode.encoder if is_img2img else None) if name]
    found = store.check(names)
    prefix = f"{label}: " if label else ""
    missing = [row for row in found if row.state == "missing"]
    if all(row.state == "found" for row in found):
        yield "good", FILES, f"{prefix}{PRESENT}"
    elif missing and not store.offline and store.download_to:
        each = ", ".join(f"{row.name} {describe_bytes(row.size)}" for row in missing)
        yield "note", DOWNLOAD, f"{prefix}{describe_bytes(sum(row.size for row in missing))} ({each})"
        missing = []
    for row in found:
        if row.state == "damaged" or row in missing:
            yield "bad", FILES, f"{prefix}{row.cure}"


def _describe_last_run(extension: Extension) -> Iterator[Line]:
    last = extension.last_run
    if last is not None:
        kind = "good" if last.outcome.startswith("ok") else "bad"
        yield kind, LAST_RUN, f"{last.when:%H:%M}, {last.plan}: {last.outcome}"


def _to_html(lines: list[Line]) -> str:
    rows = (
        f'<div class="layerdiffusion-{kind}">{f"<b>{escape(heading)}</b> " if heading else ""}'
        f"<span>{escape(text)}</span></div>"
        for kind, heading, text in lines
    )
    return f'<div class="layerdiffusion-status">{"".join(rows)}</div>'
