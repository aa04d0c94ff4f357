"""docs/hosts.md as the suite writes it."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.hosts_page import HostsPage


def test_cells_of_the_same_commit_stay(tmp_path: Path) -> None:
    path = tmp_path / "hosts.md"
    for host, cells in (
        ("a/one 11111111", {("foreground", "txt2img"): "passed x", ("any", "refusals"): "failed x"}),
        ("b/two 22222222", {("together", "txt2img"): "passed y"}),
        ("a/one 11111111", {("any", "refusals"): "passed z"}),
    ):
        page = HostsPage(path)
        page.record(host, cells)
        page.write()
    assert path.read_text("utf-8").splitlines()[-5:] == [
        "| mode | path | a/one 11111111 | b/two 22222222 |",
        "| --- | --- | --- | --- |",
        "| foreground | txt2img | passed x | - |",
        "| together | txt2img | - | passed y |",
        "| any | refusals | passed z | - |",
    ]


def test_cells_of_an_older_commit_go(tmp_path: Path) -> None:
    page = HostsPage(tmp_path / "hosts.md")
    page.record("a/one 11111111", {("any", "refusals"): "passed x"})
    page.record("a/one old 22222222", {("foreground", "txt2img"): "passed z"})
    page.record("a/one 33333333", {("foreground", "txt2img"): "passed y"})
    assert page.hosts == {
        "a/one old 22222222": {("foreground", "txt2img"): "passed z"},  # of another branch
        "a/one 33333333": {("foreground", "txt2img"): "passed y"},
    }
