"""`layerdiffusion scene`: files by layer, the library's bytes, Ctrl-C, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion import layer_scene
from lib_layerdiffusion.cli import commands
from lib_layerdiffusion.edges import Edges, clean_edges
from tests.cli.conftest import Runner, load_intact
from tests.core.test_exports import read_ora, read_psd

pytestmark = pytest.mark.slow

TWO = ("--background", "a table", "--foregrounds", "an apple", "a glass")
SEED = ("--seed", 5)


class Scenes:
    """Runs the command with the tiny model."""

    def __init__(self, run: Runner, files: Path) -> None:
        self.run, self.files = run, files

    def __call__(self, *words: object) -> Any:
        quick = ("--steps", 2, "--views", 1, "--offline", "--weights", self.files)
        return self.run("scene", "--model", self.run.model, *quick, *words)


@pytest.fixture
def scene(run: Runner, scene_files: Path) -> Scenes:
    return Scenes(run, scene_files)


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


def test_a_scene_is_written_as_the_library_makes_it(scene: Scenes, scene_files: Path, tmp_path: Path) -> None:
    wanted = ("layers", "recomposite", "blend", "psd", "ora")
    done = scene("oil", *TWO, *SEED, "--out", tmp_path, "--outputs", *wanted)
    assert done.code == 0, done.err
    layers = ["background", "an-apple", "a-glass"]
    names = [*layers, "recomposite", "blend-with-an-apple", "blend-with-a-glass"]
    expected = [f"5-a-table-{name}.png" for name in names] + ["5-a-table.psd", "5-a-table.ora"]
    assert [path.name for path in done.paths] == expected
    made = layer_scene(
        load_intact(scene.run.model),
        "oil",
        weights=commands._store(_arguments(scene)),
        seed=5,
        steps=2,
        views=1,
        background="a table",
        foregrounds=["an apple", "a glass"],
        outputs=wanted,
    )
    for path, (_, image) in zip(done.paths, made.pictures(wanted), strict=False):
        assert np.array_equal(pixels(path), image)
    for rows in (read_ora(done.paths[-1])[1], read_psd(done.paths[-2])[1]):
        assert [name for name, _, _ in rows] == ["background", "an apple", "a glass"]
        for (_, _, image), layer in zip(rows, made.stack.layers, strict=True):
            assert np.array_equal(image, layer.image)
    text = Image.open(done.paths[1]).info["parameters"]
    assert text == f"{made.stack.infotext}, layerdiffusion_layer: an apple"


def test_edges_of_the_foregrounds_are_cleaned(scene: Scenes, tmp_path: Path) -> None:
    words = ("--background", "a table", "--foregrounds", "an apple", *SEED, "--outputs", "layers")
    plain = scene(*words, "--out", tmp_path / "plain").paths
    hard = scene(*words, "--threshold", 0.5, "--defringe", "grey", "--out", tmp_path / "hard").paths
    assert np.array_equal(pixels(hard[0]), pixels(plain[0]))
    wanted = clean_edges(pixels(plain[1]), Edges(threshold=0.5, defringe="grey"))
    assert np.array_equal(pixels(hard[1]), wanted)
    assert not np.array_equal(wanted, pixels(plain[1]))


def _arguments(scene: Scenes) -> Any:
    from argparse import Namespace

    return Namespace(model=str(scene.run.model), weights=scene.files, offline=True)


def test_one_foreground_takes_one_pass(scene: Scenes, tmp_path: Path) -> None:
    done = scene("--background", "a table", "--foregrounds", "an apple", *SEED, "--out", tmp_path)
    assert [path.name for path in done.paths] == [
        f"5-a-table-{name}.png" for name in ("background", "an-apple", "recomposite")
    ]


def test_given_images_are_layers(scene: Scenes, pictures: Path, tmp_path: Path) -> None:
    given = ("--background-image", pictures / "rgb.jpg")
    done = scene(*given, "--foregrounds", "an apple", *SEED, "--outputs", "layers", "--out", tmp_path)
    assert [path.name for path in done.paths] == ["5-scene-background.png", "5-scene-an-apple.png"]


def test_interrupted_in_the_second_pass_the_first_is_written(
    scene: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = scene(*TWO, *SEED, "--out", tmp_path / "whole")
    pipe = load_intact(scene.run.model)
    step, steps = pipe.scheduler.step, []

    def interrupted(*args: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(*args, **named)

    monkeypatch.setattr(pipe.scheduler, "step", interrupted)
    done = scene(*TWO, *SEED, "--out", tmp_path / "part")
    assert done.code == 130
    (path,) = done.paths
    assert path.read_bytes() == whole.paths[0].read_bytes()
    assert "background kept, an apple, a glass not made" in caplog.text


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--background", "a"), "needs a foreground"),
        (("--foregrounds", "a"), "needs a background"),
        (("--background", "a", "--foregrounds", *"bcdefghij"), "at most 8 foregrounds, not 9"),
        ((*TWO, "--first", "last"), "first can't be 'last'"),
        ((*TWO, "--outputs", "rgba"), "outputs can't be 'rgba'"),
        ((*TWO, "--foreground", "x"), "mbiguous option: --foreground could match"),
    ],
)
def test_what_cannot_be_made_is_refused(scene: Scenes, tmp_path: Path, words: Any, match: str) -> None:
    done = scene(*words, "--out", tmp_path / "out")
    assert done.code == 2
    assert match in done.err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(run: Runner, tmp_path: Path) -> None:
    done = run("scene", "--model", run.model, "--offline", *TWO, "--out", tmp_path / "out")
    assert done.code == 2
    assert "layer_sd15_bg2fg" in done.err
    assert not (tmp_path / "out").exists()
