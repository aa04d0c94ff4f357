"""Make a trained transparent decoder wider: channels are copied, and what reads them is divided among the copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..refusal import Refusal
from ..transparent_vae import LATENT_LEVEL, LEVELS

UNLIKE = 0.05  # relative noise on copied channels, so that the copies learn different things

Segments = list[tuple[int, int]]  # (channels before, copies of each): what an input or output consists of


def widen(state: Mapping[str, Tensor], widths: Sequence[int]) -> dict[str, Tensor]:
    """The decoder's state dict with these widths, multiples of its own; unchanged where they are its own.

    Copies lie beside each other, so that the groups of the normalisations hold what they held. Only where a level that
    is widened meets one that isn't, groups change and the output with them, a little.
    """
    old = [state[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(LEVELS)]
    if old == list(widths):
        return dict(state)
    if any(new % before for new, before in zip(widths, old, strict=True)):
        raise Refusal(f"A decoder with the widths {old} can't become {list(widths)}; give multiples of them.")
    if list(widths[LATENT_LEVEL:]) != old[LATENT_LEVEL:]:
        raise Refusal("Only levels that are finer than the latent can be widened; keep the other decoder_widths.")
    level = [(before, new // before) for new, before in zip(widths, old, strict=True)]
    generator = torch.Generator().manual_seed(0)
    result: dict[str, Tensor] = {}

    def copy(name: str, out: Segments, into: Segments | None = None) -> None:
        """Copy a layer's weight and bias; `into` is what it reads, None for a normalisation."""
        weight, rows = state[f"{name}.weight"], _index(out)
        if into is not None:
            columns, copies = _index(into), torch.tensor([n for width, n in into for _ in range(width * n)])
            weight = weight[:, columns] / copies.reshape(-1, *[1] * (weight.dim() - 2))
        weight = weight[rows].clone()
        if into is not None and len(rows) > state[f"{name}.weight"].shape[0]:
            weight *= 1 + UNLIKE * torch.randn(weight.shape, generator=generator)
        result[f"{name}.weight"], result[f"{name}.bias"] = weight, state[f"{name}.bias"][rows].clone()

    def copy_resnet(name: str, into: Segments, out: Segments) -> None:
        copy(f"{name}.norm1", into)
        copy(f"{name}.conv1", out, into)
        copy(f"{name}.norm2", out)
        copy(f"{name}.conv2", out, out)
        if f"{name}.conv_shortcut.weight" in state:
            if len(_index(into)) == len(_index(out)):
                raise Refusal(f"{name} has no shortcut with decoder_widths {list(widths)}; give other multiples.")
            copy(f"{name}.conv_shortcut", out, into)
        elif into != out:  # the sum of copies, where the input passed as it was
            rows, columns = _index(out), _index(into)
            same = (rows[:, None] == columns[None]).float()
            result[f"{name}.conv_shortcut.weight"] = (same / same.sum(dim=1, keepdim=True))[..., None, None]
            result[f"{name}.conv_shortcut.bias"] = torch.zeros(len(rows))

    copy("conv_in", [level[0]], [(3, 1)])
    copy("latent_conv_in", [level[LATENT_LEVEL - 1]], [(4, 1)])
    skips: list[Segments] = [[level[0]]]
    for i in range(LEVELS):
        for row in range(2):
            copy_resnet(f"down_blocks.{i}.resnets.{row}", skips[-1] if row == 0 else [level[i]], [level[i]])
            skips.append([level[i]])
        if i < LEVELS - 1:
            copy(f"down_blocks.{i}.downsamplers.0.conv", [level[i]], [level[i]])
            skips.append([level[i]])
    current: Segments = [level[-1]]
    for row, i in enumerate(reversed(range(LEVELS))):
        for resnet in range(3):
            copy_resnet(f"up_blocks.{row}.resnets.{resnet}", current + skips.pop(), [level[i]])
            current = [level[i]]
        if i > 0:
            copy(f"up_blocks.{row}.upsamplers.0.conv", [level[i]], [level[i]])
    copy("conv_norm_out", [level[0]])
    copy("conv_out", [(4, 1)], [level[0]])
    return dict(state) | result


def _index(segments: Segments) -> Tensor:
    """For each channel after widening, the one before that it is a copy of."""
    starts = [sum(width for width, _ in segments[:i]) for i in range(len(segments))]
    pairs = zip(starts, segments, strict=True)
    return torch.tensor([start + channel for start, (width, n) in pairs for channel in range(width) for _ in range(n)])
