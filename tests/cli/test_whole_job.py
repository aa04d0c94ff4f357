"""`generate` puts all its transparent pictures on a sheet and into an animation."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lib_layerdiffusion.cli import build_parser
from lib_layerdiffusion.export import animation
from lib_layerdiffusion.export.atlas import AtlasOptions
from lib_layerdiffusion.options import LayerOptions
from tests.core.test_atlas import cut_out

pytest.importorskip("rectpack")
pytestmark = pytest.mark.slow


def read(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path))


def test_commands_library_and_options_have_the_same_defaults() -> None:
    flags = vars(build_parser().parse_args(["atlas", "a.png"]))
    assert {each.name: flags[each.name] for each in fields(AtlasOptions)} == {
        each.name: each.default for each in fields(AtlasOptions)
    }
    assert AtlasOptions.of(LayerOptions()) == AtlasOptions()
    flags = vars(build_parser().parse_args(["animate", "a.png"]))
    assert (flags["format"], flags["fps"]) == (LayerOptions.animation_format, LayerOptions.animation_fps)
    assert animation.write.__defaults__ == (LayerOptions.animation_fps, 0)


def test_every_picture_of_every_prompt_is_on_them(run: Any, tmp_path: Path) -> None:
    words = ["--atlas", "--no-atlas-trim", "--atlas-padding", 3, "--animation", "--animation-format", "webp"]
    outcome = run.generate("a cat", "a dog", "--seed", 7, "--batch", 2, *words, "--out", tmp_path)

    assert outcome.code == 0, outcome.err
    pictures, added = outcome.paths[:4], outcome.paths[4:]
    assert [path.name for path in added] == ["7-a-cat-sheet.png", "7-a-cat-sheet.json", "7-a-cat-animation.webp"]
    assert sorted(outcome.paths) == sorted(tmp_path.iterdir())
    about = json.loads(added[1].read_text("utf-8"))
    assert list(about["frames"]) == [path.name for path in pictures]
    for path in pictures:
        assert np.array_equal(cut_out(read(added[0]), about["frames"][path.name]), read(path))
    assert about["frames"]["7-a-cat.png"]["frame"] == {"x": 3, "y": 3, "w": 64, "h": 64}
    with Image.open(added[2]) as image:
        frames = [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]
    for frame, path in zip(frames, pictures, strict=True):
        visible = read(path)[..., 3] > 0
        assert np.array_equal(frame[visible], read(path)[visible])


def test_again_nothing_is_replaced(run: Any, tmp_path: Path) -> None:
    words = ["a cat", "--seed", 7, "--atlas", "--animation", "--out", tmp_path]
    first = {path: path.read_bytes() for path in run.generate(*words).paths}
    second = run.generate(*words).paths

    assert [path.name for path in second] == [
        "7-a-cat-2.png",
        "7-a-cat-2-sheet.png",
        "7-a-cat-2-sheet.json",
        "7-a-cat-2-animation.png",
    ]
    assert {path: path.read_bytes() for path in first} == first


def test_without_them_no_file_is_added(run: Any, tmp_path: Path) -> None:
    plain = run.generate("a cat", "--seed", 7, "--out", tmp_path / "plain").paths
    with_them = run.generate("a cat", "--seed", 7, "--atlas", "--out", tmp_path / "with").paths
    assert [path.name for path in plain] == ["7-a-cat.png"]
    assert plain[0].read_bytes() == with_them[0].read_bytes()


def test_layers_that_are_not_written_are_on_them(run: Any, joint_files: Path, tmp_path: Path) -> None:
    words = ["--mode", "together", "--weights", joint_files, "--outputs", "background", "--atlas"]
    outcome = run.generate("a cat", "--seed", 7, *words, "--out", tmp_path)

    assert [path.name for path in outcome.paths] == [
        "7-a-cat-background.png",
        "7-a-cat-sheet.png",
        "7-a-cat-sheet.json",
    ], outcome.err
    assert list(json.loads(outcome.paths[2].read_text("utf-8"))["frames"]) == ["7-a-cat.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mode", "foreground_to_background", "--foreground", "a.png", "--animation"], "makes no transparent pic"),
        (["--prompts", "table.txt", "--atlas"], "A table's rows are made on their own, so there is no sheet"),
        (["--prompts", "table.csv"], "There is no column 'atlas'"),
        (["--atlas-padding", "1.5"], "atlas_padding must be a whole number from 0 to 64, not 1.5"),
    ],
    ids=str,
)
def test_what_makes_none_is_refused(words: list[str], sentence: str, run: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (64, 64)).save("a.png")
    Path("table.txt").write_text("a cat\n")
    Path("table.csv").write_text("prompt,atlas\na cat,True\n")
    prompts = [] if "--prompts" in words else ["a cat"]
    outcome = run.generate(*prompts, *words)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert not Path("outputs").exists()


def test_without_the_package_it_is_refused_before_the_model_is_loaded(run: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "rectpack", None)
    outcome = run("generate", "a cat", "--model", tmp_path / "none", "--atlas", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "install it with `pip install rectpack`" in outcome.err
    assert not (tmp_path / "out").exists()


def test_what_fails_costs_no_picture(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    words = ["--atlas", "--no-atlas-trim", "--atlas-max-side", 32, "--animation", "--seed", 7, "--out", tmp_path]
    outcome = run.generate("a cat", *words)
    assert outcome.code == 2
    assert "which doesn't fit on a sheet of 32x32" in outcome.err
    assert [path.name for path in outcome.paths] == ["7-a-cat.png", "7-a-cat-animation.png"]
