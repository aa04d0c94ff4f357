"""docs/hosts.md: which layer mode and which path was seen in which WebUI, when, and with which commits."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lib_layerdiffusion.modes import MODES

Row = tuple[str, str]  # layer mode and path

HEAD = """\
# Where it was run

Layer modes and paths in real WebUIs, by the end-to-end suite, which writes this page. Each cell has the outcome, the \
date, the commit of this project and flags of the WebUI if any were added; its own commit is at the top. Seeded \
checkpoints and layer files of full shape, on a processor. A dash: not run there.

    make e2e LAYERDIFFUSION_WEBUI=<checkout> LAYERDIFFUSION_WEBUI_PYTHON=<its Python>

"""


class HostsPage:
    """The page's table: a column for each WebUI, a row for each mode and path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hosts: dict[str, dict[Row, str]] = {}
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        for title, *cells in zip(*table[:1] + table[2:], strict=True):  # without the line below the titles
            self.hosts[title] = dict(zip([(row[0], row[1]) for row in table[2:]], cells, strict=True))
        for title in ("mode", "path"):
            self.hosts.pop(title, None)

    def record(self, host: str, cells: Mapping[Row, str]) -> None:
        """Put a WebUI's new cells (`host`: repository, branch, commit) in; those of another commit of it go."""
        branch, _, _ = host.rpartition(" ")
        kept = self.hosts.get(host, {})
        others = {title: own for title, own in self.hosts.items() if title.rpartition(" ")[0] != branch}
        self.hosts = others | {host: {**kept, **cells}}

    def write(self) -> None:
        hosts = sorted(self.hosts)
        rows = sorted({row for cells in self.hosts.values() for row in cells}, key=_place)
        lines = [["mode", "path", *hosts], ["---"] * (2 + len(hosts))]
        lines += [[*row, *(self.hosts[host].get(row, "-") for host in hosts)] for row in rows]
        self.path.write_text(HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines), "utf-8")


def name_checkout(folder: Path) -> str:
    """A WebUI's repository, as `owner/name`, its branch if one is checked out, and its commit."""
    address = _git(folder, "remote", "get-url", "origin").removesuffix(".git")
    branch = _git(folder, "branch", "--show-current")
    return " ".join(filter(None, ["/".join(re.split("[/:]", address)[-2:]), branch, name_commit(folder)]))


def name_commit(folder: Path) -> str:
    return _git(folder, "rev-parse", "--short=8", "HEAD")


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _place(row: Row) -> tuple[int, str]:
    """Modes in their own order, then what is of no mode."""
    names = [mode.name for mode in MODES]
    return (names.index(row[0]) if row[0] in names else len(names)), row[1]
