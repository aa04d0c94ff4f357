"""Where the sets of a table are written, with the manifest of what is finished: a folder, or any store's address.

Both put a file there whole or not at all, and know it again by the manifest's lines about it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..export import whole_file
from ..export.output_folder import OutputFolder
from ..refusal import Refusal

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
LOCK = "manifest.jsonl.lock"
PARTS = "manifest"  # a store's folder of the manifest's parts, since most stores can't add to a file
PART_LINES = 500
PART_SECONDS = 1.0  # at least, between two writings of a part

Parts = Mapping[str, Sequence[bytes]]  # the lines of each file of a manifest, oldest first
Line = Mapping[str, Any]  # of a set: its settings, its files as `describe` has them, and when it was finished
Record = Callable[[Sequence[Line]], None]


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or of one that it reaches as if it were its own."""

    path: Path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock; Refusal while another command has it. The system frees it when a process ends.

        What a killed command left is removed: half a line, unfinished files.
        """
        path = self.path / LOCK
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Refusal(
                f"Another command is making the pictures of a table in {self.path}: wait for its end, or choose "
                "another place with --out."
            ) from None
        except NotImplementedError as error:
            logger.info("%s: this file system has no locks (%s)", path, error)
        try:
            self._remove_parts()
            self._remove_half_line()
            yield
        finally:
            self._remove_parts()  # of processes that were ended
            if sys.platform != "win32":  # which deletes it with the lock
                path.unlink(missing_ok=True)
            lock.release()

    def _remove_parts(self) -> None:
        # Those of commands that need no lock begin with two dots.
        for part in self.path.glob(".[!.]*.????????.part"):
            part.unlink(missing_ok=True)

    def _remove_half_line(self) -> None:
        manifest = self.path / MANIFEST
        if manifest.exists():
            content = manifest.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(manifest, content.rfind(b"\n") + 1)

    def name(self, file: str) -> str:
        """What a file is called in messages."""
        return str(self.path / file)

    def write(self, name: str, write: Callable[[Path], None]) -> dict[str, Any]:
        """Let `write` make a file, over one that has this name, and describe it."""
        write(self.path / name)
        return _describe(name, (self.path / name).read_bytes())

    def has(self, name: str) -> bool:
        """Whether a file of this name is there."""
        return (self.path / name).is_file()

    def read_manifest(self) -> Parts:
        """The lines of what is finished."""
        manifest = self.path / MANIFEST
        return {MANIFEST: _split(manifest.read_bytes())} if manifest.exists() else {}

    def rewrite(self, part: str, lines: Sequence[bytes]) -> None:
        """Put these lines in place of a part's, all at once."""
        with whole_file(self.path / part) as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def compare(self) -> Callable[[Line], bool]:
        """Make the function that says whether a file is there as it was described, by its SHA-256."""

        def is_whole(file: Line) -> bool:
            path = self.path / file["name"]
            return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]

        return is_whole

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Yield what adds lines to the manifest."""
        with (self.path / MANIFEST).open("ab") as manifest:

            def record(lines: Sequence[Line]) -> None:
                manifest.write(_encode(lines))
                manifest.flush()
                os.fsync(manifest.fileno())

            yield record


@dataclass(frozen=True)
class Store:
    """An address such as s3://bucket/folder, of any store that fsspec knows; keys and settings are left to these."""

    address: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """fsspec's file system and the folder in it."""
        import fsspec

        return fsspec.core.url_to_fs(self.address.rstrip("/"))

    @contextmanager
    def _refusing(self) -> Iterator[tuple[Any, str]]:
        """Yield file system and folder, and turn what the store says into a Refusal."""
        try:
            yield self._opened
        except Exception as error:  # each store has errors of its own
            reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
            raise Refusal(
                f"{self.address} can't be used ({reason}): check the address, its package (pip install s3fs for "
                "s3://), and the store's keys and settings."
            ) from error

    def check(self) -> None:
        """Refusal when nothing can be written here."""
        with self._refusing() as (store, folder):
            with suppress(FileExistsError):
                store.mkdir(folder, create_parents=False)  # where folders are real; it makes no bucket for one
            probe = f"{folder}/.{secrets.token_hex(8)}.part"
            store.pipe_file(probe, b"probe")
            store.rm_file(probe)

    def name(self, file: str) -> str:
        """What a file is called in messages."""
        return f"{self.address.rstrip('/')}/{file}"

    def write(self, name: str, write: Callable[[Path], None]) -> dict[str, Any]:
        """Let `write` make a file, put it here over one that has this name, and describe it."""
        with tempfile.TemporaryDirectory(prefix="layerdiffusion-") as made:
            write(Path(made) / name)
            content = (Path(made) / name).read_bytes()
        with self._refusing() as (store, folder):
            store.pipe_file(f"{folder}/{name}", content)
        return _describe(name, content)

    def has(self, name: str) -> bool:
        """Whether a file of this name is there."""
        with self._refusing() as (store, folder):
            store.invalidate_cache()
            return store.exists(f"{folder}/{name}")

    def read_manifest(self) -> Parts:
        """The lines of what is finished."""
        with self._refusing() as (store, folder):
            store.invalidate_cache()
            parts = sorted(store.find(f"{folder}/{PARTS}"))
            contents = store.cat(parts) if parts else {}
        return {part.rpartition("/")[2]: _split(contents[part]) for part in parts}

    def rewrite(self, part: str, lines: Sequence[bytes]) -> None:
        """Put these lines in place of a part's, which is as whole as everything that the store writes."""
        with self._refusing() as (store, folder):
            store.pipe_file(f"{folder}/{PARTS}/{part}", b"".join(line + b"\n" for line in lines))

    def compare(self) -> Callable[[Line], bool]:
        """Make the function that says whether a file is there as it was described, by its size.

        Stores keep checksums of their own, and reading everything again would cost more than making some of it.
        """
        with self._refusing() as (store, folder):
            store.invalidate_cache()
            found = store.find(folder, detail=True)
        sizes = {path.rpartition("/")[2]: about["size"] for path, about in found.items()}
        return lambda file: sizes.get(file["name"]) == file["size"]

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Yield what adds lines to the manifest's parts, each of which is written anew until it is full."""
        lines: list[Line] = []
        part, written, last = "", 0, -PART_SECONDS

        def flush() -> None:
            nonlocal part, written, last
            if written < len(lines):
                part = part or f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.jsonl"
                with self._refusing() as (store, folder):
                    store.pipe_file(f"{folder}/{PARTS}/{part}", _encode(lines))
                written, last = len(lines), time.monotonic()
            if written >= PART_LINES:
                lines.clear()
                part, written = "", 0

        def record(more: Sequence[Line]) -> None:
            lines.extend(more)
            if time.monotonic() >= last + PART_SECONDS:
                flush()

        try:
            yield record
        finally:
            flush()


Destination = Folder | Store


@contextmanager
def open_destination(out: Path | str) -> Iterator[Destination]:
    """A folder, made, tried and locked, or a tried store; Refusal when nothing can be written there."""
    if isinstance(out, str) and out.startswith(("file://", "local://")):
        import fsspec

        out = Path(fsspec.core.url_to_fs(out)[1])
    if isinstance(out, str):
        store = Store(out)
        store.check()
        yield store
    else:
        with OutputFolder(out), (folder := Folder(out)).alone():
            yield folder


def _split(content: bytes) -> list[bytes]:
    """The whole lines, without their ends."""
    return content.split(b"\n")[:-1]


def _encode(lines: Sequence[Line]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def _describe(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
