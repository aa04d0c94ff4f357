"""`layerdiffusion demo`: pictures of the words, and without --count sets of layers, a scene and sheets of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion import embedded
from lib_layerdiffusion.cli import demo
from lib_layerdiffusion.embedded.gallery import CAPTION_HEIGHT, GAP, contact_sheet
from tests.core.test_exports import read_ora, read_psd

pytestmark = pytest.mark.slow

FAST = ("--steps", 1, "--views", 1)
SIDE = 64  # of the tiny model's pictures


@pytest.fixture
def words(run: Any, scene_files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The words of the model that the demonstration takes: the tiny one with files of every mode."""
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    for file in scene_files.iterdir():
        shutil.copy(file, model / "layer_model")
    words = [*(f"thing {letter}" for letter in "abcdefghi"), "smoke", "rocket"]
    (model / "captions.json").write_text(json.dumps([{"caption": word, "kind": "opaque"} for word in words]))
    for module in (demo, embedded):
        monkeypatch.setattr(module, "EMBEDDED_FOLDER", model)
    return words


def test_so_many_words(run: Any, words: list[str], tmp_path: Path) -> None:
    asked = ("demo", *FAST, "--count", 10, "--out", tmp_path / "out")
    outcome = run(*asked)
    assert outcome.code == 0, outcome.err
    names = [path.name for path in outcome.paths]
    assert names == [*(f"1-{word.replace(' ', '-')}.png" for word in words[:10]), "contact-sheet.png"]
    assert "contact-sheet.png" in outcome.err
    first = {path: path.read_bytes() for path in outcome.paths}
    assert {path: path.read_bytes() for path in run(*asked).paths} == first


def test_all(run: Any, words: list[str], tmp_path: Path) -> None:
    outcome = run("demo", *FAST, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    made = {path.name: path for path in outcome.paths}
    assert all(path.is_file() for path in made.values())
    assert Image.open(made["backgrounds.png"]).size == sheet_size(
        3, 1
    )  # the model's only word that is half-transparent
    assert Image.open(made["scene.png"]).size == sheet_size(1, 5)
    for mode, layers in {
        "together": ["", "-background", "-blend"],
        "foreground_to_background": ["-background", "-blend"],
        "background_to_foreground": ["", "-blend"],
    }.items():
        assert {f"1-{mode}{layer}.png" for layer in layers} <= made.keys()
        assert Image.open(made[f"{mode}.png"]).size == sheet_size(1, 4)
        assert [name for name, *_ in read_psd(made[f"1-{mode}.psd"])[1]] == ["background", "foreground"]
    _, layers = read_psd(made["1-scene.psd"])
    assert [name for name, *_ in layers] == ["background", "snowman", "penguin", "glow"]
    assert [name for name, *_ in read_ora(made["1-scene.ora"])[1]] == [name for name, *_ in layers]
    with Image.open(made["1-scene-penguin.png"]) as image:
        assert "layerdiffusion_layer: penguin" in image.text["parameters"]
        penguin = np.asarray(image)
    with Image.open(made["1-snow.png"]) as given:  # so that the documented request can be given it, too
        assert (given.mode, given.size) == ("RGB", (SIDE, SIDE))
    _, (left, top), pixels = layers[2]
    height, width = pixels.shape[:2]
    assert np.array_equal(penguin[top : top + height, left : left + width, 3], pixels[..., 3])


def sheet_size(rows: int, columns: int) -> tuple[int, int]:
    return columns * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION_HEIGHT + GAP) + GAP


def test_a_contact_sheet_has_every_picture_in_its_place() -> None:
    pictures = [(f"a very long caption {i}", np.full((20, 30, 3), 10 * i, np.uint8)) for i in range(5)]
    sheet = contact_sheet(pictures, columns=2)
    found = [value for value in np.unique(sheet[..., 0]) if (sheet == value).all(2).sum() >= 600]
    assert set(found) >= {0, 10, 20, 30, 40}
    places = [np.argwhere((sheet == 10 * i).all(2)).min(0) for i in range(1, 5)]
    assert places[0][0] < places[1][0] == places[2][0] < places[3][0]
    assert places[1][1] < places[2][1]
