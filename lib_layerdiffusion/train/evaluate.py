"""Measure the embedded model: autoencoding of held-out sprites, prompt fidelity and alpha of generated images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..embedded import GUIDANCE
from ..transparent_vae import TransparentDecoder, TransparentEncoder
from ..weights import WeightStore
from .autoencoder import adjust, read_autoencoder
from .dataset import (
    Sprite,
    TransparentBatch,
    find_prompts,
    make_photo_background,
    read_sprites,
    split_sprites,
    step_rng,
)
from .harmlessness import measure
from .measures import psnr

COMPARE_SIZE = 32
FRAME = 4  # pixels of the outer frame
OUTSIDE, INSIDE = 0.02, 0.98
SOFT = (0.1, 0.9)


@dataclass(frozen=True)
class Autoencoding:
    """Means over a set of sprites."""

    images: int
    alpha_mae: float
    alpha_mae_without_offset: float
    recomposite_db: Mapping[str, float]  # per background
    harmless_db: float


@torch.no_grad()
def evaluate_autoencoding(
    vae: Any, encoder: TransparentEncoder, decoder: TransparentDecoder, sprites: list[Sprite]
) -> Autoencoding:
    """Encode and decode each sprite (8 views); the same with the offset set to 0."""
    size = sprites[0].rgba.shape[0]
    photo = torch.from_numpy(make_photo_background(size, step_rng(0, 0)).transpose(2, 0, 1).copy())
    backgrounds = {"black": torch.zeros(3, size, size), "white": torch.ones(3, size, size), "photo-like": photo}
    errors: dict[str, list[float]] = {"with": [], "without": [], **{name: [] for name in backgrounds}}
    for sprite in sprites:
        batch = TransparentBatch.of([sprite.premultiplied])
        for key, latent in zip(("without", "with"), adjust(vae, encoder, batch), strict=True):
            picture = (vae.decode(latent).sample * 0.5 + 0.5).clamp(0, 1)
            output = decoder.decode(picture, latent)
            alpha, colour = output[:, :1], output[:, 1:]
            errors[key].append(float((alpha - batch.alpha).abs().mean()))
        for name, background in backgrounds.items():
            shown = colour * alpha + background * (1 - alpha)
            wanted = batch.padded * batch.alpha + background * (1 - batch.alpha)
            errors[name].append(float(psnr(shown, wanted).mean()))
    mean = {name: sum(values) / len(values) for name, values in errors.items()}
    harm = measure(vae, encoder, sprites)
    return Autoencoding(
        len(sprites),
        mean["with"],
        mean["without"],
        {name: mean[name] for name in backgrounds},
        sum(row.psnr for row in harm) / len(harm),
    )


def describe(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the distance compares: the sprite's visible box, fitted to a square of 32 pixels, over mid-grey.

    The crop makes the distance blind to place and size, which the augmentation varies.
    """
    visible = rgba[..., 3] > 25
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not rows.size:
        return np.full((COMPARE_SIZE, COMPARE_SIZE, 3), 0.5, np.float32)
    cut = Image.fromarray(rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    side = max(cut.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    pixels = np.asarray(square.resize((COMPARE_SIZE, COMPARE_SIZE), Image.Resampling.BOX), np.float32) / 255
    return 0.5 + (pixels[..., :3] - 0.5) * pixels[..., 3:]


def nearest_caption(rgba: NDArray[np.uint8], sprites: list[Sprite]) -> str:
    """Caption of the sprite with the least mean squared difference (`describe`), mirror images allowed."""
    image = describe(rgba)

    def distance(sprite: Sprite) -> float:
        other = describe(sprite.rgba)
        return min(float(((image - view) ** 2).mean()) for view in (other, other[:, ::-1]))

    return min(sprites, key=distance).text


def soft_share(rgba: NDArray[np.uint8]) -> float:
    """Share of pixels whose alpha lies strictly between 0.1 and 0.9."""
    alpha = rgba[..., 3] / 255
    return float(((alpha > SOFT[0]) & (alpha < SOFT[1])).mean())


@dataclass(frozen=True)
class Judgement:
    """One generated image against the sprites it was trained on."""

    caption: str
    seed: int
    nearest: str
    outside: float  # mean alpha of the outer frame
    inside: float  # largest alpha
    soft: float  # share of half-transparent pixels
    soft_of_sprites: float
    kind: str

    @property
    def is_faithful(self) -> bool:
        return self.nearest == self.caption

    @property
    def has_good_alpha(self) -> bool:
        clean = self.outside < OUTSIDE
        return clean and (self.inside > INSIDE if self.kind == "opaque" else self.soft >= 0.5 * self.soft_of_sprites)


def judge(rgba: NDArray[np.uint8], caption: str, seed: int, sprites: list[Sprite]) -> Judgement:
    """Judge one image against all sprites; their caption has to be among them."""
    own = [sprite for sprite in sprites if sprite.text == caption]
    frame = np.ones(rgba.shape[:2], bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    alpha = rgba[..., 3] / 255
    shares = [soft_share(sprite.rgba) for sprite in own]
    return Judgement(
        caption,
        seed,
        nearest_caption(rgba, sprites),
        float(alpha[frame].mean()),
        float(alpha.max()),
        soft_share(rgba),
        sum(shares) / len(shares),
        own[0].kind,
    )


def evaluate_generation(
    model: Path, sprites: list[Sprite], seeds: range, out: Path | None, batch: int = 8
) -> list[Judgement]:
    """Generate every caption with every seed (20 steps, 8 views) and judge the images; `out` keeps the PNGs."""
    from diffusers import DiffusionPipeline

    from .. import layer_diffusion

    pipeline: Any = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    known = find_prompts(split_sprites(sprites)[0])
    jobs = [(caption, seed) for caption in dict.fromkeys(s.text for s in known) for seed in seeds]
    rows: list[Judgement] = []
    with layer_diffusion(pipeline, mode="foreground", weights=model / "layer_model") as ld:
        for start in range(0, len(jobs), batch):
            part = jobs[start : start + batch]
            stacks = ld.batch([caption for caption, _ in part], [seed for _, seed in part], cfg=GUIDANCE)
            for (caption, seed), stack in zip(part, stacks, strict=True):
                rgba = stack.layers[-1].image
                rows.append(judge(rgba, caption, seed, known))
                if out is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(rgba).save(out / f"{caption.replace(' ', '-')}-{seed}.png")
    return rows


def summarise(rows: list[Judgement]) -> dict[str, float]:
    """Shares over all images, and per kind."""
    opaque = [row for row in rows if row.kind == "opaque"]
    soft = [row for row in rows if row.kind == "soft"]

    def share(hits: list[bool]) -> float:
        return sum(hits) / max(1, len(hits))

    return {
        "images": len(rows),
        "prompt_fidelity": share([row.is_faithful for row in rows]),
        "clean_outside": share([row.outside < OUTSIDE for row in rows]),
        "solid_inside_of_opaque": share([row.inside > INSIDE for row in opaque]),
        "half_transparent_kept_of_soft": share([row.soft >= 0.5 * row.soft_of_sprites for row in soft]),
        "good_alpha": share([row.has_good_alpha for row in rows]),
    }


def main(argv: list[str]) -> int:
    """Command `layerdiffusion train evaluate`."""
    parser = argparse.ArgumentParser(prog="layerdiffusion train evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="diffusers folder with a layer_model folder inside")
    parser.add_argument("data", type=Path, help="the training archive")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs=2, default=(1000, 1004), metavar=("FIRST", "END"))
    parser.add_argument("--out", type=Path, help="folder for the images and evaluation.json")
    parser.add_argument("--only", choices=("autoencoding", "generation"))
    given = parser.parse_args(argv)
    sprites = read_sprites(given.data, given.size)
    report: dict[str, Any] = {}
    if given.only != "generation":
        store = WeightStore([given.model / "layer_model"])
        encoder = TransparentEncoder.from_state_dict(store.load("layer_sd15_vae_transparent_encoder")).eval()
        decoder = TransparentDecoder.from_state_dict(store.load("layer_sd15_vae_transparent_decoder")).eval()
        vae = read_autoencoder(given.model)
        for kind in ("opaque", "soft", None):
            chosen = [s for s in split_sprites(sprites)[1] if kind in (None, s.kind)]
            if chosen:
                report[f"autoencoding_{kind or 'all'}"] = asdict(evaluate_autoencoding(vae, encoder, decoder, chosen))
    if given.only != "autoencoding":
        rows = evaluate_generation(given.model, sprites, range(*given.seeds), given.out)
        report["generation"] = summarise(rows)
        report["misses"] = [asdict(row) for row in rows if not (row.is_faithful and row.has_good_alpha)]
    text = json.dumps(report, indent=1)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0
