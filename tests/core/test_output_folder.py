"""New names in a folder, also when several write there at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib_layerdiffusion.export.output_folder import OutputFolder
from lib_layerdiffusion.refusal import Refusal


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_writers_at_the_same_time_lose_no_file(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)

    def write(number: int) -> Path:
        with OutputFolder(tmp_path / "out") as out:
            return out.write("1-star", ".png", lambda path: path.write_text(str(number)) and None)

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(write, range(40)))
    assert len(set(paths)) == 40
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    assert sorted(int(path.read_text()) for path in paths) == list(range(40))
    assert {path.name for path in paths} == {"1-star.png", *(f"1-star-{number}.png" for number in range(2, 41))}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise Refusal("no")

    with pytest.raises(Refusal), OutputFolder(tmp_path / "out") as out:
        out.write("a", ".png", fail)
    assert not (tmp_path / "out").exists()
