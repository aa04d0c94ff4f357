"""Tiny real diffusers models with random weights, and the tensors of layer files that fit them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib_layerdiffusion.hosts.ldm_names import name_modules, translate
from lib_layerdiffusion.shared_attention import ATTENTION_ORDER, AttentionSharingUnit, ControlEncoder
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests import seeded


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word, so that prompts of different letters differ."""
    letters = string.ascii_lowercase + string.digits + ",.-"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: CLIPTokenizer, layers: int = 1) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
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


def make_sd15_unet(in_channels: int = 4) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(16, 16, 32, 32),
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=4,
        sample_size=8,
    )


def make_sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
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


def make_sd15_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What a StableDiffusionPipeline is made of, but its scheduler."""
    torch.manual_seed(15)
    parts = {"unet": make_sd15_unet(), "vae": make_vae(), "text_encoder": CLIPTextModel(text_config(tokenizer)).eval()}
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {**parts, "tokenizer": tokenizer, **extra}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_sd15(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline(**make_sd15_parts(tokenizer), scheduler=make_scheduler()))


def make_controlnet_pipeline(sd15: StableDiffusionPipeline) -> StableDiffusionControlNetPipeline:
    """The same pipeline with a ControlNet."""
    torch.manual_seed(0)
    network = ControlNetModel.from_unet(sd15.unet, conditioning_channels=3).eval()
    for part in (network.controlnet_mid_block, network.controlnet_cond_embedding):
        for parameter in part.parameters():
            nn.init.normal_(parameter)  # the zero convolutions of a new ControlNet hide its image
    parts = sd15.components
    return quiet(StableDiffusionControlNetPipeline(**parts, controlnet=network, requires_safety_checker=False))


def decoder_file() -> dict[str, Tensor]:
    """State dict of a transparent decoder."""
    return seeded.fill(TransparentDecoder(widths=(8,) * 7), 1, gain=2).state_dict()


def encoder_file() -> dict[str, Tensor]:
    """State dict of a transparent encoder, whose offset is small."""
    state = seeded.fill(TransparentEncoder(widths=(8, 8, 8, 8)), 2, gain=2).state_dict()
    return {name: value / 300 if name.startswith("blocks.16") else value for name, value in state.items()}


def attention_shapes(unet: UNet2DConditionModel, frames: int, control: bool, rank: int) -> dict[str, torch.Size]:
    """Names and shapes of an attention-sharing file's tensors."""
    table = name_modules(dict(unet.config))
    attentions = [unet.get_submodule(str(translate(name, table))) for name in ATTENTION_ORDER]
    with torch.device("meta"):
        units = nn.ModuleList(AttentionSharingUnit(each, frames, control, rank) for each in attentions)
        parts = {"hookers.layers": units} | ({"kwargs_encoder": ControlEncoder()} if control else {})
    return {
        f"{prefix}.{key}": value.shape for prefix, part in parts.items() for key, value in part.state_dict().items()
    }


def attention_file(unet: UNet2DConditionModel, frames: int, control: bool = False) -> dict[str, Tensor]:
    """State dict of an attention-sharing file."""
    shapes = attention_shapes(unet, frames, control, rank=2)
    signal = {
        key: shape for key, shape in shapes.items() if key.startswith("kwargs_encoder.") or "control_convs" in key
    }
    rest = {key: shape for key, shape in shapes.items() if key not in signal}
    return seeded.state_dict(signal, frames, gain=2) | seeded.state_dict(rest, frames, gain=0.5)


def ldm_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """LDM name -> diffusers name of every parameter."""
    back = {there: here for here, there in name_modules(unet.config).items()}
    return {translate(name, back) or f"unnamed {name}": name for name, _ in unet.named_parameters()}
