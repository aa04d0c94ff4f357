"""How much alpha the transparent decoder gives away for time: fewer views and half precision, on real pictures.

    OMP_NUM_THREADS=1 python benchmarks/views.py

A picture of each word of the embedded model is sampled once. Its latent is then decoded in each way, and compared with
8 views in float32, in 255ths: alpha over all pixels and over those in edges (alpha 0.02 to 0.98), and colour, of which
the channel that is farthest off counts, over visible pixels (alpha above 0.02). Few processors compute in half
precision as fast as GPUs do, so there only the differences count.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import head, say, time_work
from lib_layerdiffusion import layer_diffusion
from lib_layerdiffusion.embedded import EMBEDDED_FOLDER, GUIDANCE
from lib_layerdiffusion.embedded.gallery import read_captions
from lib_layerdiffusion.options import AS_NEEDED
from lib_layerdiffusion.transparent_vae import TransparentDecoder
from lib_layerdiffusion.weights import WeightStore

LAYERS = EMBEDDED_FOLDER / "layer_model"
EDGE = (0.02, 0.98)


def sample(seed: int) -> list[tuple[Tensor, Tensor]]:
    """What the decoder is given for a picture of each word: the VAE's picture and the latent."""
    pipeline: Any = DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    given: list[tuple[Tensor, Tensor]] = []
    own = TransparentDecoder.decode

    def note(decoder: TransparentDecoder, pixel: Tensor, latent: Tensor, *settings: Any, **named: Any) -> Tensor:
        given.append((pixel.clone(), latent.clone()))
        return own(decoder, pixel, latent, *settings, **named)

    with patch.object(TransparentDecoder, "decode", note), layer_diffusion(pipeline, weights=LAYERS, views=1) as ld:
        for word in read_captions(EMBEDDED_FOLDER):
            ld(word, seed=seed, cfg=GUIDANCE)
    return given


@torch.no_grad()
def decode(decoder: TransparentDecoder, given: list[tuple[Tensor, Tensor]], views: int) -> NDArray[np.float32]:
    """Alpha and colour of all pictures [N, 4, H, W], 0..255."""
    return np.stack([decoder.decode(pixel, latent, views)[0].numpy() * 255 for pixel, latent in given])


def tell(off: NDArray[np.float32]) -> tuple[str, str, str]:
    """Mean and largest difference, and the share above one 255th."""
    return f"{off.mean():.3f}", f"{off.max():.2f}", f"{100 * (off > 1).mean():.4f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    given = sample(seed)
    state = WeightStore([LAYERS]).load("layer_sd15_vae_transparent_decoder")
    ways = [(views, torch.float32) for views in (8, 4, AS_NEEDED, 2, 1)]
    ways += [(8, dtype) for dtype in (torch.float16, torch.bfloat16)]
    wanted, whole = np.empty(0, np.float32), 0.0
    figures = ("mean", "largest", "above 1")
    titles = *(f"alpha, {name}" for name in figures), "in edges", *(f"colour, {name}" for name in figures)
    head("views", "computed in", "time", *titles)
    for views, dtype in ways:
        network = TransparentDecoder.from_state_dict(state, dtype).eval()
        runs: list[NDArray[np.float32]] = []
        seconds = time_work(lambda way=(network, given, views), runs=runs: runs.append(decode(*way)), 1)
        made = runs[-1]
        if not whole:
            wanted, whole = made, seconds
        visible = wanted[:, 0] > EDGE[0] * 255
        edge = visible & (wanted[:, 0] < EDGE[1] * 255)
        off = np.abs(made - wanted)
        alpha, colour = off[:, 0], off[:, 1:].max(axis=1)[visible]
        kind = str(dtype).removeprefix("torch.")
        say(
            "as needed" if views == AS_NEEDED else views,
            kind,
            f"{seconds / whole:.2f}",
            *tell(alpha),
            f"{alpha[edge].mean():.2f}",
            *tell(colour),
        )


if __name__ == "__main__":
    main()
