"""Starts `generate --prompts` as a process of its own, and checks what it left: each set once, every file whole."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib_layerdiffusion.cli.destination import Destination, Folder
from lib_layerdiffusion.image_file import read_content

FAST = ["--steps", "1", "--views", "1"]
PATIENCE = 600  # seconds, for a machine that has other work to do


def read_lines(place: Destination) -> list[bytes]:
    return [line for lines in place.read_manifest().values() for line in lines]


def read_manifest(place: Destination) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(place)]


def check_all(place: Destination, names: list[str]) -> None:
    """The manifest has each set once; the files are those that it names, each whole and with its SHA-256."""
    entries = read_manifest(place)
    assert sorted(entry["name"] for entry in entries) == sorted(names)
    described = {file["name"]: file["sha256"] for entry in entries for file in entry["files"]}
    files = read_files(place)
    assert files.keys() == described.keys()
    for name, content in files.items():
        assert hashlib.sha256(content).hexdigest() == described[name]
        assert read_content(content, name).shape[2] == 4


def read_files(place: Destination) -> dict[str, bytes]:
    """All files but the manifest."""
    if isinstance(place, Folder):
        return {path.name: path.read_bytes() for path in place.path.iterdir() if path.name != "manifest.jsonl"}
    import fsspec

    store, folder = fsspec.core.url_to_fs(place.address)
    store.invalidate_cache()
    paths = [path for path in store.find(folder) if "/manifest/" not in path]
    return {path.rpartition("/")[2]: store.cat_file(path) for path in paths}


def start(table: Path, out: object, *words: object, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lib_layerdiffusion", "generate", "--prompts", table, *FAST, "--out", out, *words]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([*map(str, command)], env=variables, stdout=subprocess.DEVNULL)


def wait_for(count: int, place: Destination, process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """Wait until so many sets are finished."""
    until = time.monotonic() + patience
    while count_sets(place) < count:
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < until
        time.sleep(0.05 if isinstance(place, Folder) else 0.5)


def kill_one_of_two(process: subprocess.Popen[bytes], sign: str) -> None:
    """Kill the first of a command's two workers, which have `sign` in their own command."""
    workers = [pid for pid in find_descendants(process.pid) if sign in read_command(pid)]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)


def wait_for_end(pids: Iterable[int]) -> None:
    """Wait until all of these processes are gone."""
    until = time.monotonic() + PATIENCE
    while any(map(read_command, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)


def count_sets(place: Destination) -> int:
    """The sets in the manifest, which is left alone, since the process writes it."""
    if isinstance(place, Folder):
        manifest = place.path / "manifest.jsonl"
        return manifest.read_bytes().count(b"\n") if manifest.exists() else 0
    return len(read_lines(place))


def find_descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on, by Linux's /proc."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found += [child, *find_descendants(child)]
    return found


def read_command(pid: int) -> str:
    """A process's command, empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
