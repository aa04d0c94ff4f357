"""The files that a command works on one by one, given or found in folders; one that fails keeps no other from it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from tqdm import tqdm

from lib_layerdiffusion.refusal import Refusal, lacks_memory, using_path

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Read = TypeVar("Read")


def find_files(places: Iterable[Path], endings: Collection[str], kind: str) -> list[Path]:
    """The files themselves, and in place of each folder what `list_place` finds there."""
    return [path for place in places for path in list_place(place, endings, kind)]


def list_place(place: Path, endings: Collection[str], kind: str) -> list[Path]:
    """The file itself, or the visible files in a folder that have one of the endings, in their names' natural order.

    kind: what they are, for the Refusal when there are none.
    """
    with using_path(place):
        if not place.is_dir():
            return [place]
        visible = (
            path
            for path in place.iterdir()
            if path.suffix.lower() in endings and not path.name.startswith(".") and not path.is_dir()
        )
        found = sorted(visible, key=lambda path: (natural(path.stem), path.suffix))
    if not found:
        raise Refusal(f"There are no {kind} in the folder {place}: name one that has some.")
    return found


def leave_out_results(paths: Sequence[Path], is_result: Callable[[Path], bool]) -> list[Path]:
    """What a command works on, without what an earlier run of it wrote; a sentence names that.

    Refusal when nothing else is there.
    """
    results = [path for path in paths if is_result(path)]
    if not results:
        return list(paths)
    more = f" and {len(results) - 3} more" if len(results) > 3 else ""
    named = ", ".join(map(str, results[:3])) + more
    if len(results) == len(paths):
        raise Refusal(f"There is nothing but what an earlier run of this command wrote ({named}): name other images.")
    logger.info("Left out, since an earlier run of this command wrote it: %s.", named)
    left_out = set(results)
    return [path for path in paths if path not in left_out]


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people count: f2 before f10."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))], name


class Attempts(Generic[Item]):
    """Work on several items, of which one that is refused doesn't keep the others from being done."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.failed = 0
        self._told: set[str] = set()

    def read(self, read: Callable[[Item], Read]) -> Iterator[tuple[Item, Read]]:
        """Each item that can be read, with what was read, one at a time."""
        for item in tqdm(self.items, unit="file", file=sys.stderr, disable=None):
            found: list[Read] = []
            with self.trying(item, reading=True):
                found.append(read(item))
            if found:
                yield item, found.pop()

    @contextmanager
    def trying(self, item: Item, reading: bool = False) -> Iterator[None]:
        """Tell a Refusal, or that memory is short, with the item's name, and continue after the block.

        Of a single item both are raised. So is what was said of another item already, unless it was `reading`: a full
        disk or a missing weight file isn't about the item.
        """
        try:
            yield
        except (Refusal, MemoryError, RuntimeError) as error:
            if len(self.items) == 1 or not (isinstance(error, Refusal) or lacks_memory(error)):
                raise
            sentence = (
                str(error) if isinstance(error, Refusal) else "There is not enough memory for it: make it smaller."
            )
            if not reading and isinstance(error, Refusal):
                if sentence in self._told:
                    raise
                self._told.add(sentence)
            self.failed += 1
            names = [str(path) for path in (item if isinstance(item, tuple) else (item,))]
            named = any(name in sentence for name in names)
            tqdm.write(sentence if named else f"{', '.join(names)}: {sentence}", sys.stderr)

    def finish(self) -> None:
        """Refusal when an item failed."""
        if self.failed:
            raise Refusal(
                f"{self.failed} of {len(self.items)} failed, as said above: mend those or leave them out, and give the "
                "command again."
            )
