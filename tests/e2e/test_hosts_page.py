"""docs/hosts.json and docs/hosts.md as the suite writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.e2e.hosts_page import PATHS, Cell, make_page, read_cells, record

ROOT = Path(__file__).parents[2]
CELL = Cell("a/one main", "11111111", "foreground", "txt2img", "", "2026-11-24", "aaaaaaaa", "passed")


def test_the_page_is_that_of_the_file() -> None:
    cells = read_cells(ROOT / "docs/hosts.json")
    assert make_page(cells) == (ROOT / "docs/hosts.md").read_text("utf-8")


def test_cells_of_the_same_commit_stay(tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    other_mode, flagged = replace(CELL, mode="together"), replace(CELL, flags="--precision=half")
    other_host = replace(CELL, host="b/two main", host_commit="22222222", outcome="failed")
    for cell in (CELL, other_mode, other_host, replace(CELL, outcome="failed"), flagged, CELL):
        record(file, cell)
    assert read_cells(file) == [CELL, flagged, other_mode, other_host]
    assert make_page(read_cells(file)) == (tmp_path / "hosts.md").read_text("utf-8")


def test_cells_of_an_older_commit_go(tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    branch, newer = replace(CELL, host="a/one old"), replace(CELL, host_commit="33333333")
    for cell in (CELL, branch, newer):
        record(file, cell)
    assert read_cells(file) == [newer, branch]


def test_tables() -> None:
    cells = [
        CELL,
        replace(CELL, path="hires fix, Latent", date="2026-11-20"),
        replace(CELL, path="hires fix, None", date="2026-11-10", outcome="failed", flags="--cpu"),
        replace(CELL, mode="any", path="refusals"),
        replace(CELL, path="txt2img, SDXL"),
        replace(CELL, host="b/two main", mode="together"),
        replace(CELL, host="c/three main", mode="any", path="refused as too old"),
    ]
    lines = make_page(cells).splitlines()
    for line in (
        "| mode | a/one main | b/two main |",
        "| foreground, SD1.5 | **2 of 3**, 2026-11-20 | not run |",
        "| foreground, SDXL | passed, 2026-11-24 | not run |",
        "| together, SD1.5 | not run | passed, 2026-11-24 |",
        "| any mode | passed, 2026-11-24 | not run |",
        "| hires fix | **1 of 2** | - |",
        "| img2img | - | - |",
        "| everything else | all 3 | passed |",
        "- a/one main: foreground, hires fix, None, 2026-11-10, aaaaaaaa `--cpu`",
        "- a/one main: a/one main, commit 11111111; some paths with `--cpu`",
        "- c/three main: c/three main, commit 11111111; too old, and the panel says so (passed 2026-11-24)",
    ):
        assert lines.count(line) == 1, line


def test_every_group_has_paths() -> None:
    """A renamed path would otherwise leave its group empty."""
    assert {cell.name_group() for cell in read_cells(ROOT / "docs/hosts.json")} == set(PATHS)
