"""What the end-to-end suite saw in real WebUIs: docs/hosts.json keeps it, docs/hosts.md is the page made from that.

`python -m tests.e2e.hosts_page docs/hosts.json` makes the page again, without running anything.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lib_layerdiffusion.modes import MODES

FAMILIES = {"sd15": "SD1.5", "sdxl": "SDXL"}
ANY = "any"  # the mode of what holds for all of them
TOO_OLD = "refused as too old"
NAMES = {  # a WebUI's repository and branch, with its commit where the name has a version -> what people call it
    "AUTOMATIC1111/stable-diffusion-webui master 82a973c0": "AUTOMATIC1111 1.10.1",
    "AUTOMATIC1111/stable-diffusion-webui 1.9.4 feee37d7": "AUTOMATIC1111 1.9.4",
    "lllyasviel/stable-diffusion-webui-forge main": "Forge main",
    "lllyasviel/stable-diffusion-webui-forge previous": "Forge `previous`",
    "Panchovix/stable-diffusion-webui-reForge main": "reForge main",
    "Panchovix/stable-diffusion-webui-reForge main-old": "reForge main-old",
    "Haoming02/sd-webui-forge-classic classic": "Forge Classic",
    "exo101/sd-webui-forge-neo-v3 master 5692d2d1": "Forge Neo 2.26",
}
PATHS = {  # what the page calls a group -> words in its paths; a path is in the first group that has a word of it
    "the embedded model as a checkpoint": ("embedded model",),
    "img2img": ("img2img",),
    "inpainting": ("inpaint",),
    "hires fix": ("hires fix",),
    "batches": ("batch size",),
    "LoRA": ("LoRA",),
    "ControlNet": ("ControlNet",),
    "ADetailer": ("ADetailer",),
    "dynamic prompts": ("dynamic prompts",),
    "X/Y/Z plot": ("X/Y/Z plot",),
    "refiner, another checkpoint": ("refiner", "checkpoint", "family changed"),
    "token merging, Hypertile, AND": ("token merging", "hypertile", "AND"),
    "flags and settings of precision, memory, attention": ("flag ", "attention: ", "fp8"),
    "the WebUI's page": ("the WebUI's page", "settings page"),
    "API clients": ("positional", "webuiapi", "docs/api.md", "route"),
    "errors, interruptions, lack of memory": ("exception", "interrupted", "memory"),
    "everything else": ("",),
}
HEAD = """\
# Where it was run

What the end-to-end suite saw in real WebUIs: on a processor, with seeded checkpoints and layer files of full shape. \
Not run: graphics cards, the published weights, Windows and macOS. [hosts.json](hosts.json) has every path by itself, \
with its date, both commits and the outcome. The suite writes both:

    .venv-test/bin/python -m tests.e2e.seeded_files <checkout of the WebUI> sdxl
    make e2e LAYERDIFFUSION_WEBUI=<checkout of the WebUI> LAYERDIFFUSION_WEBUI_PYTHON=<its Python>

## Layer modes

How many paths passed, and the date of the oldest of these runs.

"""
PATHS_HEAD = """
## Paths

From all modes together; a dash: not run.

"""


@dataclass(frozen=True)
class Cell:
    """How one path ended with one layer mode in one WebUI."""

    host: str  # the WebUI's repository as owner/name, and its branch
    host_commit: str
    mode: str  # a layer mode's name, or "any"
    path: str
    flags: str  # that were added to the WebUI's command
    date: str  # ISO 8601
    commit: str  # of this project
    outcome: str  # passed or failed

    @property
    def name(self) -> str:
        """What people call the WebUI."""
        return NAMES.get(f"{self.host} {self.host_commit}") or NAMES.get(self.host) or self.host

    def name_mode(self) -> str:
        """The mode with its base model, for `foreground` is one of both."""
        family = FAMILIES["sdxl" if FAMILIES["sdxl"] in self.path else "sd15"]
        return "any mode" if self.mode == ANY else f"{self.mode}, {family}"

    def name_group(self) -> str:
        return next(group for group, words in PATHS.items() if any(word in self.path for word in words))


def read_cells(file: Path) -> list[Cell]:
    return [Cell(**values) for values in json.loads(file.read_text("utf-8"))] if file.exists() else []


def record(file: Path, new: Cell) -> None:
    """Put a cell into the file and make its page again; those of another commit of that WebUI are dropped."""
    same = (new.host, new.mode, new.path, new.flags)
    others = [
        cell
        for cell in read_cells(file)
        if (cell.host, cell.mode, cell.path, cell.flags) != same
        and (cell.host != new.host or cell.host_commit == new.host_commit)
    ]
    write_cells(file, [*others, new])


def write_cells(file: Path, cells: Iterable[Cell]) -> None:
    """One cell in a line, so that a diff shows what changed, and the page next to it."""
    cells = sorted(cells, key=lambda cell: (cell.host, _place(cell.mode), cell.path, cell.flags))
    lines = ",\n".join(json.dumps(asdict(cell), ensure_ascii=False) for cell in cells)
    file.write_text(f"[\n{lines}\n]\n", "utf-8")
    file.with_suffix(".md").write_text(make_page(cells), "utf-8")


def make_page(cells: Sequence[Cell]) -> str:
    """Two tables, of modes and of groups of paths; what failed; and which WebUIs these were."""
    run = [cell for cell in cells if cell.path != TOO_OLD]
    names = [name for name, _ in Counter(cell.name for cell in run).most_common()]
    page = HEAD
    modes = [*(f"{mode.name}, {FAMILIES[mode.family]}" for mode in MODES), "any mode"]
    for title, rows, name_row in (("mode", modes, Cell.name_mode), ("path", PATHS, Cell.name_group)):
        page += PATHS_HEAD if title == "path" else ""
        lines = [[title, *names], ["---"] * (1 + len(names))]
        for row in rows:
            own = [cell for cell in run if name_row(cell) == row]
            lines.append([row, *(_sum_up([c for c in own if c.name == name], title == "mode") for name in names)])
        page += "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if failed := [cell for cell in run if cell.outcome != "passed"]:
        page += "\n## What failed\n\n"
        for cell in failed:
            flags = f" `{cell.flags}`" if cell.flags else ""
            page += f"- {cell.name}: {cell.mode}, {cell.path}, {cell.date}, {cell.commit}{flags}\n"
    page += "\n## Which WebUIs\n\n"
    for name in names:
        own = [cell for cell in run if cell.name == name]
        flags = sorted({f"`{cell.flags}`" for cell in own if cell.flags})
        page += f"- {name}: {own[0].host}, commit {own[0].host_commit}"
        page += f"; some paths with {' or '.join(flags)}\n" if flags else "\n"
    for cell in cells:
        if cell not in run:
            page += f"- {cell.name}: {cell.host}, commit {cell.host_commit}; "
            page += f"too old, and the panel says so ({cell.outcome} {cell.date})\n"
    return page


def _sum_up(cells: Sequence[Cell], dated: bool) -> str:
    passed = [cell.date for cell in cells if cell.outcome == "passed"]
    if not cells:
        return "not run" if dated else "-"
    if len(passed) < len(cells):
        text = f"**{len(passed)} of {len(cells)}**"
    else:
        text = f"all {len(cells)}" if len(cells) > 1 else "passed"
    return f"{text}, {min(passed)}" if dated and passed else text


def name_checkout(folder: Path) -> tuple[str, str]:
    """A WebUI's repository as owner/name, with its branch if one is checked out; and its commit."""
    address = _git(folder, "remote", "get-url", "origin").removesuffix(".git")
    branch = _git(folder, "branch", "--show-current")
    return " ".join(filter(None, ["/".join(re.split("[/:]", address)[-2:]), branch])), name_commit(folder)


def name_commit(folder: Path) -> str:
    return _git(folder, "rev-parse", "--short=8", "HEAD")


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _place(mode: str) -> int:
    """Modes in their own order, then what holds for all."""
    names = [each.name for each in MODES]
    return names.index(mode) if mode in names else len(names)


if __name__ == "__main__":
    write_cells(Path(sys.argv[1]), read_cells(Path(sys.argv[1])))
