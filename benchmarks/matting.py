"""Compare the alpha of encode -> decode with matting of the same composited sprites; writes docs/matting.md.

Matting sees a composite over a background; latent transparency carries alpha through the latent. Needs the training
archive and `pip install pymatting`, whose first import compiles for about a minute:

    python benchmarks/matting.py sprites.zip --model lib_layerdiffusion/embedded/model
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from pymatting import estimate_alpha_cf

from lib_layerdiffusion.train.dataset import (
    Sprite,
    TransparentBatch,
    make_background,
    make_photo_background,
    read_sprites,
    step_rng,
)
from lib_layerdiffusion.train.harmlessness import adjust
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from lib_layerdiffusion.weights import WeightStore

Alpha = NDArray[np.float32]
BACKGROUNDS = {"plain or gradient": make_background, "photo-like": make_photo_background}


def draw_trimap(alpha: Alpha) -> Alpha:
    """A generous trimap, made from the true alpha: 0 outside, 1 where opaque, 0.5 in between, widened by two pixels.

    Of an image without an opaque pixel the most opaque ones count as that, since matting needs some foreground.
    """
    unknown = ((alpha > 0.02) & (alpha < 0.98)).astype(np.uint8)
    unknown = cv2.dilate(unknown, np.ones((5, 5), np.uint8))
    trimap = np.where(unknown > 0, 0.5, alpha > 0.5).astype(np.float32)
    if not (trimap == 1).any():
        trimap[alpha == alpha.max()] = 1
    return trimap


def cut_with_grabcut(image: NDArray[np.float32], trimap: Alpha) -> Alpha:
    """GrabCut started from the trimap; its unknown pixels begin as probable foreground."""
    mask = np.where(trimap == 0, cv2.GC_BGD, np.where(trimap == 1, cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    if not (mask == cv2.GC_BGD).any():
        return np.ones_like(trimap)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    pixels = np.ascontiguousarray(np.round(image[..., ::-1] * 255).astype(np.uint8))
    cv2.grabCut(pixels, mask, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)


def cut_with_closed_form(image: NDArray[np.float32], trimap: Alpha) -> Alpha:
    """Closed-form matting (Levin et al. 2008) of pymatting."""
    if not (trimap == 0).any():
        return np.ones_like(trimap)
    return estimate_alpha_cf(image.astype(np.float64), trimap.astype(np.float64)).astype(np.float32)


class Autoencoder:
    """Encode and decode with the embedded model, 8 views; the background plays no part."""

    def __init__(self, model: Path) -> None:
        store = WeightStore([model / "layer_model"])
        self.vae = AutoencoderKL.from_pretrained(model / "vae")
        self.encoder = TransparentEncoder.from_state_dict(store.load("layer_sd15_vae_transparent_encoder"))
        self.decoder = TransparentDecoder.from_state_dict(store.load("layer_sd15_vae_transparent_decoder"))

    @torch.no_grad()
    def __call__(self, sprite: Sprite) -> Alpha:
        _, latent = adjust(self.vae, self.encoder, TransparentBatch.of([sprite.premultiplied]))
        picture = (self.vae.decode(latent).sample * 0.5 + 0.5).clamp(0, 1)
        return self.decoder.decode(picture, latent)[0, 0].numpy()


def compare(sprites: list[Sprite], model: Path) -> dict[str, dict[str, float]]:
    """Mean absolute alpha error of each method, per class of sprite."""
    methods: dict[str, Callable[[NDArray[np.float32], Alpha], Alpha]] = {
        "GrabCut": cut_with_grabcut,
        "closed-form matting": cut_with_closed_form,
    }
    autoencode = Autoencoder(model)
    errors: dict[str, dict[str, list[float]]] = {}
    for row, sprite in enumerate(sprites):
        pixels = sprite.premultiplied
        alpha = pixels[..., 3]
        kind = errors.setdefault(sprite.text if sprite.kind == "soft" else "(opaque)", {})
        kind.setdefault("encode -> decode", []).append(float(np.abs(autoencode(sprite) - alpha).mean()))
        trimap = draw_trimap(alpha)
        for make in BACKGROUNDS.values():
            background = make(alpha.shape[0], step_rng(0, row))
            image = np.clip(pixels[..., :3] + background * (1 - pixels[..., 3:]), 0, 1)
            for name, method in methods.items():
                kind.setdefault(name, []).append(float(np.abs(method(image, trimap) - alpha).mean()))
    return {
        kind: {name: float(np.mean(values)) for name, values in columns.items()} for kind, columns in errors.items()
    }


def tabulate(errors: dict[str, dict[str, float]], counts: dict[str, int]) -> str:
    columns = ["encode -> decode", "GrabCut", "closed-form matting"]
    lines = ["| sprites | number | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for kind, row in errors.items():
        lines.append(f"| {kind} | {counts[kind]} | " + " | ".join(f"{row[name]:.4f}" for name in columns) + " |")
    soft = [kind for kind in errors if kind != "(opaque)"]
    total = sum(counts[kind] for kind in soft)
    means = [sum(errors[kind][name] * counts[kind] for kind in soft) / total for name in columns]
    lines.append(f"| **all half-transparent** | {total} | " + " | ".join(f"**{mean:.4f}**" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("lib_layerdiffusion/embedded/model"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("docs/matting.md"))
    given = parser.parse_args()
    sprites = [sprite for sprite in read_sprites(given.data, given.size) if sprite.split == "held-out"]
    names = [sprite.text if sprite.kind == "soft" else "(opaque)" for sprite in sprites]
    table = tabulate(compare(sprites, given.model), {name: names.count(name) for name in names})
    given.out.write_text(
        "# Latent transparency against matting\n\n"
        f"Mean absolute error of alpha (0..1) at {given.size} x {given.size} pixels, sprites that the transparent\n"
        "encoder and decoder were not trained on. Encode -> decode carries alpha through the embedded model's latent;\n"
        "the matting methods see the sprite composited over a plain or gradient and a photo-like background, with a\n"
        "trimap made from the true alpha. The latent carries alpha and matting has to estimate it, so this\n"
        f"compares two tasks, not two solutions of one task. Written by `python benchmarks/matting.py`.\n\n{table}\n",
        encoding="utf-8",
    )
    print(table)


if __name__ == "__main__":
    main()
