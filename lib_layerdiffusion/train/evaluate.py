"""Measure the embedded model: autoencoding of held-out sprites; words, alpha and sharpness of generated images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..embedded import GUIDANCE
from ..export.output_folder import OutputFolder
from ..planning import LARGEST_SEED
from ..refusal import Parser, Refusal, integer
from ..transparent_vae import TransparentDecoder, TransparentEncoder
from ..weights import WeightStore
from .autoencoder import adjust, read_autoencoder
from .dataset import (
    Sprite,
    TransparentBatch,
    make_photo_background,
    read_sprites,
    split_sprites,
    step_rng,
)
from .harmlessness import measure
from .measures import count_parts, detail, edge_width, find_box, mark_frame, psnr
from .words import OUTSIDE, VISIBLE, find_words, nearest_caption

INSIDE = 0.98
LOOSE = 4.0  # pixels by which a box may exceed the sprite's own
SOFT = (0.1, 0.9)


@dataclass(frozen=True)
class Autoencoding:
    """Means over a set of sprites."""

    images: int
    alpha_mae: float
    alpha_mae_without_offset: float
    recomposite_db: Mapping[str, float]  # per background
    harmless_db: float
    picture_db: float  # the autoencoder's own picture of the sprite on grey, without offset
    picture_detail: float  # its detail as a share of the sprites'
    detail: float  # the same of what the transparent decoder makes, on grey
    edge: float | None  # width of alpha's edges as a multiple of the sprites'; of opaque ones


@torch.no_grad()
def measure_autoencoding(
    vae: Any, encoder: TransparentEncoder, decoder: TransparentDecoder, sprites: list[Sprite]
) -> list[dict[str, float]]:
    """Encode and decode each sprite (8 views); the same with the offset set to 0. One row of values for each."""
    size = sprites[0].rgba.shape[0]
    photo = torch.from_numpy(make_photo_background(size, step_rng(0, 0)).transpose(2, 0, 1).copy())
    backgrounds = {"black": torch.zeros(3, size, size), "white": torch.ones(3, size, size), "photo-like": photo}
    rows: list[dict[str, float]] = []
    for sprite, harm in zip(sprites, measure(vae, encoder, sprites), strict=True):
        row: dict[str, Tensor | float] = {"harmless_db": harm.psnr}
        batch = TransparentBatch.of([sprite.premultiplied])
        for key, latent in zip(("without", "with"), adjust(vae, encoder, batch), strict=True):
            picture = (vae.decode(latent).sample * 0.5 + 0.5).clamp(0, 1)
            output = decoder.decode(picture, latent)
            alpha, colour = output[:, :1], output[:, 1:]
            row[key] = (alpha - batch.alpha).abs().mean()
            if key == "without":
                row |= {"picture_db": psnr(picture, batch.grey), "picture_detail": detail(picture)}
        for name, background in backgrounds.items():
            shown = colour * alpha + background * (1 - alpha)
            wanted = batch.padded * batch.alpha + background * (1 - batch.alpha)
            row[name] = psnr(shown, wanted)
        row |= {"detail": detail(0.5 + (colour - 0.5) * alpha), "wanted_detail": detail(batch.grey)}
        if sprite.kind == "opaque":
            edges = (edge_width(each[0, 0].numpy()) for each in (alpha, batch.alpha))
            row["edge"], row["wanted_edge"] = edges
        rows.append({name: float(value) for name, value in row.items()})
    return rows


def summarise_autoencoding(rows: list[dict[str, float]]) -> Autoencoding:
    """Means over the rows of `measure_autoencoding`."""
    names = {name for row in rows for name in row}
    values = {name: [row[name] for row in rows if name in row] for name in names}
    mean = {name: sum(each) / len(each) for name, each in values.items()}
    return Autoencoding(
        images=len(rows),
        alpha_mae=mean["with"],
        alpha_mae_without_offset=mean["without"],
        recomposite_db={name: mean[name] for name in ("black", "white", "photo-like")},
        harmless_db=mean["harmless_db"],
        picture_db=mean["picture_db"],
        picture_detail=mean["picture_detail"] / mean["wanted_detail"],
        detail=mean["detail"] / mean["wanted_detail"],
        edge=mean["edge"] / mean["wanted_edge"] if "edge" in mean else None,
    )


def soft_share(rgba: NDArray[np.uint8]) -> float:
    """Share of pixels whose alpha lies strictly between 0.1 and 0.9."""
    alpha = rgba[..., 3] / 255
    return float(((alpha > SOFT[0]) & (alpha < SOFT[1])).mean())


def fit_sprite(sprite: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The sprite [S, S, 4] on an empty canvas of the image's size, as large there as the image's own motif."""
    boxes = [find_box(rgba[..., 3], VISIBLE) for rgba in (sprite, image)]
    height, width = image.shape[:2]
    factor = min(height, width) / sprite.shape[0]
    if boxes[0] is not None and boxes[1] is not None:
        areas = [(bottom - top) * (right - left) for top, left, bottom, right in (boxes[0], boxes[1])]
        factor = (areas[1] / areas[0]) ** 0.5
    side = max(1, round(sprite.shape[0] * factor))
    fitted = Image.fromarray(sprite).resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(fitted, ((width - side) // 2, (height - side) // 2))
    return np.asarray(canvas)


@dataclass(frozen=True)
class Look:
    """What an eye sees in one RGBA image."""

    detail: float  # Laplacian variance x 10,000, on mid-grey
    edge: float  # width of alpha's edge, pixels
    parts: int
    loose: float  # pixels by which the box of all alpha exceeds the box of what is visible

    @classmethod
    def at(cls, rgba: NDArray[np.uint8]) -> Look:
        alpha = rgba[..., 3].astype(np.float32) / 255
        grey = 0.5 + (rgba[..., :3].astype(np.float32) / 255 - 0.5) * alpha[..., None]
        every, visible = find_box(rgba[..., 3]), find_box(rgba[..., 3], VISIBLE)
        loose = 0.0
        if every is not None and visible is not None:
            loose = float(max(abs(a - b) for a, b in zip(every, visible, strict=True)))
        picture = torch.from_numpy(grey.transpose(2, 0, 1).copy())[None]
        return cls(float(detail(picture)), edge_width(alpha), count_parts(alpha), loose)


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
    corners: float  # largest alpha of the four corner pixels
    look: Look
    look_of_sprite: Look  # at the image's own size

    @property
    def is_faithful(self) -> bool:
        return self.nearest == self.caption

    @property
    def has_good_alpha(self) -> bool:
        clean = self.outside < OUTSIDE
        return clean and (self.inside > INSIDE if self.kind == "opaque" else self.soft >= 0.5 * self.soft_of_sprites)

    @property
    def is_whole(self) -> bool:
        """Whether it has as many connected parts as the sprite; one that is in pieces by nature may vary."""
        return self.look.parts == self.look_of_sprite.parts or (self.kind == "soft" and self.look_of_sprite.parts > 1)

    @property
    def has_tight_box(self) -> bool:
        """Whether the corners are empty and the box of all alpha above 0 fits the motif."""
        return self.corners == 0 and self.look.loose <= self.look_of_sprite.loose + LOOSE


def judge(rgba: NDArray[np.uint8], caption: str, seed: int, sprites: list[Sprite]) -> Judgement:
    """Judge one image against all sprites; their caption has to be among them."""
    own = [sprite for sprite in sprites if sprite.text == caption]
    alpha = rgba[..., 3] / 255
    shares = [soft_share(sprite.rgba) for sprite in own]
    return Judgement(
        caption,
        seed,
        nearest_caption(rgba, sprites),
        float(alpha[mark_frame(alpha.shape)].mean()),
        float(alpha.max()),
        soft_share(rgba),
        sum(shares) / len(shares),
        own[0].kind,
        float(alpha[[0, 0, -1, -1], [0, -1, 0, -1]].max()),
        Look.at(rgba),
        Look.at(fit_sprite(own[seed % len(own)].rgba, rgba)),
    )


def evaluate_generation(
    model: Path, sprites: list[Sprite], seeds: range, out: Path | None, batch: int = 8
) -> list[Judgement]:
    """Generate every caption with every seed (20 steps, 8 views) and judge the images; `out` keeps the PNGs."""
    from diffusers import DiffusionPipeline

    from .. import layer_diffusion

    pipeline: Any = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    known = find_words(model, sprites)
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
    """Shares over all images, and per kind; detail and edges as multiples of the sprites' own."""
    opaque = [row for row in rows if row.kind == "opaque"]
    soft = [row for row in rows if row.kind == "soft"]

    def share(hits: list[bool]) -> float:
        return sum(hits) / max(1, len(hits))

    def ratio(values: list[float], wanted: list[float]) -> float:
        return sum(values) / max(sum(wanted), 1e-9)

    return {
        "images": len(rows),
        "prompt_fidelity": share([row.is_faithful for row in rows]),
        "faithful_and_whole": share([row.is_faithful and row.is_whole for row in rows]),
        "clean_outside": share([row.outside < OUTSIDE for row in rows]),
        "empty_corners": share([row.corners == 0 for row in rows]),
        "tight_box": share([row.has_tight_box for row in rows]),
        "solid_inside_of_opaque": share([row.inside > INSIDE for row in opaque]),
        "half_transparent_kept_of_soft": share([row.soft >= 0.5 * row.soft_of_sprites for row in soft]),
        "good_alpha": share([row.has_good_alpha for row in rows]),
        "detail": ratio([row.look.detail for row in rows], [row.look_of_sprite.detail for row in rows]),
        "edge_of_opaque": ratio([row.look.edge for row in opaque], [row.look_of_sprite.edge for row in opaque]),
    }


def main(argv: list[str]) -> int:
    """Command `layerdiffusion train evaluate`."""
    parser = Parser(prog="layerdiffusion train evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="diffusers folder with a layer_model folder inside")
    parser.add_argument("data", type=Path, help="the training archive")
    parser.add_argument("--size", type=integer(64, 2048), default=128)
    parser.add_argument(
        "--seeds", type=integer(0, LARGEST_SEED), nargs=2, default=(1000, 1004), metavar=("FIRST", "END")
    )
    parser.add_argument("--out", type=Path, help="folder for the images and evaluation.json")
    parser.add_argument(
        "--backgrounds", type=Path, help="archive of backgrounds: measure the modes with several layers"
    )
    parser.add_argument("--only", choices=("autoencoding", "generation", "layers"))
    given = parser.parse_args(argv)
    if given.only == "layers" and given.backgrounds is None:
        raise Refusal("Modes with several layers are measured over backgrounds: name their archive by --backgrounds.")
    if given.out is not None:
        with OutputFolder(given.out):
            pass  # one that can't be written to is refused now, not in the end
    sprites = read_sprites(given.data, 2 * given.size)
    report: dict[str, Any] = {}
    if given.only in (None, "autoencoding"):
        store = WeightStore([given.model / "layer_model"])
        encoder = TransparentEncoder.from_state_dict(store.load("layer_sd15_vae_transparent_encoder")).eval()
        decoder = TransparentDecoder.from_state_dict(store.load("layer_sd15_vae_transparent_decoder")).eval()
        vae = read_autoencoder(given.model)
        held_out = split_sprites(read_sprites(given.data, given.size))[1]
        rows = measure_autoencoding(vae, encoder, decoder, held_out)
        for kind in ("opaque", "soft", "all"):
            chosen = [row for row, sprite in zip(rows, held_out, strict=True) if kind in ("all", sprite.kind)]
            if chosen:
                report[f"autoencoding_{kind}"] = asdict(summarise_autoencoding(chosen))
    if given.only in (None, "generation"):
        made = evaluate_generation(given.model, sprites, range(*given.seeds), given.out)
        report["generation"] = summarise(made)
        report["misses"] = [
            asdict(row) for row in made if not (row.is_faithful and row.is_whole and row.has_good_alpha)
        ]
    if given.backgrounds is not None and given.only in (None, "layers"):
        from .evaluate_layers import evaluate_layers, find_layer_modes, summarise_layers

        behind = read_sprites(given.backgrounds, 2 * given.size, cover=True)
        first, _ = given.seeds
        for mode in find_layer_modes(given.model):
            layers = evaluate_layers(given.model, mode, sprites, behind, range(first, first + 2), given.out)
            report[mode.name] = summarise_layers(layers)
    text = json.dumps(report, indent=1)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0
