"""The folder that a command writes to: made and tested before any long work, with new names for all files."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from pathlib import Path

from lib_layerdiffusion.refusal import Refusal


class OutputFolder:
    """A folder for results; entering makes it and tries to write, leaving removes the folders that stayed empty."""

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
            self._remove_empty()
            raise self._refuse(error) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._remove_empty()

    def new_path(self, stem: str, suffix: str) -> Path:
        """Find a name that no file has: `<stem><suffix>`, else `<stem>-2<suffix>` and so on."""
        path = self.path / f"{stem}{suffix}"
        number = 1
        while path.exists():
            number += 1
            path = self.path / f"{stem}-{number}{suffix}"
        return path

    def _remove_empty(self) -> None:
        """Remove the folders that were made and are empty."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _refuse(self, error: OSError) -> Refusal:
        if error.errno == errno.ENOSPC:
            cure = "free some space or choose another folder with --out"
        elif isinstance(error, (NotADirectoryError, FileExistsError)):
            cure = "a file is in the way, so choose another folder with --out"
        else:
            cure = "choose a folder that you may write to with --out"
        return Refusal(f"Can't write to the folder {self.path}: {error.strerror or error}; {cure}.")
