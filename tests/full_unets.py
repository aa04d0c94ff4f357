"""UNets of the published shapes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

UNETS: dict[str, dict[str, Any]] = {  # by family
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def make_meta_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """A UNet on the device `meta`: shapes without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config)
