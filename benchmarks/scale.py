"""Simulates how long a table takes and what it costs on many workers, up to 10^7 pictures, from measured figures.

    python benchmarks/bulk.py --ways two > figures.json
    python benchmarks/scale.py figures.json --price 0.5 --workers 1 8 64 --pictures 1000 1000000 10000000

The command plans the table; then the groups are simulated one by one, each on the worker that is free first. A worker
loads the model, makes its group in a time that varies, writes its files, and may end at any moment; then it loads anew
and makes the group again. The command takes each finished group in turn, for as long as its lines in the manifest need.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

HOUR = 3600.0


@dataclass(frozen=True)
class Figures:
    """What one worker does, in seconds, and what it costs."""

    set_seconds: float  # of a set, in its group
    batch: int = 4
    loading: float = 10.0
    row_seconds: float = 1e-4  # that the command needs for a set before it begins, to check and plan it
    variation: float = 0.1  # of a group's time, as a share of it: its standard deviation
    file_seconds: float = 0.05  # until the store has a file
    line_seconds: float = 0.002  # that the command needs for a group: its line, and a share of the manifest's part
    lives: float = math.inf  # hours that a worker runs before it ends, on average
    price: float = 0.0  # of a worker's hour
    set_bytes: int = 500_000
    files: int = 1  # of a set
    month_price: float = 0.023  # of a GB in the store
    request_price: float = 5e-6  # of writing a file


@dataclass(frozen=True)
class Outcome:
    """What a simulated table came to."""

    hours: float
    rate: float  # sets a second
    efficiency: float  # share of the workers' time that went into sets that were kept
    lost: int  # groups that were made again
    price: float  # of the workers
    store_price: float  # of a month in the store, with the requests
    gigabytes: float
    busy: float  # share of the time in which the command was taking lines


def simulate(sets: int, workers: int, figures: Figures, seed: int = 0) -> Outcome:
    """Run the groups of so many sets through the workers."""
    rng = random.Random(seed)
    groups, lost, useful = math.ceil(sets / figures.batch), 0, 0.0
    workers = min(workers, groups)
    group_seconds = figures.batch * (figures.set_seconds + figures.files * figures.file_seconds)
    ends = 0.0 if math.isinf(figures.lives) else 1 / (figures.lives * HOUR)  # of a worker, in a second

    def make(begun: float) -> float:
        """When a worker has finished a group that it begins now."""
        nonlocal lost, useful
        seconds = group_seconds * max(0.1, rng.gauss(1, figures.variation))
        while ends and (until := rng.expovariate(ends)) < seconds:
            lost += 1
            begun += until + figures.loading
        useful += seconds
        return begun + seconds

    begin = sets * figures.row_seconds + figures.loading
    finished = [make(begin) for _ in range(workers)]
    heapq.heapify(finished)
    taken, left = 0.0, groups - workers
    while finished:
        taken = max(taken, heapq.heappop(finished)) + figures.line_seconds
        if left:
            heapq.heappush(finished, make(taken))
            left -= 1
    hours = taken / HOUR
    gigabytes = sets * figures.set_bytes / 1e9
    return Outcome(
        hours,
        sets / (hours * HOUR),
        useful / (hours * HOUR * workers),
        lost,
        hours * workers * figures.price,
        gigabytes * figures.month_price + sets * figures.files * figures.request_price,
        gigabytes,
        groups * figures.line_seconds / (hours * HOUR),
    )


def read_figures(path: Path) -> Figures:
    """What `bulk.py` measured, of its way with the most workers."""
    measured = json.loads(path.read_text("utf-8"))
    way = next(measured[name] for name in ("ray", "two", "one") if name in measured)
    workers = 1 if way is measured.get("one") else 2
    return Figures(workers / way["rate"], measured["batch"], way["loading"], set_bytes=way["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="?", type=Path, help="what benchmarks/bulk.py printed")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8, 64])
    for name, kind in (("set-seconds", float), ("batch", int), ("loading", float), ("file-seconds", float)):
        parser.add_argument(f"--{name}", type=kind)
    for name in ("row-seconds", "line-seconds", "lives", "price", "month-price", "request-price"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--set-bytes", type=int)
    arguments = parser.parse_args()
    if arguments.figures is None and arguments.set_seconds is None:
        parser.error("name the file of bulk.py's figures, or give --set-seconds")
    figures = Figures(1.0) if arguments.figures is None else read_figures(arguments.figures)
    given = {name: value for name, value in vars(arguments).items() if name in Figures.__dataclass_fields__}
    figures = replace(figures, **{name: value for name, value in given.items() if value is not None})
    print(figures, file=sys.stderr)
    print("| pictures | workers | hours | pictures/s | efficiency | made again | workers' price | GB | store's price |")
    print("|---|---|---|---|---|---|---|---|---|")
    for sets in arguments.pictures:
        for workers in arguments.workers:
            found = simulate(sets, workers, figures)
            print(
                f"| {sets:,} | {workers} | {found.hours:,.2f} | {found.rate:.3g} | {found.efficiency:.2f} | "
                f"{found.lost} | {found.price:,.2f} | {found.gigabytes:,.1f} | {found.store_price:,.2f} |"
            )


if __name__ == "__main__":
    main()
