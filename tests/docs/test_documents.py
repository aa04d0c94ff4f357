"""README, CONTRIBUTING and docs/: links lead somewhere, commands parse, and what is named is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest

from lib_layerdiffusion.cli import build_parser
from lib_layerdiffusion.modes import MODE_NAMES, MODES, any_row
from lib_layerdiffusion.weights import WEIGHTS
from lib_layerdiffusion.weights.header import describe_bytes

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
DELEGATED = ("train", "harmlessness", "webui")  # they parse their own words


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(path: Path) -> list[str]:
    """The lines of a document's shell examples, continued ones joined, comments left out."""
    text = "\n".join(re.findall(r"^```(?:sh|bash|bat)\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE))
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for found in LINK.finditer(document.read_text("utf-8")):
        target, _, anchor = unquote(found[1] or found[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_are_understood(document: Path) -> None:
    for line in shell_lines(document):
        words = shlex.split(line, comments=True)
        if words[:1] == ["layerdiffusion"] and words[1] not in DELEGATED and "--help" not in words and "|" not in words:
            build_parser().parse_args(words[1:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_make_targets_and_extras_are_there(document: Path) -> None:
    text = document.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)) <= targets
    _, _, below = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]\n")
    extras = set(re.findall(r"^(\w+) = \[", below.partition("\n[")[0], re.MULTILINE))
    for found in re.findall(r"-e \"?\.\[([a-z0-9,]+)\]", text):
        assert set(found.split(",")) <= extras


def test_files_that_contributing_and_architecture_name_are_there() -> None:
    for document in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"):
        named_in = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|json|yml|txt))`", document.read_text("utf-8"))
        for named in [each for each in named_in if "NAME" not in each]:
            places = (ROOT, ROOT / "lib_layerdiffusion", ROOT / "docs")
            assert any((place / named).exists() for place in places), f"{name(document)}: {named}"


def test_the_readme_shows_every_mode() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for mode in MODE_NAMES:
        assert f"**{any_row(mode).label}**" in text


def test_the_page_of_modes_names_every_file_with_its_size() -> None:
    text = (ROOT / "docs" / "modes.md").read_text("utf-8")
    for mode in MODES:
        assert f"| `{mode.name}` |" in text
        assert f"`{mode.file}`, {describe_bytes(WEIGHTS[mode.file].size)} |" in text


def test_pre_commit_has_the_versions_of_the_constraints() -> None:
    pinned = re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    hooks = re.findall(r"(ruff|codespell)==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert set(hooks) == {each for each in pinned if each[0] in ("ruff", "codespell")}
