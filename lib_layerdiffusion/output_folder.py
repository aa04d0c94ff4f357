"""The folder that a command writes to: only whole files, never over an existing one, and a sentence when it can't."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lib_layerdiffusion.refusal import Refusal

SLUG_BYTES = 80  # of UTF-8; leaves room for seed, role and number in the 255 that common file systems allow


def slug(text: str) -> str:
    """Turn a prompt into a part of a file name that every file system accepts: lower-case words joined by '-'."""
    kept = "".join(c if c.isalnum() else "-" for c in unicodedata.normalize("NFC", text.lower()))
    joined = "-".join(word for word in kept.split("-") if word)
    short = joined.encode("utf-8", "ignore")[:SLUG_BYTES].decode("utf-8", "ignore")
    return short.strip("-") or "image"


def cannot_write(path: Path, error: OSError) -> Refusal:
    """Say why a file or folder could not be written, and what to do."""
    if error.errno == errno.ENOSPC:
        cure = "free some space or choose another folder with --out"
    elif isinstance(error, (NotADirectoryError, FileExistsError)):
        cure = "a file is in the way, so choose another folder with --out"
    else:
        cure = "choose a folder that you may write to with --out"
    return Refusal(f"Can't write {path}: {error.strerror or error}; {cure}.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` and move it there; on any exception nothing is left behind."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class OutputFolder:
    """A folder to write results to; entering makes it and checks that it can be written, before any long work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._made = missing
            with tempfile.NamedTemporaryFile(prefix=".", suffix=".part", dir=self.path):
                pass
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folders that were made for results that never came."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def write_new(self, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
        """Write `<stem><suffix>`, or `<stem>-2<suffix>` and so on when that exists, and return its path."""
        path = self.path / f"{stem}{suffix}"
        number = 1
        while path.exists():
            number += 1
            path = self.path / f"{stem}-{number}{suffix}"
        write_whole(path, write)
        return path

    def write(self, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
        """Write `<stem><suffix>`, in the place of an existing one, and return its path."""
        path = self.path / f"{stem}{suffix}"
        write_whole(path, write)
        return path
