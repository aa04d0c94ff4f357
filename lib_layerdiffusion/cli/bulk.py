"""`generate --prompts`: the pictures that a table asks for, on several processes, each made once however often it runs.

What is finished stands in the output folder's manifest.jsonl, a line for each set of layers, written after its files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import string
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..export.names import slug
from ..hosts.diffusers import layer_diffusion
from ..hosts.pipelines import load_pipeline
from ..hosts.samplers import set_sampler
from ..layers import LayerStack
from ..options import FIELDS, LayerOptions, check_text, parse
from ..outputs import list_files
from ..planning import LARGEST_SEED, MAX_SIZE, MIN_SIZE
from ..refusal import Refusal, list_choices
from ..weights import WeightStore

MANIFEST = "manifest.jsonl"
NAME = "{row:05d}-{seed}-{prompt}"  # of a set's files, where a row has no name of its own
TABLE_LIMIT = 2**28  # bytes
ROWS_LIMIT = 1_000_000
FAILURES = 3  # times that processes may end without a finished group between them, before the command gives up
# Columns that aren't options of layers, with what their texts must be.
NUMBERS: Mapping[str, tuple[float, float]] = {
    "seed": (0, LARGEST_SEED),
    "number": (1, 100_000),
    "width": (MIN_SIZE, MAX_SIZE),
    "height": (MIN_SIZE, MAX_SIZE),
    "steps": (1, 1000),
    "cfg": (1, 30),
}
TEXTS = ("prompt", "negative", "name")
OPTIONS = tuple(
    name
    for name, option in FIELDS.items()
    if option.metadata["kind"] != "image" and name not in ("enabled", "batch_counts")
)


@dataclass(frozen=True)
class Job:
    """One set of layers."""

    name: str  # of its files, without role and ending
    prompt: str
    seed: int
    settings: Mapping[str, Any]  # negative_prompt, width, height, steps, cfg: equal in jobs that are sampled together
    options: Mapping[str, Any]  # of LayerOptions, likewise

    @property
    def key(self) -> str:
        """What has to be equal in two jobs whose pictures are the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=list).encode()).hexdigest()


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


@dataclass(frozen=True)
class Work:
    """Everything that a command has to make, and where."""

    jobs: Sequence[Job]
    model: Model
    out: Path
    batch: int = 1  # sets that are sampled together
    workers: int = 1

    @property
    def manifest(self) -> Path:
        return self.out / MANIFEST


def read_table(name: str, content: bytes) -> list[dict[str, Any]]:
    """Rows of a text (a prompt on each line), CSV with a heading, or JSONL (an object on each line).

    The name's ending decides; without a known one, JSONL is told by its first brace. Refusal names the line.
    """
    if len(content) > TABLE_LIMIT:
        raise Refusal(f"{name} has more than the {TABLE_LIMIT} bytes of prompts that are read: split it up.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refusal(f"{name} isn't a text in UTF-8: save it as one.") from None
    ending = Path(name).suffix.lower()
    if ending == ".csv":
        rows = list(_read_csv(name, text))
    elif ending in (".jsonl", ".ndjson") or (ending != ".txt" and text.lstrip().startswith("{")):
        rows = list(_read_jsonl(name, text))
    else:
        rows = [{"prompt": line.strip()} for line in text.splitlines() if line.strip()]
    if not rows:
        raise Refusal(f"{name} has no prompts: write one on each line.")
    if len(rows) > ROWS_LIMIT:
        raise Refusal(f"{name} has more than the {ROWS_LIMIT} rows that are read: split it up.")
    return rows


def plan_jobs(rows: Iterable[Mapping[str, Any]], common: Job, template: str = NAME) -> list[Job]:
    """The sets of all rows; `common` has what a row doesn't say. Refusal names the row that can't be served.

    template: of names, with {row}, {seed}, {number}, {prompt}, {mode} and {name}.
    """
    _check_template(template)
    jobs: list[Job] = []
    names: set[str] = set()
    for place, row in enumerate(rows, start=1):
        for job in _plan_row(place, row, common, template):
            if job.name in names:
                raise Refusal(
                    f"The files of row {place} would be called {job.name!r} like those of another set: give it a name "
                    "of its own, or put {row} and {seed} into --name."
                )
            names.add(job.name)
            jobs.append(job)
    return jobs


def run(work: Work, report: Callable[[Path], None]) -> None:
    """Make what isn't in the manifest yet; `report` is called with each file.

    Refusal when the folder has files of other settings under these names, or processes end again and again.
    """
    left = _find_missing(work)
    groups = list(_group(left, work.batch))
    began, made = time.monotonic(), 0
    bar = tqdm(total=len(left), unit="set", file=sys.stderr, disable=None)
    with work.manifest.open("ab") as manifest, bar:
        for lines in _make_all(groups, work):
            for line in lines:
                manifest.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                for file in line["files"]:
                    report(work.out / file["name"])
            manifest.flush()
            os.fsync(manifest.fileno())
            made += len(lines)
            bar.update(len(lines))
    seconds = time.monotonic() - began
    there = len(work.jobs) - len(left)
    print(
        f"{made} sets in {seconds:.0f} s ({made / max(seconds, 1e-9):.2f} a second); {there} were there already",
        file=sys.stderr,
    )


def _read_csv(name: str, text: str) -> Iterator[dict[str, Any]]:
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            if None in row:
                raise Refusal(f"{name} has a row with more cells than its heading: {str(row[None])[:60]}.")
            yield {key.strip(): value for key, value in row.items() if value not in (None, "")}
    except csv.Error as error:
        raise Refusal(f"{name} can't be read as CSV ({error}): save it as comma-separated UTF-8.") from None


def _read_jsonl(name: str, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise Refusal(f'Line {number} of {name} isn\'t a JSON object such as {{"prompt": "a cat"}}.')
        yield {key: value for key, value in row.items() if value is not None}


def _plan_row(place: int, row: Mapping[str, Any], common: Job, template: str) -> Iterator[Job]:
    try:
        numbers, texts, kept = _read_row(row, common)
    except Refusal as refusal:
        raise Refusal(f"Row {place} can't be made: {refusal}") from None
    settings = {**common.settings, **{key: value for key, value in numbers.items() if key in common.settings}}
    if "negative" in texts:
        settings["negative_prompt"] = texts["negative"]
    first, count = int(numbers.get("seed", common.seed)), int(numbers.get("number", 1))
    named = slug(texts["name"]) if "name" in texts else f"{place:05d}"
    if "name" in texts and template == NAME:
        template = "{name}" if count == 1 else "{name}-{number:02d}"
    for number in range(count):
        seed = (first + number) % (LARGEST_SEED + 1)
        values = {"row": place, "seed": seed, "number": number + 1, "mode": kept["mode"], "name": named}
        name = template.format(**values, prompt=slug(texts["prompt"]))
        yield Job(name, texts["prompt"], seed, settings, kept)


def _read_row(row: Mapping[str, Any], common: Job) -> tuple[dict[str, float], dict[str, str], dict[str, Any]]:
    """A row's numbers, texts and layer options, checked."""
    known = (*TEXTS, *NUMBERS, *OPTIONS)
    for name in row:
        if name not in known:
            raise Refusal(f"There is no column {name!r}: {list_choices(name, known)}.")
    numbers = {name: _read_number(name, row[name]) for name in NUMBERS if name in row}
    texts = {name: check_text(name, row[name]) for name in TEXTS if name in row}
    if not texts.get("prompt", "").strip():
        raise Refusal("It has no prompt: fill the column prompt.")
    given = {name: row[name] for name in OPTIONS if name in row}
    given = {name: parse(name, value) if isinstance(value, str) else value for name, value in given.items()}
    return numbers, texts, _keep(LayerOptions.from_dict({**common.options, **given}))


def _keep(options: LayerOptions) -> dict[str, Any]:
    """The options that a row can have."""
    return {name: value for name, value in options.to_dict().items() if name in OPTIONS}


def _check_template(template: str) -> None:
    known = ("row", "seed", "number", "prompt", "mode", "name")
    try:
        for _, name, _, _ in string.Formatter().parse(template):
            if name is not None and name not in known:
                raise Refusal(f"--name has no field {name!r}: {list_choices(name, known)}.")
        made = template.format(row=1, seed=1, number=0, prompt="p", mode="m", name="n")
    except ValueError as error:
        raise Refusal(
            f"--name {template!r} can't be read ({error}): write fields as {{seed}} or {{row:05d}}."
        ) from None
    if not made or made.startswith(".") or set(made) & set('/\\:*?"<>|\0'):
        raise Refusal(f"--name {template!r} makes {made!r}, which can't be a file's name: leave out folders and signs.")


def _read_number(name: str, value: Any) -> float:
    low, high = NUMBERS[name]
    kind = "number" if name == "cfg" else "whole number"
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or (name != "cfg" and number != int(number)):
        raise Refusal(f"{name} must be a {kind} from {low:g} to {high:g}, not {str(value)[:40]!r}.")
    return number if name == "cfg" else int(number)


def _find_missing(work: Work) -> list[Job]:
    """The jobs that the manifest doesn't have with files that are as it says.

    What a killed command left is removed: half of a last line, and files that weren't finished.
    """
    for part in work.out.glob(".*.part"):
        part.unlink()
    finished: dict[str, Mapping[str, Any]] = {}
    if work.manifest.exists():
        content = work.manifest.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(work.manifest, len(whole))
        for line in whole.splitlines():
            entry = json.loads(line)
            finished[entry["name"]] = entry
    missing: list[Job] = []
    for job in work.jobs:
        entry = finished.get(job.name)
        if entry is not None and entry["key"] != job.key:
            raise Refusal(
                f"{work.out} has {job.name!r} of another prompt, seed or setting: choose another folder with --out, or "
                "delete the set and its line in manifest.jsonl."
            )
        if entry is None or not all(_is_whole(work.out / file["name"], file["sha256"]) for file in entry["files"]):
            missing.append(job)
    return missing


def _is_whole(path: Path, wanted: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted


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


def _make_all(groups: list[list[Job]], work: Work) -> Iterator[list[dict[str, Any]]]:
    """The manifest's lines of each group as it is finished."""
    make = partial(_make, model=work.model, out=work.out)
    if work.workers == 1:
        yield from map(make, groups)
        return
    left, failures = groups, 0
    while left:
        before = len(left)
        with ProcessPoolExecutor(work.workers, get_context("spawn"), _share_cores, (work.workers,)) as pool:
            running: dict[Future[list[dict[str, Any]]], list[Job]] = {}
            todo = iter(left)
            done: list[list[Job]] = []
            try:
                while True:
                    while len(running) < 2 * work.workers and (group := next(todo, None)) is not None:
                        running[pool.submit(make, group)] = group
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        lines = future.result()
                        done.append(running.pop(future))
                        yield lines
            except BrokenProcessPool:
                for future, group in running.items():
                    if future.done() and future.exception() is None:
                        done.append(group)
                        yield future.result()
        names = {job.name for group in done for job in group}
        left = [group for group in left if group[0].name not in names]
        failures = 0 if len(left) < before else failures + 1
        if failures == FAILURES:
            raise Refusal(
                f"The processes ended {FAILURES} times before they had made anything: use fewer --workers, since "
                "memory may not suffice for so many models."
            )


@cache
def _load(model: Model) -> tuple[Any, WeightStore]:
    """The pipeline and the layer files, once in each process."""
    pipe = load_pipeline(model.path, device=model.device, offline=model.offline)
    set_sampler(pipe, model.sampler, model.scheduler)
    return pipe, WeightStore(list(model.folders), download_to=model.cache, offline=model.offline)


def _share_cores(workers: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _make(group: Sequence[Job], model: Model, out: Path) -> list[dict[str, Any]]:
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
            "files": [_describe_file(path) for path in _write_set(out, job.name, stack, outputs)],
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        for job, stack in zip(group, stacks, strict=True)
    ]


def _write_set(out: Path, name: str, stack: LayerStack, outputs: Sequence[str]) -> Iterator[Path]:
    """Write the wanted outputs of a set, over what was there under these names, and tell each file."""
    for addition, ending, write in list_files(stack, outputs):
        path = out / f"{name}{addition}{ending}"
        write(path)
        yield path


def _describe_file(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_common(seed: int | None, options: LayerOptions, settings: Mapping[str, Any]) -> Job:
    """What holds for every row that doesn't say otherwise; the first seed is 0."""
    return Job("", "", seed or 0, dict(settings), _keep(options))
