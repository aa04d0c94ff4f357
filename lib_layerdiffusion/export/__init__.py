"""Writers of layer stacks, one module per file format; a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..refusal import refuse_path, using_path


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` and move it there at the end; nothing is left of it on any exception.

    Refusal when it can't be written, with the reason and what to do.
    """
    path = Path(path)
    with using_path(path):
        part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")  # 50 characters can be 200 bytes
        opened = part.open("xb")
    try:
        with opened as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise refuse_path(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
