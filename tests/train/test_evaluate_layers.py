"""What the evaluation of layered pictures says where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lib_layerdiffusion.layers import Layer, LayerStack
from lib_layerdiffusion.modes import find_mode
from lib_layerdiffusion.train.dataset import Sprite, read_sprites, step_rng, unpremultiplied
from lib_layerdiffusion.train.evaluate_layers import (
    Layered,
    find_layer_modes,
    is_clean,
    judge_layers,
    judge_pairs,
    list_pairs,
    summarise_layers,
)
from lib_layerdiffusion.train.scenes import Placement, Scene, compose

COLOURS = {"lawn": (30, 180, 50), "sea": (20, 60, 200)}
BACKGROUNDS = [Sprite(name, name, np.full((64, 64, 4), (*colour, 255), np.uint8)) for name, colour in COLOURS.items()]


@pytest.fixture(scope="module")
def words(archive: Path) -> list[Sprite]:
    return [sprite for sprite in read_sprites(archive, 64) if sprite.prompt]


@pytest.fixture
def scene(words: list[Sprite]) -> Scene:
    background = (BACKGROUNDS[0].rgba[..., :3] / 255).astype(np.float32)
    return compose(words[0], background, "lawn", Placement(shadow=0, scale=(0.6, 0.6)), step_rng(0, 0))


def opaque(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.dstack([np.round(pixels * 255).astype(np.uint8), np.full(pixels.shape[:2], 255, np.uint8)])


def stack(scene: Scene, **changed: NDArray[np.uint8]) -> LayerStack:
    images = {
        "background": opaque(scene.background),
        "foreground": unpremultiplied(scene.foreground),
        "blend": opaque(scene.blend),
    }
    layers = tuple(Layer(role, image, role) for role, image in (images | changed).items())  # type: ignore[arg-type]
    return LayerStack(layers, (64, 64))


def test_true_scene_is_good_in_every_way(scene: Scene, words: list[Sprite]) -> None:
    for mode, kept in (("together", False), ("background_to_foreground", True), ("foreground_to_background", True)):
        row = judge_layers(stack(scene), find_mode(mode, "sd15"), scene, 3, words, BACKGROUNDS)
        assert (row.foreground, row.background, row.seed) == ("red disc", "lawn", 3)
        assert row.foreground_is_faithful
        assert row.background_is_faithful
        assert row.clean_outside
        assert row.disagreement == pytest.approx(0, abs=0.005)
        assert (row.kept is not None) == kept
        assert row.kept is None or row.kept < 0.005


def test_other_blend_disagrees_and_other_background_is_seen(scene: Scene, words: list[Sprite]) -> None:
    lighter = stack(scene, blend=opaque(np.clip(scene.blend + 0.1, 0, 1)))
    row = judge_layers(lighter, find_mode("background_to_foreground", "sd15"), scene, 0, words, BACKGROUNDS)
    assert row.disagreement == pytest.approx(0.1, abs=0.02)
    assert row.kept == pytest.approx(0.1, abs=0.01)
    sea = stack(scene, background=BACKGROUNDS[1].rgba)
    row = judge_layers(sea, find_mode("together", "sd15"), scene, 0, words, BACKGROUNDS)
    assert row.background_is_faithful is False
    assert row.disagreement is not None
    assert row.disagreement > 0.1


def test_covered_foreground_is_not_kept(scene: Scene, words: list[Sprite]) -> None:
    hidden = stack(scene, blend=opaque(scene.background))
    row = judge_layers(hidden, find_mode("foreground_to_background", "sd15"), scene, 0, words, BACKGROUNDS)
    assert row.kept is not None
    assert row.kept > 0.2


def test_a_foreground_without_opaque_pixels_has_no_measure_of_being_kept(scene: Scene, words: list[Sprite]) -> None:
    smoke = replace(scene, foreground=scene.foreground * np.float32(0.5))
    mode = find_mode("foreground_to_background", "sd15")
    assert judge_layers(stack(smoke), mode, smoke, 0, words, BACKGROUNDS).kept is None


def test_second_motif_far_away_is_not_clean() -> None:
    alpha = np.zeros((64, 64), np.uint8)
    assert is_clean(alpha)
    alpha[4:24, 4:24] = 255
    alpha[24:30, 4:24] = 90  # a soft rim
    assert is_clean(alpha)
    alpha[44:60, 44:60] = 200
    assert not is_clean(alpha)
    ghost = np.zeros((64, 64), np.uint8)
    ghost[10:54, 10:54] = 120
    ghost[14:18, 14:18] = 255  # the eye belongs to the ghost
    assert is_clean(ghost)


def test_pairs_are_fixed_and_spread() -> None:
    words, behind = [f"w{n}" for n in range(26)], [f"b{n}" for n in range(16)]
    pairs = list_pairs(words, behind)
    assert pairs == list_pairs(words, behind)
    assert len(set(pairs)) == 60
    assert {word for word, _ in pairs} == set(words)
    assert {background for _, background in pairs} == set(behind)
    assert list_pairs(["w"], ["b", "c"]) == [("w", "b"), ("w", "c")]


def test_true_pairs_are_good_with_every_seed(words: list[Sprite]) -> None:
    asked: list[tuple[str, str, int]] = []

    def make(scene: Scene, seed: int) -> LayerStack:
        asked.append((scene.texts["foreground"], scene.texts["background"], seed))
        assert scene.blend.shape == (64, 64, 3)
        return stack(scene)

    rows = judge_pairs(make, find_mode("together", "sd15"), words, BACKGROUNDS, 64, range(5, 7))
    assert [(row.foreground, row.background, row.seed) for row in rows] == asked
    names = list(dict.fromkeys(sprite.text for sprite in words))
    assert set(asked) == {(word, behind, seed) for word in names for behind in COLOURS for seed in (5, 6)}
    assert all(row.foreground_is_faithful and row.background_is_faithful for row in rows)


def test_summary_leaves_out_what_a_mode_has_not() -> None:
    rows = [Layered("a", "b", 0, None, True, None, 0.1, None), Layered("a", "b", 1, None, False, None, 0.3, None)]
    assert summarise_layers(rows) == {"images": 2, "background_is_faithful": 0.5, "kept": pytest.approx(0.2)}


def test_modes_are_those_whose_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "layer_model").mkdir()
    assert find_layer_modes(tmp_path) == []
    (tmp_path / "layer_model" / "layer_sd15_joint.safetensors").write_bytes(b"")
    assert [mode.name for mode in find_layer_modes(tmp_path)] == ["together"]
