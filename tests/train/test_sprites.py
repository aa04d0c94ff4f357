"""The training archive of the embedded model, made from two tiny packages."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train import sceneries, sprites
from lib_layerdiffusion.train.dataset import read_sprites
from tests.train.tiny import draw_disc

pytestmark = pytest.mark.slow

EMOJI = {
    "🐶": "dog face",
    "🔥": "fire",
    "🧊": "ice",
    "👻": "ghost",
    "❤️": "red heart",
    "🌅": "sunrise",
    **{chr(0x1F400 + n): f"animal: {n}" for n in range(6)},
    "🍎": "red apple",  # the thirteenth, but a prompt
    **{chr(0x1F400 + n): f"animal: {n}" for n in range(6, 18)},
}
ELSEWHERE = {"🇫🇷": "flag: France", "😀": "grinning face"}


def write_package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(sprites, "VARIANTS", 5)
    table = {emoji: {"name": name, "group": "Animals & Nature"} for emoji, name in EMOJI.items()}
    table["❤️"]["group"] = table["👻"]["group"] = "Smileys & Emotion"
    table |= {emoji: {"name": name, "group": "Flags"} for emoji, name in ELSEWHERE.items()}
    table["🦖"] = {"name": "T-Rex", "group": "Animals & Nature"}  # which has no picture
    pictures: dict[str, bytes] = {}
    for emoji in {**EMOJI, **ELSEWHERE}:
        buffer = io.BytesIO()
        Image.fromarray(draw_disc(16, (200, 40, 40), 1.0)).save(buffer, "WEBP", lossless=True)
        pictures[f"assets/{'-'.join(f'{ord(c):x}' for c in emoji)}.webp"] = buffer.getvalue()
    names = write_package(tmp_path / "names.tgz", {"data-by-emoji.json": json.dumps(table).encode()})
    return [write_package(tmp_path / "fluent.tgz", pictures), names]


def make(packages: list[Path], out: Path) -> Path:
    words = ["--fluent", str(packages[0]), "--names", str(packages[1]), "--out", str(out)]
    assert sprites.main(words) == 0
    return out


def test_archive_is_the_same_byte_for_byte_and_can_be_read(packages: list[Path], tmp_path: Path) -> None:
    first, second = (make(packages, tmp_path / f"{n}.zip") for n in range(2))
    assert first.read_bytes() == second.read_bytes()
    read = {sprite.name: sprite for sprite in read_sprites(first)}
    assert len(read) == len(EMOJI) + 5 * 7
    assert read["red_heart.png"].text == "red heart"  # with its variation selector, from another group
    assert read["red_heart.png"].prompt
    assert "T-Rex.png" not in read
    assert not any("flag" in name or "grinning" in name for name in read)


def test_backgrounds_are_full_pictures_with_captions(packages: list[Path], tmp_path: Path) -> None:
    words = ["--fluent", str(packages[0]), "--names", str(packages[1]), "--out", str(tmp_path / "a.zip")]
    assert sprites.main([*words, "--backgrounds", str(tmp_path / "b.zip")]) == 0
    read = read_sprites(tmp_path / "b.zip", 64, cover=True)
    assert {sprite.text for sprite in read} == {"sunrise", *sceneries.DRAWN}
    assert all((sprite.rgba[..., 3] == 255).all() for sprite in read)
    by_text = {text: [s.rgba for s in read if s.text == text] for text in sceneries.DRAWN}
    assert all(len(variants) == 5 and np.ptp(np.stack(variants), axis=0).any() for variants in by_text.values())
    assert {sprite.split for sprite in read if sprite.text == "sunrise"} == {"train"}
    assert [sprite.split for sprite in read if sprite.text == "sea"] == ["train", *["held-out"] * 4]


def test_frame_is_cropped_inside_its_corners() -> None:
    framed = np.zeros((200, 200, 4), np.uint8)
    framed[30:180, 20:170] = (200, 0, 0, 255)  # the frame's rim
    framed[36:174, 26:164] = (0, 200, 0, 255)
    for corner in np.s_[30:40, 20:30], np.s_[170:180, 160:170]:
        framed[corner] = 0
    cropped = sceneries.crop_frame(framed)
    assert cropped.shape == (sceneries.SIZE, sceneries.SIZE, 4)
    assert (cropped == (0, 200, 0, 255)).all()


def test_held_out_sprites_are_others_and_no_prompts(packages: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(make(packages, tmp_path / "a.zip")) as archive:
        rows = [json.loads(line) for line in archive.read("metadata.jsonl").decode().splitlines()]
        pixels = {row["file_name"]: archive.read(row["file_name"]) for row in rows}
    held_out = [row for row in rows if row["split"] == "held-out"]
    emoji = {row["file_name"] for row in held_out if row["kind"] == "opaque"}
    assert emoji == {"dog_face.png", "animal_17.png"}  # each twelfth, counted from the first
    drawn = [row for row in held_out if row["file_name"] not in emoji]
    assert len(drawn) == 4 * 7
    assert all(row["kind"] == "soft" for row in drawn)
    trained = {pixels[row["file_name"]] for row in rows if row["split"] == "train" and row["kind"] == "soft"}
    assert not trained & {pixels[row["file_name"]] for row in drawn}


def test_glassy_emoji_are_soft_and_keep_their_colour(packages: list[Path], tmp_path: Path) -> None:
    read = {sprite.name: sprite for sprite in read_sprites(make(packages, tmp_path / "a.zip"))}
    apple = read["red_apple.png"].rgba
    assert read["red_apple.png"].kind == "opaque"
    inside = apple[..., 3] == 255
    assert inside.sum() > 1000
    for name in ("fire.png", "ice.png", "ghost.png"):
        assert read[name].kind == "soft"
        assert np.abs(read[name].rgba[inside][:, :3].astype(int) - apple[inside][:, :3]).max() <= 1
        alpha = read[name].rgba[inside][:, 3]
        assert 0.2 * 255 < alpha.mean() < 0.99 * 255
        assert (read[name].rgba[apple[..., 3] == 0][:, 3] == 0).all()


def test_broken_or_wrong_package_is_refused(packages: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(Refusal, match="holds no data-by-emoji"):
        make([packages[1], packages[0]], tmp_path / "a.zip")
    for path in (tmp_path / "broken.tgz", tmp_path / "absent.tgz"):
        with pytest.raises(Refusal, match="can't be read"):
            make([path, packages[1]], tmp_path / "a.zip")
