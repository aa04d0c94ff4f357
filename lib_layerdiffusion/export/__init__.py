"""Writers of layer stacks, one module per file format; a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..refusal import Refusal


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` and move it there at the end; nothing is left of it on any exception.

    Refusal when it can't be written, with the reason and what to do.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")  # 50 characters can be 200 bytes
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise Refusal(f"Can't write {path}: {error.strerror or error}; {_cure(path, error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _cure(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another folder"
    if path.is_dir():
        return "choose another name, since this one is a folder"
    if not path.parent.is_dir():
        return f"make the folder {path.parent} first"
    return "choose a folder that you may write to"
