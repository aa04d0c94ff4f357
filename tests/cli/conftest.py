"""A tiny random model folder with its layer files, awkward pictures, and a way to run the command line."""

from __future__ import annotations

import functools
import json
import shutil
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib_layerdiffusion import cli, commands
from lib_layerdiffusion.hosts.diffusers import DiffusersHost
from lib_layerdiffusion.pipelines import load_pipeline
from lib_layerdiffusion.shared_attention import ATTENTION_ORDER, AttentionSharingUnit
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder


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
def load_intact(model: str) -> Any:
    return load_pipeline(model, device="cpu", offline=True)


@pytest.fixture(autouse=True)
def load_once(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, bare_model: Path) -> None:
    """Open each of the two intact models only once; the library promises to leave them as they were."""

    def load(model: str, **settings: Any) -> Any:
        if model in (str(tiny_model), str(bare_model)) and settings.get("device") in ("auto", "cpu"):
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
    torch.manual_seed(0)
    pipe = make_pipeline(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    pipe.save_pretrained(folder)
    write_layer_files(pipe, folder / "layer_model")
    return folder


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = string.ascii_lowercase + string.digits + ",.-"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    return CLIPTokenizer.from_pretrained(folder)


def make_pipeline(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            block_out_channels=(8, 8, 8, 8),
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=2,
            sample_size=8,
        ),
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            sample_size=64,
        ),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_layer_files(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write random files for the foreground mode."""
    folder.mkdir()
    host = DiffusersHost(pipe)
    attentions = [pipe.unet.get_submodule(str(host.parameter_name(name))) for name in ATTENTION_ORDER]
    units = torch.nn.ModuleList(AttentionSharingUnit(attention, frames=1, rank=2) for attention in attentions)
    state = {f"hookers.layers.{key}": torch.randn_like(value) / 4 for key, value in units.state_dict().items()}
    save_file(state, folder / "layer_sd15_transparent_attn.safetensors")
    decoder = TransparentDecoder(widths=(8,) * 7)
    save_file(decoder.state_dict(), folder / "layer_sd15_vae_transparent_decoder.safetensors")
    encoder = TransparentEncoder(widths=(4, 4, 4, 4))
    save_file(encoder.state_dict(), folder / "layer_sd15_vae_transparent_encoder.safetensors")


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
    (folder / "text.png").write_text("this is no picture")
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
