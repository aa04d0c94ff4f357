"""WebDataset shards: tar files in which members that share their name up to its first dot are one sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..refusal import Refusal, show_path, using_path

BLOCK = 512  # bytes of a tar header; one of zeros ends the archive


@dataclass(frozen=True)
class Member:
    """A file inside a shard, which is read when it is needed."""

    shard: Path
    name: str
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.shard.name}/{self.name}"

    def read(self) -> bytes:
        with using_path(self.shard), self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


def find_shards(data: Path) -> list[Path]:
    """The shards that `data` names: a .tar file, a folder of them, or a name with braces; none if it is something else.

    Braces are WebDataset's: train-{000..099}.tar.
    """
    with using_path(data):
        if data.suffix != ".tar":
            return sorted(data.glob("*.tar")) if data.is_dir() else []
        from webdataset.shardlists import expand_urls

        return [Path(name) for name in expand_urls(data.as_posix())]


def read_samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Each sample's name and its members by their endings, such as `png` or `foreground.png`; only headers are read.

    What is read later starts from the places found here, so that samples can be taken in any order, by any process:
    the library's own readers go through a shard from its start, and a resumed training would have to do so too.
    """
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, Member]] = {}
    try:
        if shard.exists() and not shard.is_file():  # a pipe, which would be waited for
            raise ValueError("it is not an ordinary file")
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                key, ending = base_plus_ext(entry.name)
                if not entry.isreg() or not key or key.rpartition("/")[2].startswith("__"):  # no sample: its metadata
                    continue
                members = samples.setdefault(key, {})
                if ending.lower() in members:
                    raise Refusal(f"{show_path(shard)} holds {entry.name[:200]} twice; remove one of them.")
                members[ending.lower()] = Member(shard, entry.name, entry.offset_data, entry.size)
            end = archive.offset
        with shard.open("rb") as file:
            file.seek(end)
            whole = file.read(BLOCK) == bytes(BLOCK)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise Refusal(
            f"The shard {show_path(shard)} can't be read ({error}); give whole tar files, uncompressed."
        ) from error
    if not whole:  # tarfile takes a broken header for the end
        raise Refusal(f"The shard {show_path(shard)} is cut off or broken at byte {end}; copy or make it again.")
    yield from samples.items()
