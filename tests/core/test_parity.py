"""The networks give the numbers of an independent implementation on the same seeded weights.

`figures/networks.npz` holds its inputs and a part of its outputs (every sixth or eighth row and column).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib_layerdiffusion.layers import pad_rgb
from lib_layerdiffusion.shared_attention import AttentionSharingUnit, ControlEncoder
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests import seeded

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of the largest output
FIGURES = np.load(Path(__file__).parents[1] / "figures" / "networks.npz")
CASES = sorted({name.split(".")[1] for name in FIGURES.files if name.startswith("attention.")})


def read(name: str) -> Tensor | None:
    return torch.from_numpy(FIGURES[name]) if name in FIGURES.files else None


def assert_close(output: Tensor | NDArray[np.float32], name: str) -> None:
    wanted = torch.from_numpy(FIGURES[name])
    assert (torch.as_tensor(output) - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("call", ["single_pass", "median"])
def test_decoder_of_the_published_size(call: str) -> None:
    decoder = seeded.fill(TransparentDecoder(), 41).eval()
    with torch.no_grad():
        decoder.conv_out.weight.mul_(0.3)
        decoder.conv_out.bias.add_(0.5)
        pixel = torch.from_numpy(FIGURES["decoder.pixel"]).permute(2, 0, 1)[None].float() / 255
        latent = torch.from_numpy(FIGURES["decoder.latent"])[None]
        output = decoder(pixel, latent) if call == "single_pass" else decoder.decode(pixel, latent)
    assert_close(output[0, :, 1::6, 2::6], f"decoder.{call}")


@pytest.mark.parametrize("tag", ["128x128_disc", "96x160_soft", "64x64_empty"])
def test_padded_rgb_and_encoder(tag: str) -> None:
    encoder = seeded.fill(TransparentEncoder(), 51, 1.7)
    rgba = FIGURES[f"encoder.{tag}.rgba"]
    padded = pad_rgb(rgba)
    assert_close(padded[1::5, 2::5], f"encoder.{tag}.padded")
    image = np.concatenate([rgba[..., 3:].astype(np.float32) / 255, padded], axis=-1)
    with torch.no_grad():
        encoder.blocks[-1].weight.mul_(0.5)
        offset = encoder(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    assert_close(offset, f"encoder.{tag}.offset")


class HostAttention(nn.Module):
    """A host's cross attention: 64 wide, 4 heads."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.heads = 4
        self.to_q = nn.Linear(64, 64, bias=False)
        self.to_k = nn.Linear(context, 64, bias=False)
        self.to_v = nn.Linear(context, 64, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(64, 64), nn.Dropout(0)])


@pytest.mark.parametrize("case", CASES)
def test_attention_sharing(case: str) -> None:
    frames, control, cross = int(case[1]), "_ctl" in case, "attn2" in case
    host = seeded.fill(HostAttention(48 if cross else 64), 60 + frames, prefix="base.")
    unit = AttentionSharingUnit(host, frames, control=control, rank=16)
    seeded.fill(unit, 60 + frames)
    with torch.no_grad():
        for name, parameter in unit.named_parameters():
            convs = "control_convs" in name and name.endswith(".2.weight")
            if name.endswith(".up.weight") or name == "temporal_o.weight" or convs:
                parameter.mul_(0.3)
        contexts = [read(f"attention.{case}.ow{frame}") for frame in range(frames)]
        h = read(f"attention.{case}.h")
        assert h is not None
        output = unit(
            h,
            read(f"attention.{case}.ctx") if cross else None,
            control_signal=read(f"attention.{case}.control_signal"),
            extra_contexts=contexts if any(context is not None for context in contexts) else None,
            cond_mark=read(f"attention.{case}.cond_mark"),
        )
    assert_close(output[:, ::8], f"attention.{case}.out")


def test_control_encoder() -> None:
    encoder = seeded.fill(ControlEncoder(), 80, 1.7)
    image = read("control.image")
    assert image is not None
    with torch.no_grad():
        signals = encoder(image * 2 - 1)
    assert len(signals) == 4
    for tokens, signal in signals.items():
        assert_close(signal[:, ::8], f"control.{tokens}")
