"""Side paths and shared attention compared with the same patches merged into a copy of Forge's or Forge Neo's UNet.

`python -m tests.e2e.forge_parity <Forge's folder>` with Forge's Python writes a JSON object: the relative difference of
the sampled latents, and how far the patches moved them. The UNets have Forge's classes and depth, and few channels.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_layerdiffusion import injection
from lib_layerdiffusion.shared_attention import ATTENTION_ORDER, AttentionSharingUnit
from lib_layerdiffusion.weights.patches import DiffPatch, LoraPatch
from tests import seeded
from tests.e2e.server import ONLY_PROCESSOR, choose_flags

UNETS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "channel_mult": (1, 2, 4),
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 96,
    },
    "sd15": {
        "channel_mult": (1, 2, 4, 4),
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "num_heads": 8,
    },
}
CHANNELS, WORDS = 32, 64
SIGMAS = (14.6, 6.0, 2.5, 0.9, 0.0)


def build(family: str) -> nn.Module:
    from backend.nn.unet import IntegratedUNet2DConditionModel  # pyright: ignore[reportMissingImports]
    from backend.operations import using_forge_operations  # pyright: ignore[reportMissingImports]

    options = {"in_channels": 4, "model_channels": CHANNELS, "out_channels": 4, "context_dim": WORDS}
    options |= {"use_spatial_transformer": True, **UNETS[family]}
    names = IntegratedUNet2DConditionModel(**copy.deepcopy(options))
    state = seeded.state_dict({name: value.shape for name, value in names.state_dict().items()}, 1)
    with using_forge_operations(device=torch.device("cpu"), dtype=torch.float32):  # its own classes of layers
        model = IntegratedUNet2DConditionModel(**copy.deepcopy(options))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def sample(unet: nn.Module, rows: int, concat: Tensor | None = None) -> Tensor:
    """Euler's method over a few steps with guidance; rows are [uncond..., cond...] as in Forge."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, 16, 24, generator=generator) * SIGMAS[0]
    context = torch.randn(2 * rows, 77, WORDS, generator=generator)
    vector = torch.randn(2 * rows, 96, generator=generator) if hasattr(unet, "label_emb") else None
    for sigma, following in pairwise(SIGMAS):
        inputs = (x / (sigma**2 + 1) ** 0.5).repeat(2, 1, 1, 1)
        if concat is not None:
            inputs = torch.cat([inputs, concat.repeat(2 * rows, 1, 1, 1)], dim=1)
        timesteps = torch.full((2 * rows,), 1000 * sigma / 15)
        negative, positive = unet(inputs, timesteps, context=context, y=vector, transformer_options={}).chunk(2)
        x = x + (following - sigma) * (negative + 5 * (positive - negative))
    return x


def multiply_out(patch: injection.Patch) -> Tensor:
    """What a patch adds to its parameter at strength 1."""
    return patch.scale * patch.up @ patch.down if isinstance(patch, LoraPatch) else patch.delta


def differ(value: Tensor, expected: Tensor) -> float:
    """The relative difference."""
    return float((value - expected).norm() / expected.norm())


def merge(unet: nn.Module, patches: injection.Patches, strength: float) -> nn.Module:
    """A copy whose parameters are changed; the first convolution may get more input channels."""
    merged = copy.deepcopy(unet)
    for name, patch in patches.items():
        path, _, leaf = name.rpartition(".")
        owner = merged.get_submodule(path)
        weight = owner.get_parameter(leaf)
        delta = multiply_out(patch)
        if delta.ndim == 4 and delta.shape[1] > weight.shape[1]:
            weight = F.pad(weight, (0, 0, 0, 0, 0, delta.shape[1] - weight.shape[1]))
        setattr(owner, leaf, nn.Parameter(weight + strength * delta, requires_grad=False))
    return merged


class MergedSharing(nn.Module):
    """Attention sharing written out: merged weights for each frame, then attention over the frames of each token."""

    def __init__(self, attention: Any, unit: AttentionSharingUnit) -> None:
        super().__init__()
        self.heads, self.frames, self.unit = attention.heads, unit.frames, unit
        self.projections: dict[str, list[Tensor]] = {}
        for name in ("to_q", "to_k", "to_v", "to_out"):
            weight = (attention.to_out[0] if name == "to_out" else attention.get_submodule(name)).weight
            self.projections[name] = [
                weight + self.read(f"{name}_lora.{f}.up.weight") @ self.read(f"{name}_lora.{f}.down.weight")
                for f in range(self.frames)
            ]
        self.bias = attention.to_out[0].bias

    def read(self, name: str) -> Tensor:
        return self.unit.get_parameter(name)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.read(f"{name}.weight"), self.read(f"{name}.bias"))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return (scores @ v).transpose(-2, -3).flatten(-2)

    def forward(self, x: Tensor, context: Tensor | None = None, **_others: Any) -> Tensor:
        rows: list[Tensor] = []
        for index, row in enumerate(x):
            q, k, v, out = (weights[index % self.frames] for weights in self.projections.values())
            source = row if context is None else context[index]
            hidden = self.attend(F.linear(row, q), F.linear(source, k), F.linear(source, v))
            rows.append(F.linear(hidden, out, self.bias))
        change = torch.stack(rows)
        normed = F.layer_norm(
            x + change, x.shape[-1:], self.read("temporal_n.weight"), self.read("temporal_n.bias"), 1e-6
        )
        by_token = self.linear("temporal_i", normed).unflatten(0, (-1, self.frames)).transpose(1, 2)
        mixed = self.attend(*(self.linear(f"temporal_{name}", by_token) for name in "qkv"))
        return change + self.linear("temporal_o", mixed).transpose(1, 2).flatten(0, 1)


def compare(
    unet: nn.Module, merged: nn.Module, inject: Callable[[], Any], rows: int, concat: Any = None
) -> list[float]:
    plain = sample(unet, rows)
    with inject():
        injected = sample(unet, rows)
    expected = sample(merged, rows, concat)
    assert torch.equal(sample(unet, rows), plain), "the UNet was left changed"
    return [differ(value, expected) for value in (injected, plain)]


def compare_patches(unet: nn.Module, patches: injection.Patches, concat: Tensor | None = None) -> list[float]:
    merged = merge(unet, patches, 0.8)
    return compare(unet, merged, lambda: injection.side_path(unet, patches, 0.8, concat=concat), 2, concat)


def compare_sharing(unet: nn.Module, frames: int) -> list[float]:
    merged = copy.deepcopy(unet)
    units: dict[str, AttentionSharingUnit] = {}
    for name in ATTENTION_ORDER:
        unit = AttentionSharingUnit(unet.get_submodule(name), frames, rank=8)
        seeded.fill(unit, 2, gain=0.5, prefix=name).requires_grad_(False)
        units[name] = unit
        path, _, leaf = name.rpartition(".")
        setattr(merged.get_submodule(path), leaf, MergedSharing(unet.get_submodule(name), unit))
    return compare(unet, merged, lambda: injection.shared_attention(unet, units), 2 * frames)


def make_lora(unet: nn.Module) -> injection.Patches:
    shapes = {name: p.shape for name, p in unet.named_parameters() if ".attn" in name and name.endswith(".weight")}
    return {
        name: LoraPatch(_tensor(f"{name}.up", (out, 8)), _tensor(f"{name}.down", (8, inner)))
        for name, (out, inner) in shapes.items()
    }


def make_diff(unet: nn.Module) -> injection.Patches:
    shapes = {name: p.shape for name, p in unet.named_parameters() if ".transformer_blocks." not in name}
    return {name: DiffPatch(_tensor(name, shape)) for name, shape in shapes.items() if name != "label_emb.weight"}


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    value = seeded.tensor(f"{name}.linear" if len(shape) > 1 else f"{name}.bias", shape, 4, gain=0.3)
    assert value is not None
    return value


@torch.inference_mode()
def measure() -> dict[str, list[float]]:
    sdxl, sd15 = build("sdxl"), build("sd15")
    condition = torch.randn(1, 8, 16, 24, generator=torch.Generator().manual_seed(5))
    first = "input_blocks.0.0.weight"
    widened = {**make_diff(sdxl), first: DiffPatch(_tensor(first, (CHANNELS, 12, 3, 3)))}
    return {
        "lora": compare_patches(sdxl, make_lora(sdxl)),
        "diff": compare_patches(sdxl, make_diff(sdxl)),
        "widened": compare_patches(sdxl, widened, condition),
        "sharing_1": compare_sharing(sd15, 1),
        "sharing_3": compare_sharing(sd15, 3),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path[:0] = [str(folder / name) for name in ("", "packages_3rdparty", "modules_forge/packages")]
    sys.argv[1:] = [flag for flag in choose_flags(folder) if flag in ONLY_PROCESSOR]  # Forge reads the command line
    torch.set_num_threads(1)  # the layers are small: on a busy machine threads would wait for each other all the time
    sys.stdout.write(f"{json.dumps(measure())}\n")
