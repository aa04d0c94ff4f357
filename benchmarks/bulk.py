"""Makes the pictures of a table by one process, by two, and on Ray with two workers; kills some; checks every file.

    python benchmarks/bulk.py --pictures 2000 --kill     # JSON on stdout; about 40 minutes on two idle cores, reckoned
    python benchmarks/bulk.py --pictures 24 --ways one two

The embedded model at 64 pixels and 4 steps, one thread for each process. Each way makes the whole table into a folder
of its own; then every set has to be in the manifest once, and every file is decoded and hashed. --kill does it again by
each way that has workers, with a worker killed at a quarter, the whole command at a half, and the command given again.
--out takes an address such as s3://bucket/folder as well.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib_layerdiffusion.cli.destination import Destination, Folder, Store
from tests.cli.making import (
    check_all,
    count_sets,
    find_descendants,
    read_command,
    read_files,
    read_manifest,
    wait_for,
    wait_for_end,
)

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"one": ["--workers", "1"], "two": ["--workers", "2"], "ray": ["--workers", "2", "--ray", "local"]}
PATIENCE = 6 * 3600.0  # seconds
WORDS = ("red apple", "star", "frog", "soap bubble")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--kill", action="store_true", help="also with a worker and the whole command killed")
    parser.add_argument("--out", help="where the folders are made (default: a temporary one)")
    arguments = parser.parse_args()
    names = [f"{row:07d}" for row in range(arguments.pictures)]
    figures: dict[str, Any] = {"pictures": arguments.pictures, "batch": arguments.batch, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "table.csv"
        rows = [f"{WORDS[row % len(WORDS)]},{row},{name}\n" for row, name in enumerate(names)]
        table.write_text("prompt,seed,name\n" + "".join(rows), "utf-8")
        settings = {"batch": arguments.batch, "steps": arguments.steps, "width": arguments.size, "views": 1}
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "lib_layerdiffusion", "generate", "--prompts", str(table), *flags]
        command += ["--height", str(arguments.size)]
        for kill in (False, True) if arguments.kill else (False,):
            for way in [way for way in arguments.ways if not kill or way != "one"]:
                out = f"{arguments.out or temporary}/{way}{'-killed' if kill else ''}"
                place = Store(out) if "://" in out else Folder(Path(out))
                label = f"{way}, killed" if kill else way
                figures[label] = measure([*command, *WAYS[way], "--out", out], place, names, kill)
                print(f"{label}: {figures[label]}", file=sys.stderr)
    for way in ("two", "ray"):
        if {"one", way} <= figures.keys():
            figures[f"efficiency of {way}"] = round(figures[way]["rate"] / figures["one"]["rate"] / 2, 3)
    print(json.dumps(figures, indent=1))


def measure(command: list[str], place: Destination, names: list[str], kill: bool) -> dict[str, Any]:
    """Run the command to its end and check what it made: seconds, sets a second after the loading, bytes of a set."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    if kill:
        kill_by_turns(command, place, len(names), environment)
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    check_all(place, names)
    found = {"seconds": round(seconds, 1), "sets": len(names)}
    if kill:
        return found
    # The first tenth is left out, since it holds the loading of the models.
    times = sorted(datetime.fromisoformat(line["time"]).timestamp() for line in read_manifest(place))
    first = len(times) // 10
    rate = (len(times) - 1 - first) / max(times[-1] - times[first], 1)
    sizes = [len(content) for content in read_files(place).values()]
    about = {"rate": round(rate, 3), "loading": round(seconds - len(times) / rate, 1)}
    return {**found, **about, "bytes": round(sum(sizes) / len(names))}


def kill_by_turns(command: list[str], place: Destination, pictures: int, environment: dict[str, str]) -> None:
    """Kill a worker when a quarter is made, and the whole command at a half."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_for(pictures // 4, place, process, PATIENCE)
    descendants = find_descendants(process.pid)
    workers = [pid for pid in descendants if any(name in read_command(pid) for name in ("spawn_main", "ray::_Worker"))]
    os.kill(workers[0], signal.SIGKILL)
    wait_for(pictures // 2, place, process, PATIENCE)
    descendants = find_descendants(process.pid)
    process.kill()
    process.wait()
    wait_for_end(descendants)
    print(f"killed worker {workers[0]}, and the command at {count_sets(place)} sets", file=sys.stderr)


if __name__ == "__main__":
    main()
