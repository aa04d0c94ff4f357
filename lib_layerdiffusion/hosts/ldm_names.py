"""Translates UNet names between the LDM layout of weight files and diffusers' layout, from the UNet's config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RESNET_LEAVES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTER_LEAVES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def name_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Map each LDM module of a Stable Diffusion UNet to its diffusers module.

    `config` is a UNet2DConditionModel's (SD1.5 or SDXL structure, any width). Transformers are mapped as one module:
    inside them both layouts use the same names. Invert the dict to translate the other way.
    """
    down_types: Sequence[str] = config["down_block_types"]
    up_types: Sequence[str] = config["up_block_types"]
    depths = _layers_of_levels(config["layers_per_block"], len(down_types))
    table = dict(OUTER_LEAVES)

    position = 1
    for level, (kind, depth) in enumerate(zip(down_types, depths, strict=True)):
        for layer in range(depth):
            _add_resnet(table, f"input_blocks.{position}.0", f"down_blocks.{level}.resnets.{layer}")
            if "CrossAttn" in kind:
                table[f"input_blocks.{position}.1"] = f"down_blocks.{level}.attentions.{layer}"
            position += 1
        if level < len(down_types) - 1:
            table[f"input_blocks.{position}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            position += 1

    _add_resnet(table, "middle_block.0", "mid_block.resnets.0")
    table["middle_block.1"] = "mid_block.attentions.0"
    _add_resnet(table, "middle_block.2", "mid_block.resnets.1")

    position = 0
    for level, (kind, depth) in enumerate(zip(up_types, reversed(depths), strict=True)):
        for layer in range(depth + 1):
            _add_resnet(table, f"output_blocks.{position}.0", f"up_blocks.{level}.resnets.{layer}")
            if "CrossAttn" in kind:
                table[f"output_blocks.{position}.1"] = f"up_blocks.{level}.attentions.{layer}"
            position += 1
        if level < len(up_types) - 1:
            place = 2 if "CrossAttn" in kind else 1
            table[f"output_blocks.{position - 1}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return table


def translate(name: str, modules: Mapping[str, str]) -> str | None:
    """Translate a module or parameter name by the longest prefix in `modules`; None when there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = modules.get(".".join(parts[:cut]))
        if module is not None:
            return ".".join([module, *parts[cut:]])
    return None


def _layers_of_levels(layers: int | Sequence[int], levels: int) -> list[int]:
    return [layers] * levels if isinstance(layers, int) else list(layers)


def _add_resnet(table: dict[str, str], ldm: str, diffusers: str) -> None:
    for ldm_leaf, diffusers_leaf in RESNET_LEAVES.items():
        table[f"{ldm}.{ldm_leaf}"] = f"{diffusers}.{diffusers_leaf}"
