"""Compare native transparency with cutting opaque pictures out; fills the tables of docs/matting.md.

    OMP_NUM_THREADS=1 python benchmarks/matting.py sprites.zip

takes less than ten minutes of one core and needs `pip install -e ".[train,test]"`. `--baseline` names what the training
of matting_baseline.toml wrote; without it, the rows of the learned baseline are left out.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.matting_measures import (
    SOFT,
    Placements,
    Rgba,
    compare_levels,
    find_nearest,
    find_unknown,
    measure_connectivity_error,
    measure_gradient_error,
    measure_mse,
    measure_rgba,
    measure_sad,
    overlap,
    soft_share,
)
from benchmarks.matting_methods import (
    Picture,
    cut_with_closed_form,
    cut_with_grabcut,
    draw_start,
    draw_trimap,
    has_both,
    key_by_distance,
    key_by_least_alpha,
    read_background,
    start_from_trimap,
    widen_line,
    with_foreground,
)
from lib_layerdiffusion import layer_diffusion
from lib_layerdiffusion.embedded import EMBEDDED_FOLDER, GUIDANCE
from lib_layerdiffusion.hosts.pipelines import load_pipeline
from lib_layerdiffusion.layers import checkerboard, put_over, to_bytes, to_float
from lib_layerdiffusion.train.autoencoder import adjust
from lib_layerdiffusion.train.base import COLOURS
from lib_layerdiffusion.train.dataset import (
    Augmentation,
    Sprite,
    TransparentBatch,
    augment,
    make_photo_background,
    read_sprites,
    split_sprites,
    step_rng,
    unpremultiplied,
)
from lib_layerdiffusion.train.measures import edge_width, mark_frame
from lib_layerdiffusion.train.recipe import DECODER, ENCODER
from lib_layerdiffusion.train.words import find_words, nearest_caption
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from lib_layerdiffusion.weights import WeightStore

log = logging.getLogger("matting")

NATIVE, SPRITES, ROUND_TRIP = "native", "the sprites themselves", "round trip through the latent"
LEARNED = "learned, without the latent"
STEPS, BATCH = 20, 8
EXACT = 2 / 255  # tolerance of a key where the background's colour is known
SHEET_WORDS = 9
MARKS = "<!-- {0} -->\n{1}\n<!-- /{0} -->"


@dataclass(frozen=True)
class Row:
    """One picture by one method: what it was made of (`item`), in which table it counts (`kind`), and its values."""

    method: str
    kind: str
    item: str
    values: dict[str, float]


@dataclass(frozen=True)
class Measure:
    """A column: its title, its number's format, and how far from the best a value is."""

    title: str
    form: str
    loss: Callable[[float], float] = field(default=lambda value: value)


FROM_CLASS = {
    "overlap": Measure("overlap", ".3f", lambda value: -value),
    "levels": Measure("levels", ".3f"),
    "soft": Measure("soft share off by", ".3f"),
    "edge": Measure("edge width", ".2f", lambda value: abs(value - 1)),
    "frame": Measure("alpha in the frame", ".4f"),
    "faithful": Measure("faithful", ".2f", lambda value: -value),
}
FROM_TRUTH = {
    "sad": Measure("SAD", ".0f"),
    "mse": Measure("MSE x 1000", ".1f"),
    "gradient": Measure("gradient", ".1f"),
    "connectivity": Measure("connectivity", ".0f"),
    "psnr": Measure("PSNR, dB", ".1f", lambda value: -value),
    "ssim": Measure("SSIM", ".4f", lambda value: -value),
}


@dataclass(frozen=True)
class Generated:
    """The pictures of one word and seed, straight RGBA by method, and the opaque picture that was cut out."""

    word: str
    seed: int
    opaque: Picture
    cutouts: dict[str, Rgba]


class Networks:
    """The embedded model's autoencoder and transparent networks, and the baseline if it was trained."""

    def __init__(self, model: Path, baseline: Path) -> None:
        self.pipe: Any = load_pipeline(model, device="cpu")
        store = WeightStore([model / "layer_model"])
        self.encoder = TransparentEncoder.from_state_dict(store.load(ENCODER))
        self.decoder = TransparentDecoder.from_state_dict(store.load(DECODER))
        self.learned: TransparentDecoder | None = None
        if baseline.is_dir():
            self.learned = TransparentDecoder.from_state_dict(WeightStore([baseline]).load(DECODER))
        else:
            log.warning("The tables have no rows for the baseline, since %s isn't there: train it first.", baseline)

    def read_picture(self, pictures: Tensor) -> list[Rgba]:
        """What the baseline makes of opaque pictures [B, 3, H, W] on grey; a latent of 0 says nothing."""
        assert self.learned is not None
        height, width = pictures.shape[-2:]
        return to_rgba(self.learned.decode(pictures, torch.zeros(len(pictures), 4, height // 8, width // 8)))


def to_rgba(decoded: Tensor) -> list[Rgba]:
    """Straight RGBA of what a transparent decoder gives, [B, 4, H, W], alpha first."""
    return list(torch.cat([decoded[:, 1:], decoded[:, :1]], dim=1).permute(0, 2, 3, 1).contiguous().numpy())


def choose_colour(sprites: Sequence[Sprite]) -> str:
    """The plain background from which the sprites' visible colours are farthest, but for the nearest 5 % of them."""
    pixels = np.concatenate([to_float(each.rgba[each.rgba[..., 3] > 255 * SOFT[0]]) for each in sprites])[:, :3]
    distances = {
        name: np.quantile(np.linalg.norm(pixels - np.array(colour, np.float32), axis=-1), 0.05)
        for name, colour in COLOURS.items()
    }
    return max(distances, key=lambda name: distances[name])


def generate(networks: Networks, words: Sequence[Sprite], seeds: int, size: int, model: Path) -> list[Generated]:
    """Every word with so many seeds: natively, and over a plain background by the same base model and then cut out."""
    pipe = networks.pipe
    names = list(dict.fromkeys(sprite.text for sprite in words))
    colours = {name: choose_colour([sprite for sprite in words if sprite.text == name]) for name in names}
    jobs = [(name, seed) for name in names for seed in range(seeds)]
    made: list[Generated] = []

    def draw(part: Sequence[tuple[str, int]], backgrounds: Sequence[str]) -> Tensor:
        prompts = [f"{name}, {colour} background" for (name, _), colour in zip(part, backgrounds, strict=True)]
        noise = [torch.Generator().manual_seed(seed) for _, seed in part]
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": size, "height": size}
        return pipe(prompts, generator=noise, output_type="pt", **settings).images.float()

    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        with layer_diffusion(pipe, mode="foreground", weights=model / "layer_model") as ld:
            settings = {"width": size, "height": size, "steps": STEPS, "cfg": GUIDANCE}
            stacks = ld.batch([name for name, _ in part], [seed for _, seed in part], **settings)
        pictures = draw(part, [colours[name] for name, _ in part]).permute(0, 2, 3, 1).contiguous().numpy()
        learned = networks.read_picture(draw(part, ["grey"] * len(part))) if networks.learned is not None else None
        for place, (name, seed) in enumerate(part):
            cutouts = {NATIVE: to_float(stacks[place].layers[-1].image), **cut_out(pictures[place])}
            if learned is not None:
                cutouts[LEARNED] = learned[place]
            made.append(Generated(name, seed, pictures[place], cutouts))
        log.info("generated %d of %d", len(made), len(jobs))
    return made


def cut_out(picture: Picture) -> dict[str, Rgba]:
    """A picture with a plain background, cut out by each method without any help."""
    background, tolerance = read_background(picture)
    hard = cut_with_grabcut(picture, draw_start(picture, background, tolerance))
    trimap = widen_line(hard)
    fine = cut_with_closed_form(picture, trimap) if has_both(trimap) else hard
    return {
        "colour key": key_by_distance(picture, background, tolerance),
        "colour to alpha": key_by_least_alpha(picture, background, tolerance),
        "GrabCut": with_foreground(picture, hard),
        "GrabCut, then closed-form": with_foreground(picture, fine),
    }


def compare_with_class(rgba: Rgba, sprites: Sequence[Sprite], placements: Sequence[Placements]) -> dict[str, float]:
    """The values of `FROM_CLASS` but for `faithful`, against the class's sprite and pose that overlap most."""
    alpha = np.ascontiguousarray(rgba[..., 3])
    nearest = find_nearest(alpha, placements)
    values = {
        "overlap": overlap(alpha, nearest),
        "levels": compare_levels(alpha, nearest),
        "soft": abs(soft_share(alpha) - soft_share(nearest)),
        "frame": float(alpha[mark_frame(alpha.shape)].mean()),
    }
    if sprites[0].kind == "opaque":
        values["edge"] = edge_width(alpha) / edge_width(nearest)
    return values


def judge_generated(made: Sequence[Generated], sprites: Sequence[Sprite], size: int) -> list[Row]:
    """Each cut-out against the sprites of its word; other draws of these sprites for comparison."""
    known = [sprite for sprite in sprites if sprite.split == "train"]
    rows: list[Row] = []
    for word in dict.fromkeys(each.word for each in made):
        own = [sprite for sprite in known if sprite.text == word]
        placements = [Placements(to_float(sprite.rgba[..., 3]), size) for sprite in own]
        # drawn sprites have held-out variants, which no training saw; of an emoji there is one
        others = [sprite for sprite in sprites if sprite.text == word and sprite.split != "train"] or own
        for each in (each for each in made if each.word == word):
            other = others[each.seed % len(others)]
            placed = augment(other.premultiplied, size, Augmentation(), step_rng(1, each.seed))
            for method, rgba in {**each.cutouts, SPRITES: to_float(unpremultiplied(placed))}.items():
                values = compare_with_class(rgba, own, placements)
                values["faithful"] = float(nearest_caption(to_bytes(rgba), known) == word)
                rows.append(Row(method, own[0].kind, f"{word} {each.seed}", values))
    return rows


@torch.no_grad()
def cut_held_out(networks: Networks, sprite: Sprite, number: int) -> dict[str, Rgba]:
    """A held-out sprite by each method, over a plain and a photo-like background where the method needs one."""
    true, size = sprite.premultiplied, sprite.rgba.shape[0]
    trimap = draw_trimap(np.ascontiguousarray(true[..., 3]))
    plain = np.array(COLOURS[choose_colour([sprite])], np.float32)
    pictures = {
        "plain": true[..., :3] + plain * (1 - true[..., 3:]),
        "photo-like": true[..., :3] + make_photo_background(size, step_rng(0, number)) * (1 - true[..., 3:]),
    }
    made = {
        "colour key, plain": key_by_distance(pictures["plain"], plain, EXACT),
        "colour to alpha, plain": key_by_least_alpha(pictures["plain"], plain, EXACT),
    }
    if has_both(trimap):
        for name, picture in pictures.items():
            alpha = cut_with_grabcut(picture, start_from_trimap(trimap))
            made[f"GrabCut with trimap, {name}"] = with_foreground(picture, alpha)
        for name, picture in pictures.items():
            made[f"closed-form with trimap, {name}"] = with_foreground(picture, cut_with_closed_form(picture, trimap))
    batch = TransparentBatch.of([true])
    mean, adjusted = adjust(networks.pipe.vae, networks.encoder, batch)
    seen = [(networks.pipe.vae.decode(latent).sample * 0.5 + 0.5).clamp(0, 1) for latent in (mean, adjusted)]
    if networks.learned is not None:
        made[f"{LEARNED}, grey"] = networks.read_picture(seen[0])[0]
    made[ROUND_TRIP] = to_rgba(networks.decoder.decode(seen[1], adjusted))[0]
    return made


def judge_held_out(networks: Networks, sprites: Sequence[Sprite]) -> list[Row]:
    """Errors in the unknown region, and RGBA over solid backgrounds, of every held-out sprite by each method."""
    rows: list[Row] = []
    for number, sprite in enumerate(sprites):
        true = to_float(sprite.rgba)
        alpha = np.ascontiguousarray(true[..., 3])
        unknown = find_unknown(alpha)
        if not unknown.any():
            continue  # an alpha of 0 and 1 alone leaves nothing to estimate
        kind = "opaque" if sprite.kind == "opaque" else "solid" if has_both(draw_trimap(alpha)) else "hazy"
        for method, rgba in cut_held_out(networks, sprite, number).items():
            made = np.ascontiguousarray(rgba[..., 3])
            psnr, ssim = measure_rgba(rgba, true)
            values = {
                "sad": measure_sad(made, alpha, unknown),
                "mse": 1000 * measure_mse(made, alpha, unknown),
                "gradient": measure_gradient_error(made, alpha, unknown),
                "connectivity": measure_connectivity_error(made, alpha, unknown),
                "psnr": psnr,
                "ssim": ssim,
            }
            rows.append(Row(method, kind, sprite.name, values))
        if number % 10 == 9:
            log.info("cut out %d of %d held-out sprites", number + 1, len(sprites))
    return rows


def collect(rows: Iterable[Row], method: str, measure: str) -> dict[str, float]:
    """A method's values of a measure by item."""
    return {row.item: row.values[measure] for row in rows if row.method == method and measure in row.values}


def tabulate(rows: Sequence[Row], measures: dict[str, Measure], apart: str) -> str:
    """A line for each method, a column for each measure; the best is bold, the method `apart` doesn't compete."""
    methods = list(dict.fromkeys(row.method for row in rows))
    shown = {name: each for name, each in measures.items() if any(name in row.values for row in rows)}
    means = {
        (method, name): float(np.mean(list(collect(rows, method, name).values())))
        for method in methods
        for name in shown
    }
    rivals = [method for method in methods if method != apart]
    best = {name: min(each.loss(means[rival, name]) for rival in rivals) for name, each in shown.items()}
    lines = ["| | " + " | ".join(each.title for each in shown.values()) + " |", "|---" * (len(shown) + 1) + "|"]
    for method in methods:
        cells = [f"{means[method, name]:{each.form}}" for name, each in shown.items()]
        if method != apart:
            found = [each.loss(means[method, name]) == best[name] for name, each in shown.items()]
            cells = [f"**{cell}**" if is_best else cell for cell, is_best in zip(cells, found, strict=True)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def list_differences(rows: Sequence[Row], measures: dict[str, Measure], ours: str) -> str:
    """Where the method `ours` and the others differ by more than twice the paired difference's standard error."""
    better: dict[str, list[str]] = {}
    worse: dict[str, list[str]] = {}
    for method in dict.fromkeys(row.method for row in rows if row.method not in (ours, SPRITES)):
        for name, each in measures.items():
            own, other = collect(rows, ours, name), collect(rows, method, name)
            differences = [each.loss(other[item]) - each.loss(own[item]) for item in other if item in own]
            if len(differences) < 2:
                continue
            error = 2 * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
            mean = float(np.mean(differences))
            if abs(mean) > error:
                (worse if mean < 0 else better).setdefault(method, []).append(each.title)
    lines = [
        f"- {method} is {word} in {', '.join(titles)}."
        for word, found in (("better", worse), ("worse", better))
        for method, titles in found.items()
    ]
    return "\n".join(lines) or "- No other method differs from it."


def describe_generated(rows: Sequence[Row]) -> str:
    """The tables of generated pictures, one for each kind of word."""
    parts: list[str] = []
    for kind, title in (("opaque", "Opaque motifs"), ("soft", "Half-transparent motifs")):
        part = [row for row in rows if row.kind == kind]
        if part:
            count = len({row.item for row in part})
            words = len({row.item.rpartition(" ")[0] for row in part})
            heading = f"**{title}**, {count} pictures of {words} words"
            differences = "Against native generation:\n\n" + list_differences(part, FROM_CLASS, NATIVE)
            parts.append("\n\n".join([heading, tabulate(part, FROM_CLASS, SPRITES), differences]))
    return "\n\n".join(parts)


def describe_held_out(rows: Sequence[Row]) -> str:
    """The tables of held-out sprites, one for each kind of alpha."""
    titles = {
        "opaque": "Opaque sprites",
        "solid": "Half-transparent sprites with a solid part",
        "hazy": "Half-transparent sprites without a solid part, for which no trimap is true",
    }
    parts: list[str] = []
    for kind, title in titles.items():
        part = [row for row in rows if row.kind == kind]
        if part:
            count = len({row.item for row in part})
            differences = "Against the round trip:\n\n" + list_differences(part, FROM_TRUTH, ROUND_TRIP)
            parts.append("\n\n".join([f"**{title}** ({count})", tabulate(part, FROM_TRUTH, ROUND_TRIP), differences]))
    return "\n\n".join(parts)


def draw_sheet(made: Sequence[Generated], kinds: dict[str, str], path: Path) -> None:
    """The first seed of all half-transparent and some opaque words: the opaque picture, each cut-out over checks."""
    words = sorted(dict.fromkeys(each.word for each in made), key=lambda word: kinds[word] != "soft")[:SHEET_WORDS]
    shown = [next(each for each in made if each.word == word) for word in words]
    size = shown[0].opaque.shape[0]
    titles = [NATIVE, "opaque picture", *(name for name in shown[0].cutouts if name != NATIVE)]
    sheet = Image.new("RGB", (len(titles) * size, len(shown) * size + 14), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * size + 3, 1), title.replace("GrabCut, then", "GrabCut +").partition(",")[0], fill="black")
        for row, each in enumerate(shown):
            rgba = each.cutouts.get(title)
            pixels = each.opaque if rgba is None else put_over(to_bytes(rgba), checkerboard((size, size), 16))
            sheet.paste(Image.fromarray(to_bytes(pixels)), (column * size, row * size + 14))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between the marks `name` of a document."""
    pattern = re.compile(f"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The document has no marks <!-- {name} --> ... <!-- /{name} -->; put them in.")
    return pattern.sub(lambda _: MARKS.format(name, content.strip()), text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="archive made by `layerdiffusion train sprites`")
    parser.add_argument("--model", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--baseline", type=Path, default=Path("runs/matting_baseline/model"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each word")
    parser.add_argument("--every", type=int, default=3, help="take one of so many opaque held-out sprites")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/matting.md"), help="the document whose tables are filled"
    )
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/matting.png"))
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    sprites = read_sprites(given.data, 2 * given.size)
    words = find_words(given.model, sprites)
    networks = Networks(given.model, given.baseline)
    made = generate(networks, words, given.seeds, given.size, given.model)
    draw_sheet(made, {sprite.text: sprite.kind for sprite in words}, given.sheet)
    named = {sprite.text for sprite in words}
    first = describe_generated(judge_generated(made, [each for each in sprites if each.text in named], given.size))
    held_out = split_sprites(read_sprites(given.data, given.size))[1]
    opaque = [sprite for sprite in held_out if sprite.kind == "opaque"][:: given.every]
    second = describe_held_out(judge_held_out(networks, [*opaque, *(s for s in held_out if s.kind != "opaque")]))
    text = given.out.read_text(encoding="utf-8")
    picture = Path(os.path.relpath(given.sheet, given.out.parent)).as_posix()
    first += f"\n\n![Words in rows; native, the opaque picture, and what each method cuts out of it]({picture})"
    text = fill(fill(text, "generated", first), "held-out", second)
    given.out.write_text(text, encoding="utf-8")
    print(first, second, sep="\n")


if __name__ == "__main__":
    main()
