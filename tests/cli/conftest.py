"""A tiny random model folder with its layer files, awkward pictures, and a way to run the command line."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from lib_layerdiffusion import cli
from lib_layerdiffusion.cli import commands
from lib_layerdiffusion.hosts.pipelines import load_pipeline
from tests.tiny_models import attention_file, decoder_file, encoder_file, make_sd15, make_tokenizer


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def paths(self) -> list[Path]:
        return [Path(line) for line in self.out.splitlines()]


class Runner:
    """Runs commands in this process, with the tiny model."""

    def __init__(self, capsys: pytest.CaptureFixture[str], model: Path) -> None:
        self.capsys = capsys
        self.model = model

    def __call__(self, *words: object) -> Outcome:
        self.capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def generate(self, *words: object) -> Outcome:
        return self("generate", "--model", self.model, "--steps", 2, "--views", 1, "--offline", *words)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> Runner:
    return Runner(capsys, tiny_model)


@functools.cache
def load_intact(model: Path) -> Any:
    return load_pipeline(model, device="cpu", offline=True)


@pytest.fixture(autouse=True)
def load_once(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, bare_model: Path) -> None:
    """Open each of the two intact models only once; the library promises to leave them as they were."""

    def load(model: Path, **settings: Any) -> Any:
        if model in (tiny_model, bare_model) and settings.get("device") in ("auto", "cpu"):
            return load_intact(model)
        return load_pipeline(model, **settings)

    monkeypatch.setattr(commands, "load_pipeline", load)


@pytest.fixture(scope="session")
def bare_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its layer files."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("layer_model"))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD1.5 structure with random weights, and `layer_model/` for it; made once."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipe = make_sd15(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    pipe.save_pretrained(folder)
    files = folder / "layer_model"
    files.mkdir()
    save_file(attention_file(pipe.unet, frames=1), files / "layer_sd15_transparent_attn.safetensors")
    save_file(decoder_file(), files / "layer_sd15_vae_transparent_decoder.safetensors")
    save_file(encoder_file(), files / "layer_sd15_vae_transparent_encoder.safetensors")
    return folder


@pytest.fixture(scope="session")
def joint_files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the layer file of the mode that makes three layers together."""
    folder = tmp_path_factory.mktemp("joint")
    save_file(attention_file(load_intact(tiny_model).unet, frames=3), folder / "layer_sd15_joint.safetensors")
    return folder


@pytest.fixture(scope="session")
def scene_files(tiny_model: Path, joint_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the layer files that scenes of SD1.5 take."""
    folder = tmp_path_factory.mktemp("scene")
    state = attention_file(load_intact(tiny_model).unet, frames=2, control=True)
    half = {name: value.half() for name, value in state.items()}
    for name in ("layer_sd15_fg2bg", "layer_sd15_bg2fg"):
        save_file(half, folder / f"{name}.safetensors")
    for path in joint_files.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures: good ones, and every kind that trips a reader."""
    folder = tmp_path_factory.mktemp("pictures")
    rgba = np.zeros((48, 40, 4), np.uint8)
    rgba[8:40, 8:32] = (200, 40, 90, 255)
    rgba[16:24] = (20, 40, 190, 128)
    whole = Image.fromarray(rgba)
    whole.save(folder / "rgba.png")
    whole.convert("RGB").save(folder / "rgb.jpg")
    whole.convert("RGB").convert("CMYK").save(folder / "cmyk.jpg")
    whole.convert("P").save(folder / "palette.png", transparency=0)
    whole.convert("L").save(folder / "grey.png")
    Image.fromarray(np.full((48, 40), 40000, np.uint16)).save(folder / "sixteen.png")
    whole.save(folder / "animated.gif", save_all=True, append_images=[whole.rotate(90)], duration=40)
    Image.new("RGBA", (1, 1), (9, 9, 9, 99)).save(folder / "1x1.png")
    Image.new("RGBA", (3, 700), (9, 9, 9, 99)).save(folder / "3x700.png")
    png = (folder / "rgba.png").read_bytes()
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is not a picture")
    (folder / "huge.png").write_bytes(make_huge_header())
    (folder / "folder.png").mkdir()
    return folder


def make_huge_header() -> bytes:
    """A PNG that says it has 100000 x 100000 pixels and ends there."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
