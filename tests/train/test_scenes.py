"""Layered pictures: what is drawn, what is given, and their captions."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.dataset import Sprite, step_rng
from lib_layerdiffusion.train.measures import find_box
from lib_layerdiffusion.train.scenes import PLAIN, Placement, SceneSource, compose, read_scenes
from tests.train.tiny import draw_disc, png

RED = Sprite("red.png", "red disc", draw_disc(64, (220, 20, 20), 1.0), prompt=True)
LAWN = np.full((48, 48, 3), (0.1, 0.7, 0.2), np.float32)


def plain(width: int, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.dstack([np.full((height, width, 3), colour, np.uint8), np.full((height, width), 255, np.uint8)])


def test_blend_is_the_foreground_over_the_background() -> None:
    scene = compose(RED, LAWN, "lawn", Placement(shadow=0), step_rng(0, 0))
    alpha = scene.foreground[..., 3:]
    assert np.allclose(scene.blend, scene.foreground[..., :3] + LAWN * (1 - alpha), atol=1e-6)
    assert np.array_equal(scene.background, LAWN)
    assert 0.05 < (alpha > 0.5).mean() < 0.6
    assert (scene.texts["foreground"], scene.texts["background"]) == ("red disc", "lawn")
    assert scene.texts["blend"] in ("red disc, lawn", "red disc in front of lawn")


def test_shadow_darkens_the_blend_alone() -> None:
    darker = 0
    for step in range(8):
        scene = compose(RED, LAWN, "lawn", Placement(shadow=1), step_rng(0, step))
        recomposite = scene.foreground[..., :3] + scene.background * (1 - scene.foreground[..., 3:])
        difference = recomposite - scene.blend
        assert difference.min() > -1e-6
        assert difference.max() > 0.02
        assert difference.mean() < 0.06
        darker += int(difference[24:].sum() > difference[:24].sum())
    assert darker >= 6  # below rather than above


def test_foreground_stays_inside_the_picture() -> None:
    boxes = []
    for step in range(30):
        foreground = compose(RED, LAWN, "lawn", Placement(), step_rng(1, step)).foreground
        box = find_box(foreground[..., 3], 0.5)
        assert box is not None
        assert min(box[:2]) > 0
        assert max(box[2:]) < 48
        boxes.append(box)
    heights = [bottom - top for top, _, bottom, _ in boxes]
    assert max(heights) > 1.4 * min(heights)


def test_scenes_are_drawn_from_the_captions_own_images() -> None:
    blue = Sprite("blue.png", "blue disc", draw_disc(64, (20, 20, 220), 1.0), prompt=True)
    behind = [Sprite("sea.png", "sea", plain(60, 60, (0, 0, 90)))]
    source = SceneSource([RED, blue], behind)
    assert source.captions == ["red disc", "blue disc"]
    scene = source.draw("blue disc", 32, Placement(), step_rng(0, 0))
    inside = scene.foreground[scene.foreground[..., 3] > 0.99]
    assert (inside[:, 2] > inside[:, 0]).all()
    assert scene.texts["background"] == "sea"
    without = SceneSource([RED]).draw("red disc", 32, Placement(), step_rng(0, 0))
    assert without.texts == {"foreground": "red disc", "background": PLAIN, "blend": "red disc"}


def write_scenes(path: Path, rows: list[dict[str, str]], files: dict[str, np.ndarray]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, pixels in files.items():
            archive.writestr(name, png(pixels))
        archive.writestr("metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    return path


def test_given_files_stay_together(tmp_path: Path) -> None:
    half = draw_disc(64, (220, 20, 20), 1.0)
    half[:, :32, 3] = 0  # the right half of a disc
    row = {"foreground": "f.png", "background": "b.png", "blend": "both.png", "foreground_text": "half disc"}
    files = {"f.png": half, "b.png": plain(64, 64, (0, 90, 0)), "both.png": plain(64, 64, (90, 90, 0))}
    source = read_scenes(write_scenes(tmp_path / "a.zip", [row], files), None, 16, only_prompts=True)
    assert source.captions == ["half disc"]
    sides = set()
    for step in range(12):
        scene = source.draw("half disc", 16, Placement(), step_rng(0, step))
        assert scene.texts == {"foreground": "half disc", "background": "b", "blend": "both"}
        assert scene.foreground.shape == (16, 16, 4)
        assert np.allclose(scene.background, (0, 90 / 255, 0), atol=1e-3)
        assert np.allclose(scene.blend, (90 / 255, 90 / 255, 0), atol=1e-3)
        sides.add(bool(scene.foreground[:, 8:, 3].sum() > scene.foreground[:, :8, 3].sum()))
    assert sides == {True, False}


def test_held_out_scenes_are_not_trained_on(tmp_path: Path) -> None:
    row = {"background": "b.png", "blend": "b.png"}
    files = {"b.png": plain(8, 8, (0, 0, 0)), **{f"f{n}.png": plain(8, 8, (n, 0, 0)) for n in range(13)}}
    rows = [row | {"foreground": f"f{n}.png"} for n in range(13)]
    every = read_scenes(write_scenes(tmp_path / "a.zip", rows, files), None, 4, only_prompts=False)
    assert every.captions == [f"f{n}" for n in range(1, 12)]
    rows = [row | {"foreground": f"f{n}.png", "split": "held-out" if n == 1 else "train"} for n in range(3)]
    named = read_scenes(write_scenes(tmp_path / "b.zip", rows, files), None, 4, only_prompts=False)
    assert named.captions == ["f0", "f2"]


def test_missing_layer_is_refused_by_line(tmp_path: Path) -> None:
    files = {"f.png": plain(8, 8, (0, 0, 0))}
    path = write_scenes(tmp_path / "a.zip", [{"foreground": "f.png", "background": "gone.png"}], files)
    with pytest.raises(Refusal, match=r"Line 1 of metadata\.jsonl has no file as background"):
        read_scenes(path, None, 4, only_prompts=False)


def test_images_are_put_over_a_folder_of_pictures(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "behind").mkdir()
    (tmp_path / "behind" / "old_town.png").write_bytes(png(plain(90, 60, (120, 60, 0))))
    source = read_scenes(archive, tmp_path / "behind", 32, only_prompts=True)
    assert source.captions == ["red disc", "blue disc", "glass disc"]
    assert len(read_scenes(archive, None, 32, only_prompts=False).captions) == 4
    scene = source.draw("glass disc", 32, Placement(shadow=0), step_rng(0, 0))
    assert scene.texts["background"] == "old town"
    assert np.ptp(scene.background, axis=(0, 1)).max() < 1e-6
    assert scene.background[0, 0].argmax() == 0
