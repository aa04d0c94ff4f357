"""The files that a command works on one by one, given or found in folders; one that fails keeps no other from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from tqdm import tqdm

from lib_layerdiffusion.refusal import Refusal, lacks_memory, using_path

Item = TypeVar("Item")
Read = TypeVar("Read")


def find_files(places: Iterable[Path], endings: Collection[str], kind: str) -> list[Path]:
    """The files themselves, and in place of each folder what `list_place` finds there."""
    return [path for place in places for path in list_place(place, endings, kind)]


def list_place(place: Path, endings: Collection[str], kind: str) -> list[Path]:
    """The file itself, or the visible files in a folder that have one of the endings, by their names.

    kind: what they are, for the Refusal when there are none.
    """
    with using_path(place):
        if not place.is_dir():
            return [place]
        found = sorted(
            path
            for path in place.iterdir()
            if path.suffix.lower() in endings and not path.name.startswith(".") and not path.is_dir()
        )
    if not found:
        raise Refusal(f"There are no {kind} in the folder {place}: name one that has some.")
    return found


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
            with self.trying(item):
                found.append(read(item))
            if found:
                yield item, found.pop()

    @contextmanager
    def trying(self, item: Item) -> Iterator[None]:
        """Tell a Refusal, or that memory is short, and continue after the block.

        Of a single item both are raised, and so is a sentence that was told of another: it isn't about the item.
        """
        try:
            yield
        except (Refusal, MemoryError, RuntimeError) as error:
            name = ", ".join(map(str, item)) if isinstance(item, tuple) else item
            short = f"There is not enough memory for {name}: make it smaller."
            sentence = str(error) if isinstance(error, Refusal) else short if lacks_memory(error) else ""
            if not sentence or len(self.items) == 1 or sentence in self._told:
                raise
            self.failed += 1
            self._told.add(sentence)
            tqdm.write(sentence, sys.stderr)

    def finish(self) -> None:
        """Refusal when an item failed."""
        if self.failed:
            raise Refusal(
                f"{self.failed} of {len(self.items)} failed, as said above: mend those or leave them out, and give the "
                "command again."
            )
