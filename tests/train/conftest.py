"""A tiny data set of drawn images, tiny configurations, and the small models that the trainings build on."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lib_layerdiffusion.train.autoencoder import build_autoencoder
from lib_layerdiffusion.train.base import BaseModel, assemble, build_scheduler, train_tokenizer
from lib_layerdiffusion.train.run import Average
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests.tiny_models import make_sdxl_unet, text_config
from tests.train.tiny import TINY_BASE, TINY_VAE, draw_disc, png


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six discs: opaque and half-transparent, trained on and held out, with words and without."""
    rows = [
        ("red.png", "red disc", "opaque", "train", True, (220, 20, 20), 1.0),
        ("blue.png", "blue disc", "opaque", "train", True, (20, 20, 220), 1.0),
        ("glass.png", "glass disc", "soft", "train", True, (200, 220, 240), 0.4),
        ("grey.png", "grey disc", "opaque", "train", False, (90, 90, 90), 1.0),
        ("pink.png", "pink disc", "opaque", "held-out", False, (240, 150, 180), 1.0),
        ("mist.png", "mist", "soft", "held-out", False, (230, 230, 230), 0.5),
    ]
    path = tmp_path_factory.mktemp("data") / "discs.zip"
    with zipfile.ZipFile(path, "w") as file:
        lines: list[str] = []
        for name, text, kind, split, prompt, colour, opacity in rows:
            file.writestr(name, png(draw_disc(40, colour, opacity)))
            lines.append(json.dumps({"file_name": name, "text": text, "kind": kind, "split": split, "prompt": prompt}))
        file.writestr("metadata.jsonl", "\n".join(lines))
    return path


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    build_autoencoder(TINY_VAE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["red disc", "blue disc", "glass disc", "a grey background"] * 4, folder)
    return CLIPTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory: pytest.TempPathFactory, vae_folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """A pipeline of Stable Diffusion 1.5's structure with random weights."""
    folder = tmp_path_factory.mktemp("sd15")
    torch.manual_seed(0)
    model = BaseModel(TINY_BASE, tokenizer, build_scheduler())
    vae = AutoencoderKL.from_pretrained(vae_folder)
    assemble(model, Average(model, 0.9), vae).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory, vae_folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """A pipeline of SDXL's structure with random weights and noise prediction."""
    folder = tmp_path_factory.mktemp("sdxl")
    torch.manual_seed(1)
    unet, text = make_sdxl_unet(), text_config(tokenizer, layers=2)
    scheduler = type(build_scheduler()).from_config(build_scheduler().config, prediction_type="epsilon")
    StableDiffusionXLPipeline(
        AutoencoderKL.from_pretrained(vae_folder),
        CLIPTextModel(text),
        CLIPTextModelWithProjection(text),
        tokenizer,
        tokenizer,
        unet,
        scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transparent encoder, the decoder beside it."""
    folder = tmp_path_factory.mktemp("transparency")
    torch.manual_seed(2)
    encoder = TransparentEncoder((4, 4, 8, 8))
    nn.init.normal_(encoder.blocks[-1].weight, std=0.003)
    path = folder / "layer_sd15_vae_transparent_encoder.safetensors"
    save_file(encoder.state_dict(), path)
    decoder = TransparentDecoder((8,) * 7).state_dict()
    save_file(decoder, folder / "layer_sd15_vae_transparent_decoder.safetensors")
    return path
