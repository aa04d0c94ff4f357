"""Reads the tables of `generate --prompts` and plans them: a job for each set of layers, checked before any is made."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..export.names import slug
from ..modes import any_row
from ..options import FIELDS, LayerOptions, check_text, parse
from ..outputs import name_files
from ..planning import LARGEST_SEED, MAX_SIZE, MIN_SIZE, check_options
from ..refusal import Refusal, list_choices

NAME = "{row:05d}-{seed}-{prompt}"  # of a set's files, where a row has no name of its own
TABLE_LIMIT = 2**28  # bytes
ROWS_LIMIT = 1_000_000
LONGEST_NAME = 255  # bytes of a file's, in common file systems
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
    if option.metadata["kind"] != "image"
    and name not in ("enabled", "batch_counts")
    and not name.startswith(("atlas", "animation"))  # of all pictures, and a row is made on its own
)


@dataclass(frozen=True)
class Job:
    """One set of layers."""

    name: str  # of its files, without role and ending
    prompt: str
    seed: int
    settings: Mapping[str, Any]  # negative_prompt, width, height, steps, cfg: equal in jobs that are sampled together
    options: Mapping[str, Any]  # of LayerOptions, likewise
    model: Mapping[str, Any]  # its name as given, weights, sampler, scheduler: equal in all jobs of a command

    @property
    def key(self) -> str:
        """What has to be equal in two jobs whose pictures are the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=list).encode()).hexdigest()


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
    taken: dict[str, int] = {}  # the row of each set's name, which the manifest goes by, and of each file's
    for place, row in enumerate(rows, start=1):
        for job in _plan_row(place, row, common, template):
            files = name_files(any_row(job.options["mode"]), job.options["outputs"])
            for name in (job.name, *(f"{job.name}{addition}" for addition in files)):
                _check_name(name, place, taken)
                taken[name.casefold()] = place
            jobs.append(job)
    return jobs


def read_common(seed: int | None, options: LayerOptions, settings: Mapping[str, Any], model: Mapping[str, Any]) -> Job:
    """What holds for every row that doesn't say otherwise; the first seed is 0."""
    return Job("", "", seed or 0, dict(settings), _keep(options), dict(model))


def _read_csv(name: str, text: str) -> Iterator[dict[str, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        heading = [column.strip() for column in reader.fieldnames or () if column.strip()]
        if twice := next((column for column in heading if heading.count(column) > 1), None):
            raise Refusal(f"{name} has the column {twice!r} twice: rename or delete one of them.")
        for row in reader:
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


def _check_name(name: str, place: int, taken: Mapping[str, int]) -> None:
    """Refuse a name that a file can't have, or that another has where file systems know no case."""
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise Refusal(
            f"A file of row {place} would have a name of {size} bytes, more than the {LONGEST_NAME} that file systems "
            f"take ({name[:40]}...): use a shorter --name."
        )
    if (other := taken.get(name.casefold())) is not None:
        rows = f"Two sets of row {place}" if other == place else f"Rows {other} and {place}"
        raise Refusal(
            f"{rows} would both have the name {name!r}: give a row a name of its own, or put {{row}} and {{seed}} into "
            "--name."
        )


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
        yield Job(name, texts["prompt"], seed, settings, kept, common.model)


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
    options = LayerOptions.from_dict({**common.options, **given})
    if "over_image" in options.outputs:
        raise Refusal(
            "over_image can't be made for a table: ask for over_black or over_white, or put the finished pictures over "
            "an image with `layerdiffusion composite`."
        )
    check_options(options)
    return numbers, texts, _keep(options)


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
