"""`generate --prompts`: the pictures that a table asks for, on several processes, each made once however often it runs.

What is finished stands in the destination's manifest, one line for each set of layers, written after its files.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..hosts.diffusers import layer_diffusion
from ..hosts.pipelines import load_pipeline
from ..hosts.samplers import set_sampler
from ..options import LayerOptions
from ..outputs import list_files
from ..refusal import Refusal
from ..weights import WeightStore
from .destination import Destination, Line, Parts
from .table import Job
from .workers import run_in_processes, run_on_ray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """What a process loads once."""

    path: Path
    folders: tuple[Path, ...]
    cache: Path
    offline: bool
    device: str
    sampler: str | None
    scheduler: str | None


class _Entry(NamedTuple):
    """What of a manifest's line decides whether its set is there."""

    name: str
    key: str
    files: Sequence[Line]


@dataclass(frozen=True)
class Work:
    """Everything that a command has to make, where, and by what."""

    jobs: Sequence[Job]
    model: Model
    out: Destination
    batch: int = 1  # sets that are sampled together
    workers: int = 1
    ray: str | None = None  # address of a cluster


def run(work: Work, report: Callable[[str], None]) -> None:
    """Make what isn't in the manifest yet; `report` is called with each file.

    Refusal when there are files of other settings under these names, or workers end again and again.
    """
    left = _find_missing(work)
    groups = list(_group(left, work.batch))
    began, made = time.monotonic(), 0
    bar = tqdm(total=len(left), unit="set", file=sys.stderr, disable=None)
    with work.out.recording() as record, bar, closing(_make_all(groups, work)) as finished:
        for lines in finished:
            if not made and not all(work.out.has(file["name"]) for line in lines for file in line["files"]):
                raise Refusal(
                    f"The workers don't write where this process finds it, {work.out.name('')}: name a folder that all "
                    "machines share, or an address such as s3://bucket/folder."
                )
            record(lines)
            for line in lines:
                for file in line["files"]:
                    report(work.out.name(file["name"]))
            made += len(lines)
            bar.update(len(lines))
    seconds = time.monotonic() - began
    there = len(work.jobs) - len(left)
    print(
        f"{made} sets in {seconds:.0f} s ({made / max(seconds, 1e-9):.2f} a second); {there} were there already",
        file=sys.stderr,
    )


def _find_missing(work: Work) -> list[Job]:
    """The jobs that the manifest doesn't have with files that are as it says; their lines are taken out of it."""
    parts = work.out.read_manifest()
    entries = {part: [_read_line(line) for line in lines] for part, lines in parts.items()}
    finished = {entry.name: entry for read in entries.values() for entry in read if entry}
    is_whole = work.out.compare()
    missing: list[Job] = []
    for job in work.jobs:
        entry = finished.get(job.name)
        if entry and entry.key != job.key:
            raise Refusal(
                f"{work.out.name('')} has {job.name!r} of another prompt, seed, setting, model or sampler, or of an "
                "earlier version, which didn't note these: choose another place with --out, or delete the set and its "
                "line in the manifest."
            )
        if not entry or not all(map(is_whole, entry.files)):
            missing.append(job)
    for job in missing:
        finished.pop(job.name, None)
    _clean(work.out, parts, entries, finished)
    return missing


def _clean(
    out: Destination, parts: Parts, entries: Mapping[str, Sequence[_Entry | None]], kept: Mapping[str, _Entry]
) -> None:
    """Take all lines out of a manifest but those of the entries that are kept."""
    damaged = 0
    for part, lines in parts.items():
        left: list[bytes] = []
        for line, entry in zip(lines, entries[part], strict=True):
            damaged += entry is None and bool(line.strip())
            if entry and kept.get(entry.name) is entry:
                left.append(line)
        if len(left) < len(lines):
            out.rewrite(part, left)
    if damaged:
        logger.warning(
            "%d of the lines in the manifest of %s can't be read: their pictures are made again.", damaged, out.name("")
        )


def _read_line(line: bytes) -> _Entry | None:
    """What a manifest's line says; None where it is damaged."""
    try:
        read = json.loads(line)
        entry = _Entry(read["name"], read["key"], read["files"])
        texts: list[Any] = [entry.name, entry.key]
        for file in entry.files:
            texts += file["name"], file["sha256"], str(file["size"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entry if all(isinstance(text, str) for text in texts) else None


def _group(jobs: Sequence[Job], batch: int) -> Iterator[list[Job]]:
    """Jobs that can be sampled together, in their order as far as it goes."""
    waiting: dict[str, list[Job]] = {}
    for job in jobs:
        alike = json.dumps([job.settings, job.options], sort_keys=True, default=list)
        group = waiting.setdefault(alike, [])
        group.append(job)
        if len(group) == batch:
            yield waiting.pop(alike)
    yield from waiting.values()


def _make_all(groups: list[list[Job]], work: Work) -> Generator[list[Line], None, None]:
    """The manifest's lines of each group as it is finished."""
    make = partial(_make, model=work.model, out=work.out)
    workers = min(work.workers, len(groups))
    if workers and work.ray is not None:
        gpu = None if work.model.device == "auto" else work.model.device.startswith("cuda")
        yield from run_on_ray(make, groups, workers, work.ray, gpu)
    elif workers > 1:
        yield from run_in_processes(make, groups, workers)
    else:
        yield from map(make, groups)


@cache
def _load(model: Model) -> tuple[Any, WeightStore]:
    """The pipeline and the layer files, once in each process."""
    pipe = load_pipeline(model.path, device=model.device, offline=model.offline)
    set_sampler(pipe, model.sampler, model.scheduler)
    return pipe, WeightStore(list(model.folders), download_to=model.cache, offline=model.offline)


def _make(group: Sequence[Job], model: Model, out: Destination) -> list[Line]:
    """Make jobs of equal settings and options, and write their files; their lines for the manifest."""
    pipe, store = _load(model)
    options, settings = group[0].options, group[0].settings
    outputs: Sequence[str] = options["outputs"]
    every_layer: dict[str, Any] = {**options, "outputs": LayerOptions.outputs}
    with layer_diffusion(pipe, weights=store, **every_layer) as ld:
        stacks = ld.batch([job.prompt for job in group], [job.seed for job in group], **settings)
    return [
        {
            **asdict(job),
            "key": job.key,
            "files": [
                out.write(f"{job.name}{addition}{ending}", write)
                for addition, ending, write in list_files(stack, outputs)
            ],
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        for job, stack in zip(group, stacks, strict=True)
    ]
