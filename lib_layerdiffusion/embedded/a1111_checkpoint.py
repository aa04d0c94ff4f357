"""Writes a narrow diffusers SD1.5 model as a checkpoint that AUTOMATIC1111 takes: LDM names, a yaml, a text encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib_layerdiffusion.export import whole_file
from lib_layerdiffusion.hosts.ldm_names import name_modules, translate
from lib_layerdiffusion.refusal import Refusal

UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT_ENCODER = "text_encoder/model.safetensors"
CONFIGS = {part: f"{part}/config.json" for part in ("unet", "vae", "text_encoder")}
CONFIGS["scheduler"] = "scheduler/scheduler_config.json"
PARTS = (UNET, VAE, TEXT_ENCODER, *CONFIGS.values(), "tokenizer")
DOWN_BLOCKS = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]  # of SD1.5
RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLASSES = "lib_layerdiffusion.embedded.narrow_ldm"


def write(model: Path, models: Path, layers: Path, name: str) -> list[Path]:
    """Write the diffusers folder `model` into `models` (a WebUI's) and its layer files into `layers`; the new files.

    A file that already exists with other contents is never replaced: Refusal.
    """
    folder = models / "Stable-diffusion"
    text_encoder = folder / f"{name}-text"
    for needed in (model / part for part in PARTS):
        if not needed.exists():
            raise Refusal(f"{needed} is missing: name a complete diffusers folder of an SD1.5 model with --model.")
    files = {
        folder / f"{name}.safetensors": save(dict(translate_model(model))),
        folder / f"{name}.yaml": json.dumps(describe(model, text_encoder.name), indent=2).encode(),  # JSON is YAML
        text_encoder / "config.json": (model / CONFIGS["text_encoder"]).read_bytes(),
    }
    files |= {text_encoder / path.name: path.read_bytes() for path in sorted((model / "tokenizer").iterdir())}
    files |= {layers / path.name: path.read_bytes() for path in sorted((model / "layer_model").glob("*.safetensors"))}
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise Refusal(f"{path} exists with other contents: delete it, or choose another name with --name.")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(content)
    return list(files)


def translate_model(model: Path) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a diffusers folder under its name in an LDM checkpoint; Refusal unless it is SD1.5."""
    unet = _config(model, "unet")
    if unet.get("down_block_types") != DOWN_BLOCKS or unet.get("use_linear_projection"):
        raise Refusal(f"{model} is not an SD1.5 model, and only those can be exported: name another one with --model.")
    back = {diffusers: ldm for ldm, diffusers in name_modules(unet).items()}
    for key, value in load_file(model / UNET).items():
        module, _, leaf = key.rpartition(".")
        yield f"model.diffusion_model.{translate(module, back)}.{leaf}", value
    vae = _config(model, "vae")
    table = name_vae(len(vae["block_out_channels"]), vae["layers_per_block"])
    for key, value in load_file(model / VAE).items():
        module, _, leaf = key.rpartition(".")
        name = translate(module, table)
        convolved = ".attn_1." in str(name) and value.ndim == 2
        yield f"first_stage_model.{name}.{leaf}", value[:, :, None, None] if convolved else value
    for key, value in load_file(model / TEXT_ENCODER).items():
        yield f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}", value
    length = _config(model, "text_encoder")["max_position_embeddings"]
    yield "cond_stage_model.transformer.text_model.embeddings.position_ids", torch.arange(length)[None]


def name_vae(levels: int, depth: int) -> dict[str, str]:
    """Map each diffusers module of a KL autoencoder to its LDM module."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for part, level_of, blocks, resize in (
        ("encoder", lambda level: level, depth, ("downsamplers.0.conv", "downsample.conv")),
        ("decoder", lambda level: levels - 1 - level, depth + 1, ("upsamplers.0.conv", "upsample.conv")),
    ):
        side = "down" if part == "encoder" else "up"
        table |= {f"{part}.conv_in": f"{part}.conv_in", f"{part}.conv_out": f"{part}.conv_out"}
        table[f"{part}.conv_norm_out"] = f"{part}.norm_out"
        resnets = {f"{part}.mid_block.resnets.{n}": f"{part}.mid.block_{n + 1}" for n in (0, 1)}
        for level in range(levels):
            here, there = f"{part}.{side}_blocks.{level}", f"{part}.{side}.{level_of(level)}"
            resnets |= {f"{here}.resnets.{n}": f"{there}.block.{n}" for n in range(blocks)}
            table[f"{here}.{resize[0]}"] = f"{there}.{resize[1]}"
        for here, there in resnets.items():
            table |= {f"{here}.{leaf}": f"{there}.{ldm}" for leaf, ldm in RESNET.items()}
        attention = f"{part}.mid_block.attentions.0", f"{part}.mid.attn_1"
        table |= {f"{attention[0]}.{leaf}": f"{attention[1]}.{ldm}" for leaf, ldm in ATTENTION.items()}
    return table


def describe(model: Path, text_encoder: str) -> dict[str, Any]:
    """The yaml next to the checkpoint: what AUTOMATIC1111 builds. `text_encoder`: the name of a folder next to both."""
    unet, vae, scheduler = (_config(model, part) for part in ("unet", "vae", "scheduler"))
    autoencoder = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    parts = {
        "unet_config": (
            f"{CLASSES}.NarrowUNet",
            {
                "widths": unet["block_out_channels"],
                "groups": unet["norm_num_groups"],
                "image_size": 32,
                "in_channels": unet["in_channels"],
                "out_channels": unet["out_channels"],
                "attention_resolutions": [4, 2, 1],
                "num_res_blocks": unet["layers_per_block"],
                "num_heads": unet["attention_head_dim"],
                "use_spatial_transformer": True,
                "transformer_depth": 1,
                "context_dim": unet["cross_attention_dim"],
                "use_checkpoint": False,
                "legacy": False,
            },
        ),
        "first_stage_config": (
            f"{CLASSES}.NarrowAutoencoder",
            {
                "widths": vae["block_out_channels"],
                "groups": vae["norm_num_groups"],
                "embed_dim": vae["latent_channels"],
                "ddconfig": autoencoder,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        ),
        "cond_stage_config": (f"{CLASSES}.open_text_encoder", {"folder": text_encoder}),
    }
    params: dict[str, Any] = {
        "linear_start": scheduler["beta_start"],
        "linear_end": scheduler["beta_end"],
        "timesteps": scheduler["num_train_timesteps"],
        "parameterization": "v" if scheduler["prediction_type"] == "v_prediction" else "eps",
        "num_timesteps_cond": 1,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": unet["in_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": vae["scaling_factor"],
        "use_ema": False,
    }
    params |= {part: {"target": target, "params": given} for part, (target, given) in parts.items()}
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _config(model: Path, part: str) -> Mapping[str, Any]:
    return json.loads((model / CONFIGS[part]).read_text("utf-8"))
