"""Measure how much a transparent encoder's offset changes what the frozen decoder makes of a latent.

LayerDiffusion (arXiv 2402.17113), section 3.1, calls an offset harmless when the frozen decoder doesn't notice it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..refusal import Parser, Refusal, integer
from ..transparent_vae import TransparentEncoder
from ..weights import WeightStore
from .autoencoder import adjust, read_autoencoder
from .dataset import Sprite, TransparentBatch, read_sprites
from .measures import psnr


@dataclass(frozen=True)
class Harm:
    """One image: distance between the decoded latent with and without offset, values in 0..1."""

    name: str
    kind: str
    psnr: float  # dB
    mean: float  # mean absolute difference
    largest: float


@torch.no_grad()
def measure(vae: Any, encoder: TransparentEncoder, sprites: list[Sprite]) -> list[Harm]:
    """Harm done to each sprite; deterministic, no augmentation."""
    rows: list[Harm] = []
    for sprite in sprites:
        batch = TransparentBatch.of([sprite.premultiplied]).to(vae.device)
        latents = adjust(vae, encoder, batch)
        without, with_offset = ((vae.decode(z).sample.float() * 0.5 + 0.5).clamp(0, 1) for z in latents)
        difference = (with_offset - without).abs()
        db = float(psnr(with_offset, without).mean())
        rows.append(Harm(sprite.name, sprite.kind, db, float(difference.mean()), float(difference.max())))
    return rows


def tabulate(rows: list[Harm]) -> str:
    """Markdown table: one line for each kind of image and one for all."""
    lines = ["| images | number | PSNR mean (dB) | PSNR worst (dB) | mean abs. diff. | largest diff. |"]
    lines.append("|---" * 6 + "|")
    for kind in [*dict.fromkeys(row.kind for row in rows), "all"]:
        of_kind = [row for row in rows if kind in (row.kind, "all")]
        mean = sum(row.psnr for row in of_kind) / len(of_kind)
        worst = min(row.psnr for row in of_kind)
        difference = sum(row.mean for row in of_kind) / len(of_kind)
        largest = max(row.largest for row in of_kind)
        lines.append(f"| {kind} | {len(of_kind)} | {mean:.2f} | {worst:.2f} | {difference:.4f} | {largest:.4f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Command `layerdiffusion harmlessness`."""
    parser = Parser(prog="layerdiffusion harmlessness", description=__doc__)
    parser.add_argument("data", type=Path, help="folder or zip of RGBA images")
    parser.add_argument("--vae", type=Path, required=True, help="diffusers folder of the autoencoder or its pipeline")
    parser.add_argument("--encoder", type=Path, required=True, help="transparent encoder (.safetensors)")
    parser.add_argument(
        "--size", type=integer(8, 2048), default=128, help="side of the square images in pixels, a multiple of 8"
    )
    parser.add_argument("--split", default=None, help="only this split of the data set, e.g. held-out")
    given = parser.parse_args(argv)
    sprites = [s for s in read_sprites(given.data, given.size) if given.split in (None, s.split)]
    if not sprites:
        raise Refusal(f"{given.data} holds no image of the split {given.split}; name another, or none for all.")
    vae = read_autoencoder(given.vae)
    encoder = TransparentEncoder.from_state_dict(WeightStore([]).load(given.encoder))
    print(tabulate(measure(vae, encoder, sprites)))
    return 0
