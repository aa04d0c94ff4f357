"""Tiny real diffusers pipelines, and a folder of random layer files that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests import seeded, tiny_models
from tests.tiny_models import attention_file, make_scheduler, make_tokenizer, quiet, text_config


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def sd15_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return tiny_models.make_sd15_parts(tokenizer)


@pytest.fixture(scope="session")
def sdxl_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    torch.manual_seed(10)
    unet = tiny_models.make_sdxl_unet()
    encoders = {
        "text_encoder": CLIPTextModel(text_config(tokenizer)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(tokenizer)).eval(),
    }
    tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
    return {"unet": unet, "vae": tiny_models.make_vae(), **encoders, **tokenizers}


@pytest.fixture
def sd15(sd15_parts: dict[str, Any]) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline(**sd15_parts, scheduler=make_scheduler()))


@pytest.fixture
def sdxl(sdxl_parts: dict[str, Any]) -> StableDiffusionXLPipeline:
    return quiet(StableDiffusionXLPipeline(**sdxl_parts, scheduler=make_scheduler(), add_watermarker=False))


@pytest.fixture(scope="session")
def layer_files(
    tmp_path_factory: pytest.TempPathFactory, sd15_parts: dict[str, Any], sdxl_parts: dict[str, Any]
) -> Path:
    """A folder of layer files that fit the tiny models."""
    folder = tmp_path_factory.mktemp("layer_model")
    decoder, encoder = tiny_models.decoder_file(), tiny_models.encoder_file()
    for prefix in ("", "layer_sd15_"):
        save_file(decoder, folder / f"{prefix}vae_transparent_decoder.safetensors")
        save_file(encoder, folder / f"{prefix}vae_transparent_encoder.safetensors")
    for name, frames in (("layer_sd15_transparent_attn", 1), ("layer_sd15_joint", 3)):
        save_file(attention_file(sd15_parts["unet"], frames), folder / f"{name}.safetensors")
    names = tiny_models.ldm_names(sdxl_parts["unet"])
    linears = [name for name, there in names.items() if ".attn" in there and there.endswith("weight")]
    rest = [name for name, there in names.items() if not there.endswith(("to_q.weight", "to_k.weight", "to_v.weight"))]
    parameters = {name: sdxl_parts["unet"].get_parameter(there) for name, there in names.items()}
    patches = {name: [value.shape[0], *value.shape[1:]] for name, value in parameters.items()}
    lora = {
        f"diffusion_model.{name}::lora::{n}": (patches[name][0], 2) if n == 0 else (2, patches[name][1])
        for name in linears
        for n in (0, 1)
    }
    diff = {f"diffusion_model.{name}::diff::0": patches[name] for name in rest}
    save_file(seeded.state_dict(lora, 3, gain=0.5), folder / "layer_xl_transparent_attn.safetensors")
    save_file(seeded.state_dict(diff, 4, gain=0.1), folder / "layer_xl_transparent_conv.safetensors")
    for name, channels in (("layer_xl_fg2ble", 8), ("layer_xl_bgble2fg", 12)):
        wide = {**lora, "diffusion_model.input_blocks.0.0.weight::diff::0": (16, channels, 3, 3)}
        save_file(seeded.state_dict(wide, channels, gain=0.5), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def control_files(tmp_path_factory: pytest.TempPathFactory, sd15_parts: dict[str, Any], layer_files: Path) -> Path:
    """A folder of the two layer files with control; they are as large as the control convolutions make them."""
    folder = tmp_path_factory.mktemp("layer_model")
    state = {name: value.half() for name, value in attention_file(sd15_parts["unet"], 2, control=True).items()}
    for name in ("layer_sd15_fg2bg", "layer_sd15_bg2fg"):
        save_file(state, folder / f"{name}.safetensors")
    decoder = "layer_sd15_vae_transparent_decoder.safetensors"
    (folder / decoder).symlink_to(layer_files / decoder)
    return folder
