"""The folder that a command writes to: made and tested before any long work, with new names for all files."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from lib_layerdiffusion.refusal import Refusal, refuse_path, using_path


class OutputFolder:
    """A folder for results; entering makes it and tries to write, leaving removes the folders that stayed empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            with using_path(self.path):
                missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
                self.path.mkdir(parents=True, exist_ok=True)
                self._made = missing
                with tempfile.NamedTemporaryFile(prefix=".", suffix=".part", dir=self.path):
                    pass
        except Refusal:
            self._remove_empty()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove_empty()

    def write(self, stem: str, suffix: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file, and give it a name that no file has: `<stem><suffix>`, else `<stem>-2<suffix>` ...

        Also when several commands write to the folder at once, no file replaces another, and each appears whole.
        """
        made = self.path / f".{secrets.token_hex(8)}{suffix}"
        try:
            write(made)
            number = 1
            while True:
                path = self.path / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
                try:
                    _name(made, path)
                except FileExistsError:
                    number += 1
                else:
                    return path
        except OSError as error:
            raise refuse_path(self.path, error) from error
        finally:
            with contextlib.suppress(OSError):
                made.unlink(missing_ok=True)

    def _remove_empty(self) -> None:
        """Remove the folders that were made and are empty."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _name(made: Path, path: Path) -> None:
    """Give a file its name; FileExistsError when another has it, also one that came a moment ago."""
    try:
        path.hardlink_to(made)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name, then fill it
        path.touch(exist_ok=False)
        made.replace(path)
