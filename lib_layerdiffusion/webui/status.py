"""The status of panel and scene: checkpoint, weight files or the size of their download, how the last run ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from ..hosts import DetectedHost
from ..modes import FAMILIES, MODE_NAMES, MODES, Mode, any_row, find_mode, name_mode
from ..refusal import Refusal
from ..scene import SCENE_FIELDS, Scene, ScenePlan, plan_scene
from ..weights import WeightStore
from ..weights.header import describe_bytes
from .extension import Extension
from .labels import SCENE_LABELS, to_label

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
CHECKPOINT, MODE, PASSES, LAST_RUN = "Checkpoint", "Layer mode", "Passes", "Last run"
FILES, PRESENT, DOWNLOAD = "Weight files", "present", "Download before the first run"
NO_FILE, DAMAGED, OTHER_CHECKPOINT = "file missing", "file damaged", "not for this checkpoint"
UNNAMED = "foreground"  # one that a scene has before its first is named


def hint() -> str:
    """What is shown before anything is looked up, as HTML."""
    return _to_html([Line("note", "", HINT)], None)


def describe(extension: Extension, mode_name: str, is_img2img: bool = False) -> str:
    """The state of things for a mode, as HTML that also tells the page which modes can't run; never raises."""
    return _write(lambda: _to_html([*_describe(extension, mode_name, is_img2img)], find_unavailable(extension)))


def describe_scene(extension: Extension, options: Mapping[str, Any]) -> str:
    """The state of things for a scene, as HTML, and what else can't be made first; never raises.

    options: by name what the passes depend on; `foregrounds` as one text.
    """
    return _write(lambda: _to_html([*_describe_scene(extension, options)], {}))


def _write(describe: Callable[[], str]) -> str:
    try:
        return describe()
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
    return {} if host is None else _find_obstacles(MODE_NAMES, host, extension.store())


def _find_obstacles(names: Iterable[str], host: DetectedHost | None, store: WeightStore) -> dict[str, Obstacle]:
    found = {name: _find_obstacle(name, host, store) for name in names} if host is not None else {}
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
    line, host = _describe_checkpoint(extension)
    yield line
    if host is not None:
        obstacle = _find_obstacle(name, host, extension.store())
        rows = [mode for mode in rows if mode.family == host.family]
        if obstacle and (not rows or obstacle.short == OTHER_CHECKPOINT):
            rows = []
            yield Line("bad", MODE, obstacle.sentence)
    for mode in rows:
        prefix = f"{FAMILIES[mode.family]}: " if len(rows) > 1 else ""
        yield from _describe_files(extension.store(), _list_files(mode, is_img2img), prefix)
    yield from _describe_last_run(extension, [name])


def _describe_scene(extension: Extension, options: Mapping[str, Any]) -> Iterator[Line]:
    line, host = _describe_checkpoint(extension)
    yield line
    families = [*FAMILIES] if host is None else [host.family]
    modes: list[str] = []
    for family in families:
        prefix = f"{FAMILIES[family]}: " if len(families) > 1 else ""
        try:
            plan = _plan(options, family)
        except Refusal as refusal:
            yield Line("bad", "", f"{prefix}{refusal}")
            continue
        modes += plan.modes
        titles = (f"{number} {each.title}" for number, each in enumerate(plan.passes, 1))
        yield Line("good", PASSES, f"{prefix}{'; '.join(titles)}")
        obstacles = _find_obstacles(plan.modes, host, extension.store())
        unfit = {name: each for name, each in obstacles.items() if each.short == OTHER_CHECKPOINT}
        for obstacle in unfit.values():
            yield Line("bad", MODE, obstacle.sentence)
        rows = [find_mode(name, family) for name in plan.modes if name not in unfit]
        files = dict.fromkeys(file for mode in rows for file in _list_files(mode))
        yield from _describe_files(extension.store(), files, prefix)
    if host is not None:
        yield from _describe_others(options, host, extension.store())
    yield from _describe_last_run(extension, modes)


def _describe_others(options: Mapping[str, Any], host: DetectedHost, store: WeightStore) -> Iterator[Line]:
    """What else could be made first, but can't with what is there."""
    for first, label in SCENE_LABELS["first"].items():
        if first == options["first"]:
            continue
        try:
            plan = _plan({**options, "first": first, "controlnet_units": ""}, host.family)
        except Refusal:  # as for the layer whose image is given
            continue
        for obstacle in [*_find_obstacles(plan.modes, host, store).values()][:1]:
            heading = SCENE_FIELDS["first"].metadata["label"]
            yield Line("note", heading, f"{label}: {obstacle.short}", obstacle.sentence)


def _plan(options: Mapping[str, Any], family: str) -> ScenePlan:
    """The passes of a scene with these options, also before anything is named."""
    scene = Scene.from_dict({**options, "foregrounds": (options["foregrounds"] or "").strip() or UNNAMED})
    return plan_scene(scene, family, prompt="any")


def _describe_checkpoint(extension: Extension) -> tuple[Line, DetectedHost | None]:
    try:
        host = extension.current_host()
    except Refusal as refusal:  # such as for a checkpoint that isn't loaded yet, on whose family the files depend
        return Line("note", CHECKPOINT, str(refusal)), None
    return Line("good", CHECKPOINT, f"{FAMILIES.get(host.family, host.family)} ({host.name})"), host


def _describe_last_run(extension: Extension, modes: Iterable[str]) -> Iterator[Line]:
    last = extension.last_run
    if last is not None and last.mode in modes:  # what another mode came to says nothing about this one
        kind = "good" if last.outcome.startswith("ok") else "bad"
        yield Line(kind, LAST_RUN, f"{last.when:%H:%M}, {last.plan}: {last.outcome}")


def _describe_files(store: WeightStore, files: Iterable[str], prefix: str) -> Iterator[Line]:
    found = store.check(files)
    missing = [row for row in found if row.state == "missing"]
    if found and all(row.state == "found" for row in found):
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
