"""Reading of data sets, augmentation and the batches of the latent transparency training."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train import dataset
from lib_layerdiffusion.train.dataset import (
    Augmentation,
    Sprite,
    TransparentBatch,
    augment,
    draw_fade,
    find_prompts,
    read_sprites,
    split_sprites,
    step_rng,
)
from tests.train.tiny import draw_disc, png


def test_archive_gives_captions_kinds_and_splits(archive: Path) -> None:
    sprites = {sprite.text: sprite for sprite in read_sprites(archive, 32)}
    assert set(sprites) == {"red disc", "blue disc", "glass disc", "grey disc", "pink disc", "mist"}
    assert sprites["mist"].split == "held-out"
    assert sprites["glass disc"].kind == "soft"
    assert not sprites["grey disc"].prompt
    assert all(sprite.rgba.shape == (32, 32, 4) for sprite in sprites.values())


def test_folder_takes_captions_from_texts_and_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(png(draw_disc(8, (9, 9, 9), 1)))
    (tmp_path / "sub" / "a.txt").write_text("a small disc\n", encoding="utf-8")
    (tmp_path / "red_disc.png").write_bytes(png(draw_disc(8, (200, 0, 0), 1)))
    (tmp_path / "._red_disc.png").write_bytes(b"what an archiver leaves")
    assert [sprite.text for sprite in read_sprites(tmp_path, 8)] == ["red disc", "a small disc"]


def test_metadata_decides_which_images_belong(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(draw_disc(8, (9, 9, 9), 1)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}\n\n', encoding="utf-8")
    assert [sprite.name for sprite in read_sprites(tmp_path, 8)] == ["b.png"]


def test_image_that_is_not_square_is_centred(tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(png(np.full((10, 20, 4), 255, np.uint8)))
    (sprite,) = read_sprites(tmp_path, 20)
    assert (sprite.rgba[5:15, :, 3] == 255).all()
    assert (sprite.rgba[[0, 4, 15, 19], :, 3] == 0).all()


def test_resizing_lets_no_invisible_colour_in(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png(draw_disc(64, (200, 0, 0), 1)))
    (sprite,) = read_sprites(tmp_path, 20)
    edge = (sprite.rgba[..., 3] > 20) & (sprite.rgba[..., 3] < 235)
    assert edge.any()
    assert sprite.rgba[edge][:, 1].max() <= 12  # green surrounds the disc


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.png": b"no image"}, "a.png is not an image that can be read"),
        ({"readme.md": b"x"}, "holds no"),
        ({"a.png": png(draw_disc(8, (1, 1, 1), 1)), "metadata.jsonl": b"{"}, "Line 1 of metadata.jsonl"),
        ({"metadata.jsonl": b'{"file_name": "b.png", "text": "b"}'}, "names b.png"),
        ({"metadata.jsonl": b'{"file_name": "b.png", "split": "best"}'}, "split 'best'; write train or held-out"),
        ({"metadata.jsonl": b"[" * 20_000}, "Line 1 of metadata.jsonl"),
        ({"metadata.jsonl": b'{"file_name": 5}'}, "Line 1 of metadata.jsonl: file_name must be text"),
        ({"metadata.jsonl": b'{"file_name": "a.png", "caption": ["a"]}'}, "caption must be text"),
        ({"metadata.jsonl": b'{"file_name": "a.png", "text": "\\udc80"}'}, "text has half of a character"),
        ({"metadata.jsonl": b'{"file_name": "a.png", "prompt": "false"}'}, "prompt must be true or false"),
        ({"metadata.jsonl": b'{"file_name": "a.png"}\n{"file_name": "a.png"}'}, "names an image twice"),
        ({"metadata.jsonl": b'{"foreground": "a.png"}'}, "lists scenes"),
    ],
)
def test_bad_data_set_is_refused_by_name(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(Refusal, match=sentence):
        read_sprites(tmp_path, 8)


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    disc = png(draw_disc(8, (9, 9, 9), 1))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        for name in ("set/images/a.png", "set/cafe\u0301.png", "set/other.png"):
            file.writestr(name, disc)
        rows = [
            {"file_name": "images\\a.png", "text": "one", "split": "validation"},
            {"file_name": "caf\u00e9.png", "text": "two", "split": "Train"},
        ]
        file.writestr("set/metadata.jsonl", "\ufeff" + "\n".join(json.dumps(row) for row in rows))
    read = read_sprites(tmp_path / "data.zip", 8)
    assert [(s.name, s.text, s.split) for s in read] == [
        ("set/images/a.png", "one", "held-out"),
        ("set/caf\u00e9.png", "two", "train"),
    ]


@pytest.mark.parametrize("zipped", [False, True])
def test_each_metadata_counts_for_its_own_folder(
    zipped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As data sets with one folder for each split have it; `caption` is as good a key as `text`."""
    disc = png(draw_disc(8, (9, 9, 9), 1))
    files = {
        "train/metadata.jsonl": b'{"file_name": "deep/a.png", "caption": "one", "artist": "me"}',
        "train/deep/a.png": disc,
        "test/metadata.jsonl": b'{"file_name": "a.png", "text": "two", "split": "test"}',
        "test/a.png": disc,
        "else/a.png": disc,
    }
    data = tmp_path / ("data.zip" if zipped else "data")
    if zipped:
        with zipfile.ZipFile(data, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
    for name, content in {} if zipped else files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    read = {s.name: (s.text, s.split) for s in read_sprites(data, 8)}
    assert read == {"train/deep/a.png": ("one", "train"), "test/a.png": ("two", "held-out")}
    assert "1 images of" in caplog.text
    assert "The keys artist of metadata.jsonl are left out" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refusal, match="is not an ordinary file"):
        read_sprites(tmp_path / "pipe", 8)


def test_a_file_that_unpacks_to_more_than_any_image_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(2**16))
    monkeypatch.setattr(dataset, "LARGEST_FILE", 2**16 - 1)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(Refusal, match=r"a\.png has 65536 bytes, more than"):
        read_sprites(tmp_path / "data.zip", 8)


def test_captions_in_other_encodings_and_endings(tmp_path: Path) -> None:
    for name, ending, text in (("a", "txt", "wide".encode("utf-16")), ("b", "caption", "\ufeffnarrow\n".encode())):
        (tmp_path / f"{name}.png").write_bytes(png(draw_disc(8, (9, 9, 9), 1)))
        (tmp_path / f"{name}.{ending}").write_bytes(text)
    assert [sprite.text for sprite in read_sprites(tmp_path, 8)] == ["wide", "narrow"]


def test_images_left_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(png(draw_disc(8, (9, 9, 9), 1)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}', encoding="utf-8")
    read_sprites(tmp_path, 8)
    assert "2 images of" in caplog.text


def test_depth_and_turn_of_an_image_are_kept(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (64, 1))).save(tmp_path / "deep.png")
    turned = Image.new("RGB", (16, 16), (255, 0, 0))
    turned.paste((0, 0, 255), (0, 0, 16, 8))  # blue above, which the camera held sideways
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    deep, photo = read_sprites(tmp_path, 16)
    assert np.abs(deep.rgba[8, :, 0].astype(int) - np.linspace(0, 255, 16)).max() < 10
    assert photo.rgba[8, 13, 2] > 200 > 50 > photo.rgba[8, 2, 2]  # blue is on the right now


def test_thin_image_needs_no_large_square(tmp_path: Path) -> None:
    (tmp_path / "thin.png").write_bytes(png(np.full((1, 20_000, 4), 255, np.uint8)))
    tracemalloc.start()
    (sprite,) = read_sprites(tmp_path, 64)
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sprite.rgba.shape == (64, 64, 4)
    assert (sprite.rgba[31, :, 3] == 255).all()
    assert largest < 10 * 2**20


def test_pictures_are_cut_to_their_middle_where_they_cover(tmp_path: Path) -> None:
    wide = np.full((10, 30, 4), 255, np.uint8)
    wide[:, 10:20, 1:3] = 0
    (tmp_path / "wide.png").write_bytes(png(wide))
    (sprite,) = read_sprites(tmp_path, 20, cover=True)
    assert (sprite.rgba[..., 3] == 255).all()
    assert (sprite.rgba[:, 3:17, 1] == 0).all()


def test_what_is_neither_folder_nor_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK not really")
    for path in (tmp_path / "data.zip", tmp_path / "absent"):
        with pytest.raises(Refusal, match="be read as a folder or a zip archive"):
            read_sprites(path, 8)


def test_each_twelfth_image_is_held_out_where_no_split_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        for number in range(24):
            file.writestr(f"{number:02d}.png", png(draw_disc(8, (9, 9, 9), 1)))
    known, held_out = split_sprites(read_sprites(tmp_path / "data.zip", 8))
    assert [sprite.name for sprite in held_out] == ["00.png", "12.png"]
    assert len(known) == 22


def test_training_images_stand_in_for_missing_splits_and_prompts() -> None:
    blank = np.zeros((4, 4, 4), np.uint8)
    plain, marked = Sprite("a", "a", blank), Sprite("b", "b", blank, prompt=True)
    assert split_sprites([plain]) == ([plain], [plain])
    assert find_prompts([plain]) == [plain]
    assert find_prompts([plain, marked]) == [marked]
    with pytest.raises(Refusal, match="split train"):
        split_sprites([Sprite("a", "a", blank, split="held-out")])


@pytest.mark.parametrize("size", [16, 64, 200])  # shrinking by area, and enlarging
def test_augmented_colour_stays_below_alpha(size: int) -> None:
    sprite = Sprite("disc", "disc", draw_disc(64, (250, 120, 30), 0.7))
    for step in range(4):
        pixels = augment(sprite.premultiplied, size, Augmentation(shift=0.3), step_rng(0, step))
        assert pixels.shape == (size, size, 4)
        assert (pixels[..., :3] <= pixels[..., 3:] + 1e-6).all()
        assert pixels[..., 3].max() == pytest.approx(0.7, abs=0.01)


def test_augmentation_scales_to_the_range_given() -> None:
    sprite = Sprite("square", "square", np.full((64, 64, 4), 255, np.uint8))
    pixels = augment(sprite.premultiplied, 64, Augmentation(scale=(0.5, 0.5), rotate=0, shift=0), step_rng(0, 0))
    assert pixels[..., 3].sum() == pytest.approx(32 * 32, rel=0.07)


def test_fade_varies_between_0_and_1() -> None:
    fades = np.stack([draw_fade(16, step_rng(0, step)) for step in range(40)])
    assert fades.min() >= 0
    assert fades.max() <= 1
    assert {bool(np.ptp(fade) > 0.1) for fade in fades} == {True, False}  # structured and constant ones


def test_batch_is_composited_on_grey_with_the_faded_alpha() -> None:
    sprite = Sprite("disc", "disc", draw_disc(32, (255, 0, 0), 1.0))
    fade = np.full((32, 32), 0.25, np.float32)
    batch = TransparentBatch.of([sprite.premultiplied] * 2, [None, fade])
    assert batch.alpha[:, 0, 16, 16].tolist() == [1, 0.25]
    assert batch.padded.equal(batch.padded[:1].expand_as(batch.padded))  # the picture doesn't tell the fade
    assert batch.padded[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.01)  # colour goes on outside
    assert batch.grey[0, :, 16, 16].tolist() == pytest.approx([1, 0, 0], abs=0.01)
    assert batch.grey[1, :, 16, 16].tolist() == pytest.approx([0.625, 0.375, 0.375], abs=0.01)
    assert batch.grey[1, :, 0, 0].tolist() == pytest.approx([0.5] * 3)


def test_metadata_rows_need_no_more_than_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "red_disc.png").write_bytes(png(draw_disc(8, (9, 9, 9), 1)))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "red_disc.png"}), encoding="utf-8")
    assert read_sprites(tmp_path, 8)[0].text == "red disc"
