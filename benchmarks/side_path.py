"""Processor time of one step of SDXL's UNet with the patches of its foreground mode, against the UNet alone.

    OMP_NUM_THREADS=2 python benchmarks/side_path.py --size 512

The full network with random weights, two rows (guidance), in bfloat16 where the processor has it: 7 GB, else 12 GB. The
limit is the ratio of the operations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import count_work, has_bfloat16, head, say, time_work
from lib_layerdiffusion.injection import side_path
from lib_layerdiffusion.train.finetune import PROJECTIONS
from lib_layerdiffusion.weights.patches import LoraPatch, Patch
from tests.full_unets import UNETS, make_meta_unet

RANK = 256


def make_unet(dtype: torch.dtype, device: str = "cpu") -> UNet2DConditionModel:
    """SDXL's UNet with random weights."""
    unet = make_meta_unet(UNETS["sdxl"]).to(dtype).eval().requires_grad_(False)
    if device != "meta":
        for parameter in unet.to_empty(device=device).parameters():
            parameter.normal_(std=0.02)
    return unet


def make_patches(unet: UNet2DConditionModel) -> dict[str, Patch]:
    """Random patches of all projections of all attention modules, of the published rank."""
    patches: dict[str, Patch] = {}
    for name, module in unet.named_modules():
        if ".attn" in name and name.endswith(PROJECTIONS):
            outputs, inputs = module.weight.shape
            like = {"dtype": module.weight.dtype, "device": module.weight.device}
            patches[f"{name}.weight"] = LoraPatch(torch.randn(outputs, RANK, **like), torch.randn(RANK, inputs, **like))
    return patches


def make_inputs(size: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """What a step gives the UNet, two rows."""
    like = {"dtype": dtype, "device": device}
    added = {"text_embeds": torch.randn(2, 1280, **like), "time_ids": torch.randn(2, 6, **like)}
    hidden, context = torch.randn(2, 4, size // 8, size // 8, **like), torch.randn(2, 77, 2048, **like)
    return {"sample": hidden, "timestep": 500, "encoder_hidden_states": context, "added_cond_kwargs": added}


def count_step(size: int, dtype: torch.dtype) -> tuple[float, float]:
    """10⁹ operations of a step, alone and patched."""
    unet = make_unet(dtype, "meta")
    inputs, patches = make_inputs(size, dtype, "meta"), make_patches(unet)
    plain = count_work(lambda: unet(**inputs))
    with side_path(unet, patches, 1.0):
        unet(**inputs)  # weights are joined once
        return plain, count_work(lambda: unet(**inputs))


@torch.no_grad()  # nothing is joined with weights that are made in inference mode
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args()
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    unet = make_unet(dtype)
    inputs, patches = make_inputs(given.size, dtype), make_patches(unet)
    plain = time_work(lambda: unet(**inputs), 2)
    with side_path(unet, patches, 1.0):
        patched = time_work(lambda: unet(**inputs), 2)
    work, more = count_step(given.size, dtype)
    head("size", "patches", "computed in", "alone, CPU s", "patched, CPU s", "ratio", "limit")
    size = f"{given.size}x{given.size}"
    times = f"{plain:.1f}", f"{patched:.1f}", f"{patched / plain:.3f}", f"{more / work:.3f}"
    say(size, len(patches), str(dtype).removeprefix("torch."), *times)


if __name__ == "__main__":
    main()
