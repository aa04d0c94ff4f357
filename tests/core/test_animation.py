"""Animations keep colour and alpha of each frame, its time, and the order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from lib_layerdiffusion.cli import main
from lib_layerdiffusion.export import animation, png
from lib_layerdiffusion.refusal import Refusal

Bytes = NDArray[np.uint8]


def draw_frames(count: int) -> list[Bytes]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (12, 17, 4)).astype(np.uint8) for _ in range(count)]


def show(frame: Bytes) -> bytes:
    """A frame's bytes without the colour of invisible pixels."""
    return np.where(frame[..., 3:] > 0, frame, 0).tobytes()


def read_frames(path: Path) -> tuple[list[Bytes], list[float]]:
    with Image.open(path) as image:
        pairs = [(np.asarray(each.convert("RGBA")), each.info["duration"]) for each in ImageSequence.Iterator(image)]
    return [frame for frame, _ in pairs], [duration for _, duration in pairs]


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_frames_come_back_as_they_are_seen(kind: str, tmp_path: Path) -> None:
    frames = draw_frames(5)

    animation.write(frames, tmp_path / f"a.{kind}", fps=20)

    made, durations = read_frames(tmp_path / f"a.{kind}")
    assert len(made) == 5
    assert [show(frame) for frame in made] == [show(frame) for frame in frames]
    assert durations == pytest.approx([50] * 5)


def test_command_line_takes_the_images_of_a_folder_in_order(tmp_path: Path, capsys: Any) -> None:
    frames = draw_frames(12)
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(frames, start=1):
        png.write(frame, tmp_path / "in" / f"{number}.png")

    assert main(["animate", str(tmp_path / "in"), "--format", "webp", "--out", str(tmp_path)]) == 0

    made, _ = read_frames(Path(capsys.readouterr().out.strip()))
    assert [show(frame) for frame in made] == [show(frame) for frame in frames]


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_again_in_its_own_folder_it_takes_the_same_frames(kind: str, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    frames = draw_frames(3)
    for number, frame in enumerate(frames, start=1):
        png.write(frame, tmp_path / f"walk-{number}.png")  # names that the animation might have, too
    words = ["animate", str(tmp_path), "--name", "walk", "--format", kind, "--out", str(tmp_path)]
    assert main(words) == 0
    caplog.set_level("INFO")
    capsys.readouterr()

    assert main(words) == 0

    made, _ = read_frames(Path(capsys.readouterr().out.strip()))
    assert [show(frame) for frame in made] == [show(frame) for frame in frames]
    assert f"walk.{kind}." in caplog.text


@pytest.mark.parametrize(
    ("frames", "name", "sentence"),
    [
        ([], "a.png", "There is no image to animate"),
        (draw_frames(1), "a.gif", "There is no animation .gif: name the file .png or .webp"),
        ([*draw_frames(1), np.zeros((3, 4, 4), np.uint8)], "a.png", "Image 2 is 4x3 and the first 17x12"),
    ],
)
def test_what_can_not_be_animated_is_refused(frames: Any, name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=sentence):
        animation.write(frames, tmp_path / name)
    assert not list(tmp_path.iterdir())
