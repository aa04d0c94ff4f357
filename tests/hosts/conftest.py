"""Tiny real diffusers pipelines with seeded random weights, and random layer files that fit them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lib_layerdiffusion.hosts.ldm_names import name_modules, translate
from lib_layerdiffusion.shared_attention import ATTENTION_ORDER, AttentionSharingUnit, ControlEncoder
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests import seeded


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word, so that prompts of different letters differ."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = string.ascii_lowercase + string.digits + ",.-"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        sample_size=64,
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


@pytest.fixture(scope="session")
def sd15_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    torch.manual_seed(15)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 16, 32, 32),
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=4,
        sample_size=8,
    )
    parts = {"unet": unet, "vae": make_vae(), "text_encoder": CLIPTextModel(text_config(tokenizer)).eval()}
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {**parts, "tokenizer": tokenizer, **extra}


@pytest.fixture(scope="session")
def sdxl_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    torch.manual_seed(10)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
        norm_num_groups=4,
        sample_size=8,
    )
    encoders = {
        "text_encoder": CLIPTextModel(text_config(tokenizer)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(tokenizer)).eval(),
    }
    tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
    return {"unet": unet, "vae": make_vae(), **encoders, **tokenizers}


@pytest.fixture
def sd15(sd15_parts: dict[str, Any]) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline(**sd15_parts, scheduler=make_scheduler()))


@pytest.fixture
def sdxl(sdxl_parts: dict[str, Any]) -> StableDiffusionXLPipeline:
    return quiet(StableDiffusionXLPipeline(**sdxl_parts, scheduler=make_scheduler(), add_watermarker=False))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def layer_files(
    tmp_path_factory: pytest.TempPathFactory, sd15_parts: dict[str, Any], sdxl_parts: dict[str, Any]
) -> Path:
    """A folder of layer files that fit the tiny models."""
    folder = tmp_path_factory.mktemp("layer_model")
    decoder = seeded.fill(TransparentDecoder(widths=(8,) * 7), 1, gain=2).state_dict()
    encoder = seeded.fill(TransparentEncoder(widths=(8, 8, 8, 8)), 2, gain=2).state_dict()
    encoder = {name: value / 300 if name.startswith("blocks.16") else value for name, value in encoder.items()}
    for prefix in ("", "layer_sd15_"):
        save_file(decoder, folder / f"{prefix}vae_transparent_decoder.safetensors")
        save_file(encoder, folder / f"{prefix}vae_transparent_encoder.safetensors")
    for name, frames in (("layer_sd15_transparent_attn", 1), ("layer_sd15_joint", 3)):
        save_file(attention_file(sd15_parts["unet"], frames), folder / f"{name}.safetensors")
    names = ldm_names(sdxl_parts["unet"])
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


def attention_file(unet: UNet2DConditionModel, frames: int, control: bool = False) -> dict[str, torch.Tensor]:
    """State dict of an attention-sharing file."""
    table = name_modules(unet.config)
    shapes = {f"kwargs_encoder.{key}": value.shape for key, value in ControlEncoder().state_dict().items() if control}
    with torch.device("meta"):
        for index, name in enumerate(ATTENTION_ORDER):
            attention = unet.get_submodule(str(translate(name, table)))
            unit = AttentionSharingUnit(attention, frames, control, rank=2)
            shapes |= {f"hookers.layers.{index}.{key}": value.shape for key, value in unit.state_dict().items()}
    signal = {
        key: shape for key, shape in shapes.items() if key.startswith("kwargs_encoder.") or "control_convs" in key
    }
    rest = {key: shape for key, shape in shapes.items() if key not in signal}
    return seeded.state_dict(signal, frames, gain=2) | seeded.state_dict(rest, frames, gain=0.5)


def ldm_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """LDM name -> diffusers name of every parameter."""
    back = {there: here for here, there in name_modules(unet.config).items()}
    return {str(translate(name, back)): name for name, _ in unet.named_parameters()}
