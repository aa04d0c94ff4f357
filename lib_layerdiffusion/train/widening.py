"""Change a trained transparent decoder before it is trained further: make it wider, or let the picture through.

When it is made wider, channels are copied, and what reads them is divided among the copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..refusal import Refusal
from ..transparent_vae import GROUPS, LATENT_LEVEL, LEVELS

UNLIKE = 0.05  # relative noise on copied channels, so that the copies learn different things
TAP = 0.5  # how far the two channels that carry a colour from the first convolution differ, for a colour of 1
ANCHOR = 5.0  # constant channels in a group of the last normalisation, much larger than colours: they fix its scale

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


def let_through(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict, changed so that its colour is the picture's own and training starts from there.

    The first convolution has each colour of a pixel in the difference of two channels, which the last resnet's shortcut
    hands to one group of the last normalisation: with either sign, since silu(x) - silu(-x) = x, and beside two large
    constants, so that the group's scale hardly depends on the picture. That group is the one that counted least. What
    it held is lost, as is what channels 1, 3 and 5 of the first convolution held where they weren't copies of their
    neighbours. The network has to learn anew what differs from the picture: colour where alpha is low.
    """
    result = {name: value.clone() for name, value in state.items()}
    width = result["conv_in.weight"].shape[0]
    size = width // GROUPS
    if size < 8:
        raise Refusal(
            f"The picture's path takes 8 channels in a group; let decoder_widths begin with {8 * GROUPS} or more."
        )
    for colour in range(3):
        first, second = 2 * colour, 2 * colour + 1
        for part in ("conv_in.weight", "conv_in.bias"):
            result[part][second] = result[part][first]
        result["conv_in.weight"][second, colour, 1, 1] += TAP

    counts = result["conv_out.weight"].abs().mean(dim=(0, 2, 3)) * result["conv_norm_out.weight"].abs()
    start = size * int(counts.reshape(GROUPS, size).sum(dim=1).argmin())
    last = f"up_blocks.{LEVELS - 1}.resnets.2"
    for layer in ("conv2", "conv_shortcut"):
        for part in ("weight", "bias"):
            result[f"{last}.{layer}.{part}"][start : start + size] = 0
    weight, bias = result[f"{last}.conv_shortcut.weight"], result[f"{last}.conv_shortcut.bias"]
    taps = weight.shape[1] - width  # the first convolution's output comes after the channels from below
    scale = ANCHOR * (2 / size) ** 0.5  # the group's deviation, but for the colours' own
    result["conv_norm_out.weight"][start : start + size] = scale
    result["conv_norm_out.bias"][start : start + size] = 0
    result["conv_out.weight"][:, start : start + size] = 0
    result["conv_out.weight"][1:] = 0
    result["conv_out.bias"][1:] = 0.5
    for colour in range(3):
        for sign, row in ((1, start + 2 * colour), (-1, start + 2 * colour + 1)):
            weight[row, taps + 2 * colour + 1] = sign / TAP
            weight[row, taps + 2 * colour] = -sign / TAP
            bias[row] = -sign * 0.5
            result["conv_out.weight"][1 + colour, row, 1, 1] = sign
    bias[start + 6], bias[start + 7] = ANCHOR, -ANCHOR
    return result
