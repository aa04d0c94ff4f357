"""Measure layers made together or for each other: how blend and recomposite agree, and whether the words are met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..embedded import GIVEN_GUIDANCE, GUIDANCE
from ..layers import LayerStack, composite
from ..modes import MODES, Mode
from ..weights import WeightStore
from .dataset import Sprite, step_rng
from .measures import mark_body
from .scenes import Placement, Scene, compose, make_condition
from .words import OUTSIDE, find_words, nearest_caption

PAIRS = 60
COMPARE_SIZE = 16
CLOSE = 0.12  # share of the side around a motif within which alpha may fade out


@dataclass(frozen=True)
class Layered:
    """One layered picture; mean absolute differences, 0..1. None where the mode has no such layer."""

    foreground: str
    background: str
    seed: int
    foreground_is_faithful: bool | None
    background_is_faithful: bool | None
    disagreement: float | None  # between the blend and the layers put together
    kept: float | None  # between what was given and the blend, where the given layer is what one sees
    clean_outside: bool | None  # whether there is no alpha apart from the motif


def list_pairs(words: Sequence[str], backgrounds: Sequence[str], count: int = PAIRS) -> list[tuple[str, str]]:
    """A fixed choice of word and background pairs, spread evenly over all."""
    pairs = [(word, background) for word in words for background in backgrounds]
    return [pairs[int(place)] for place in np.linspace(0, len(pairs) - 1, min(count, len(pairs)))]


def describe_picture(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An opaque picture [H, W, 3 or 4] as 16 by 16 mean colours, 0..1."""
    opaque = np.ascontiguousarray(pixels[..., :3])
    return np.asarray(cv2.resize(opaque, (COMPARE_SIZE,) * 2, interpolation=cv2.INTER_AREA), np.float32) / 255


def nearest_background(pixels: NDArray[np.uint8], backgrounds: Sequence[Sprite]) -> str:
    """Caption of the background with the least mean squared difference, mirror images allowed."""
    image = describe_picture(pixels)

    def distance(sprite: Sprite) -> float:
        other = describe_picture(sprite.rgba)
        return min(float(((image - view) ** 2).mean()) for view in (other, other[:, ::-1]))

    return min(backgrounds, key=distance).text


def is_clean(alpha: NDArray[np.uint8]) -> bool:
    """Whether the mean alpha [H, W] farther than a little from the largest part is next to nothing."""
    body = mark_body(alpha.astype(np.float32) / 255)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(body, connectivity=8)
    if count < 2:
        return True
    motif = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    reach = 2 * round(CLOSE * min(alpha.shape)) + 1
    near = cv2.dilate(motif, np.ones((reach, reach), np.uint8)) > 0
    outside = alpha[~near]
    return not outside.size or float(outside.mean()) / 255 < OUTSIDE


def judge_layers(
    stack: LayerStack, mode: Mode, scene: Scene, seed: int, words: Sequence[Sprite], backgrounds: Sequence[Sprite]
) -> Layered:
    """Compare a generated stack with what its captions ask for, and with the layer that was given (`scene`)."""
    made = {layer.role: layer.image for layer in stack.layers}
    wanted, behind = scene.texts["foreground"], scene.texts["background"]
    foreground, background, blend = made.get("foreground"), made.get("background"), made.get("blend")
    given = {
        "foreground": np.round(scene.foreground * 255).astype(np.uint8),  # premultiplied; only opaque pixels are read
        "background": np.round(scene.background * 255).astype(np.uint8),
    }
    disagreement = kept = None
    if blend is not None and foreground is not None:
        under = given["background"] if background is None else background[..., :3]
        together = composite([layer for layer in stack.layers if layer.role == "foreground"], under)
        disagreement = float(np.abs(together.astype(np.float32) - blend[..., :3]).mean()) / 255
    if blend is not None and mode.inputs == ("foreground",):
        solid = scene.foreground[..., 3] > 0.99
        difference = np.abs(given["foreground"][solid, :3].astype(np.float32) - blend[solid, :3])
        kept = float(difference.mean()) / 255 if solid.any() else None  # smoke and glow have no opaque pixel
    if blend is not None and mode.inputs == ("background",) and foreground is not None:
        empty = foreground[..., 3] == 0
        difference = np.abs(given["background"][empty].astype(np.float32) - blend[empty, :3])
        kept = float(difference.mean()) / 255 if empty.any() else 1.0
    return Layered(
        wanted,
        behind,
        seed,
        None if foreground is None else nearest_caption(foreground, list(words)) == wanted,
        None if background is None else nearest_background(background, backgrounds) == behind,
        disagreement,
        kept,
        None if foreground is None else is_clean(foreground[..., 3]),
    )


def evaluate_layers(
    model: Path, mode: Mode, sprites: list[Sprite], backgrounds: list[Sprite], seeds: range, out: Path | None
) -> list[Layered]:
    """Generate the fixed list of pairs with every seed in one mode; `out` keeps each stack's layers as one PNG."""
    from diffusers import DiffusionPipeline

    from .. import layer_diffusion

    pipeline: Any = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor

    def make(scene: Scene, seed: int) -> LayerStack:
        prompts = {f"{role}_prompt": scene.texts[role] for role in mode.frames}
        images = {f"{role}_image": make_condition(scene, role) for role in mode.inputs}
        with layer_diffusion(pipeline, mode.name, weights=model / "layer_model", **prompts, **images) as ld:
            stack = ld("", seed=seed, width=size, height=size, cfg=find_guidance(mode))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            strip = np.concatenate([composite([layer], "checker") for layer in stack.layers], axis=1)
            pair = f"{scene.texts['foreground']}-{scene.texts['background']}-{seed}"
            Image.fromarray(strip).save(out / f"{mode.name}-{pair}.png".replace(" ", "_"))
        return stack

    return judge_pairs(make, mode, find_words(model, sprites), backgrounds, size, seeds)


def find_guidance(mode: Mode) -> float:
    """The embedded model's guidance in a mode."""
    return GIVEN_GUIDANCE if mode.inputs else GUIDANCE


def judge_pairs(
    make: Callable[[Scene, int], LayerStack],
    mode: Mode,
    words: list[Sprite],
    backgrounds: list[Sprite],
    size: int,
    seeds: Iterable[int],
) -> list[Layered]:
    """Judge what `make` makes for each scene of the fixed list of pairs, `size` pixels a side, with each seed."""
    captions = [list(dict.fromkeys(sprite.text for sprite in part)) for part in (words, backgrounds)]
    scenes = (
        (_draw_pair(*pair, words, backgrounds, size, seed), seed) for pair in list_pairs(*captions) for seed in seeds
    )
    return [judge_layers(make(scene, seed), mode, scene, seed, words, backgrounds) for scene, seed in scenes]


def _draw_pair(word: str, behind: str, words: list[Sprite], backgrounds: list[Sprite], size: int, seed: int) -> Scene:
    """A scene of these two; the same for the same seed."""
    rng = step_rng(0, seed)
    sprite = next(sprite for sprite in words if sprite.text == word)
    picture = next(background for background in backgrounds if background.text == behind)
    pixels = cv2.resize(picture.rgba[..., :3], (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return compose(sprite, np.asarray(pixels, np.float32), behind, Placement(shadow=0), rng)


def find_layer_modes(model: Path) -> list[Mode]:
    """The modes with several layers whose file the model has."""
    store = WeightStore([model / "layer_model"])
    return [mode for mode in MODES if mode.family == "sd15" and len(mode.frames) > 1 and store.find(mode.file)]


def summarise_layers(rows: list[Layered]) -> dict[str, float]:
    """Means and shares over the pictures that have each value."""
    summary: dict[str, float] = {"images": len(rows)}
    for name in ("foreground_is_faithful", "background_is_faithful", "disagreement", "kept", "clean_outside"):
        values = [float(value) for row in rows if (value := getattr(row, name)) is not None]
        if values:
            summary[name] = sum(values) / len(values)
    return summary
