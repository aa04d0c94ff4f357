"""WebDataset shards: what is read of them equals a folder's, and what is broken is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.dataset import draw_view, read_sprites, step_rng
from lib_layerdiffusion.train.scenes import Placement, read_scenes
from lib_layerdiffusion.train.shards import read_samples
from tests.train.tiny import draw_disc, png


def write_shards(folder: Path, samples: list[dict[str, Any]], per_shard: int = 4) -> Path:
    """Samples as the library itself writes them; returns the folder."""
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter((folder / "train-%03d.tar").as_posix(), maxcount=per_shard, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"a_{number:03d}", **sample})
    return folder


def discs(count: int) -> list[dict[str, Any]]:
    return [{"png": png(draw_disc(20, (10 * n, 0, 0), 1)), "txt": f"disc {n}\n"} for n in range(count)]


def test_images_are_those_of_a_folder_and_stay_in_the_shards(tmp_path: Path) -> None:
    samples = discs(6)
    samples[1] |= {"json": {"caption": "glass", "kind": "soft", "prompt": True}}
    del samples[2]["txt"]
    data = write_shards(tmp_path / "shards", samples)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, sample in enumerate(samples):
        (folder / f"{number}.png").write_bytes(sample["png"])
    read, wanted = read_sprites(data, 16), read_sprites(folder, 16)
    assert len(list(data.glob("*.tar"))) == 2
    assert [sprite.text for sprite in read] == ["disc 0", "glass", "a 002", "disc 3", "disc 4", "disc 5"]
    assert [(sprite.kind, sprite.prompt) for sprite in read[:2]] == [("opaque", False), ("soft", True)]
    assert all(np.array_equal(one.rgba, other.rgba) for one, other in zip(read, wanted, strict=True))
    assert not any(isinstance(sprite.picture, np.ndarray) for sprite in read)
    views = [draw_view(sprites[3], 8, step_rng(0, 0)) for sprites in (read, wanted)]
    assert np.array_equal(*views)


def test_shards_are_named_by_folder_file_or_braces(tmp_path: Path) -> None:
    data = write_shards(tmp_path, discs(5), per_shard=2)
    for name, count in ((".", 5), ("train-001.tar", 2), ("train-{001..002}.tar", 3)):
        assert len(read_sprites(data / name, 8)) == count
    with pytest.raises(Refusal, match=r"train-003.tar can't be read"):
        read_sprites(data / "train-{002..003}.tar", 8)


def test_splits_are_read_or_each_twelfth_image_is_held_out(tmp_path: Path) -> None:
    read = read_sprites(write_shards(tmp_path / "a", discs(13)), 8)
    assert [row for row, sprite in enumerate(read) if sprite.split == "held-out"] == [0, 12]
    named = discs(13)
    named[3] |= {"json": {"split": "val"}}
    read = read_sprites(write_shards(tmp_path / "b", named), 8)
    assert [row for row, sprite in enumerate(read) if sprite.split == "held-out"] == [3]


def test_scenes_are_samples_of_three_files(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {
            "foreground.png": png(draw_disc(16, (200, 0, 0), 1)),
            "background.png": png(np.full((16, 16, 4), (0, 0, 90, 255), np.uint8)),
            "blend.png": png(np.full((16, 16, 4), (0, 0, 80, 255), np.uint8)),
            "json": {"foreground_text": f"disc {number}", "background_text": "sea"},
        }
        for number in range(3)
    ]
    source = read_scenes(write_shards(tmp_path, samples), None, 16, only_prompts=True)
    assert source.captions == ["disc 0", "disc 1", "disc 2"]
    scene = source.draw("disc 1", 16, Placement(), step_rng(0, 0))
    assert scene.texts == {"foreground": "disc 1", "background": "sea", "blend": "a 001"}
    assert scene.background[0, 0].tolist() == pytest.approx([0, 0, 90 / 255])
    assert scene.blend[0, 0].tolist() == pytest.approx([0, 0, 80 / 255])
    del samples[1]["blend.png"]
    with pytest.raises(Refusal, match=r"The sample a_001 of .* has no single blend image"):
        read_scenes(write_shards(tmp_path, samples), None, 16, only_prompts=True)


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"png": b"no image", "txt": "a"}, r"train-000.tar/a_000.png is not an image that can be read"),
        ({"txt": "a"}, r"The sample a_000 of .*train-000.tar has 0 files that are an image; give it one"),
        ({"png": b"a", "jpg": b"b"}, "has 2 files that are an image"),
        ({"png": b"a", "json": b"{"}, r"train-000.tar/a_000.json must be a JSON object"),
        ({"png": b"a", "json": b'{"text": 5}'}, r"a_000.json: text must be text"),
        ({"png": b"a", "json": b'{"split": "best"}'}, r"a_000.json has the split 'best'"),
    ],
)
def test_bad_sample_is_named(tmp_path: Path, sample: dict[str, Any], sentence: str) -> None:
    data = write_shards(tmp_path, [sample])
    with pytest.raises(Refusal, match=sentence) as refusal:
        _ = [sprite.rgba for sprite in read_sprites(data, 8)]
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "damage", ["cut in a picture", "cut in a header", "cut between", "header", "compressed", "twice"]
)
def test_bad_shard_is_named_and_loses_no_image_silently(tmp_path: Path, damage: str) -> None:
    file = write_shards(tmp_path, discs(4)) / "train-000.tar"
    whole = file.read_bytes()
    _, members = list(read_samples(file))[2]
    header = min(member.start for member in members.values()) - 512
    match damage:
        case "cut in picture":
            file.write_bytes(whole[: members["png"].start + 20])
        case "cut in header":
            file.write_bytes(whole[: header + 100])
        case "cut between":
            file.write_bytes(whole[:header])
        case "header":
            file.write_bytes(whole[:header] + b"x" * 20 + whole[header + 20 :])
        case "compressed":
            file.write_bytes(b"\x1f\x8b" + whole)
        case _:
            file.write_bytes(whole[:header] + whole)
    with pytest.raises(Refusal, match=r"train-000\.tar.*[.;]") as refusal:
        read_sprites(tmp_path, 8)
    assert "\n" not in str(refusal.value)
