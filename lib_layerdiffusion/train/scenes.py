"""Layered pictures with a caption for each layer: sprites over backgrounds, or files that belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..refusal import Refusal
from .config import Share, strict
from .dataset import (
    HELD_OUT_EVERY,
    IMAGE_ENDINGS,
    METADATA,
    Picture,
    Premultiplied,
    Sprite,
    Stored,
    draw,
    draw_view,
    find_prompts,
    hold_out,
    make_background,
    open_picture,
    place,
    read_backgrounds,
    read_facts,
    read_files,
    read_json,
    read_sprites,
    read_square,
    reading_size,
    split_sprites,
    unpremultiplied,
)
from .shards import find_shards, read_samples

ROLES = ("foreground", "background", "blend")
BLEND_TEMPLATES = ("{foreground}, {background}", "{foreground} in front of {background}")
PLAIN = "plain"  # caption of a background that is a plain colour or a gradient


@strict
@dataclass(frozen=True)
class Placement:
    """Ranges of a foreground's place over a background, and of its soft shadow."""

    flip: bool = True
    scale: tuple[float, float] = (0.45, 0.86)  # of the picture's side
    rotate: float = 8.0  # degrees, both ways
    shadow: Share = 0.6  # share of the scenes with a shadow
    shadow_strength: tuple[float, float] = (0.2, 0.45)


@dataclass(frozen=True)
class Scene:
    """One layered picture; all [S, S, C], 0..1. The blend may have more than its layers, such as a shadow."""

    foreground: Premultiplied  # 4 channels
    background: NDArray[np.float32]  # 3 channels
    blend: NDArray[np.float32]  # 3 channels
    texts: Mapping[str, str]  # role -> caption


@dataclass(frozen=True)
class GivenScene:
    """One line or sample of a scene data set: files that belong together, with their captions."""

    foreground: Picture
    background: Picture  # opaque
    blend: Picture  # opaque
    texts: Mapping[str, str]
    split: str


@dataclass(frozen=True)
class SceneSource:
    """What scenes are drawn from: given ones where there are any, else sprites over backgrounds or plain colours."""

    sprites: list[Sprite] = field(default_factory=list)
    backgrounds: list[Sprite] = field(default_factory=list)
    given: list[GivenScene] = field(default_factory=list)

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """The captions of the foregrounds, each with the places of its sprites or given scenes."""
        rows: dict[str, list[int]] = {}
        for row, text in enumerate([s.texts["foreground"] for s in self.given] or [s.text for s in self.sprites]):
            rows.setdefault(text, []).append(row)
        return rows

    @property
    def captions(self) -> list[str]:
        """The captions of the foregrounds, each once."""
        return list(self.rows)

    def pick(self, caption: str, rng: np.random.Generator, view: int | None = None) -> int:
        """The place of a sprite or given scene with this caption: a random one, or each in turn as `view` counts up."""
        choices = self.rows[caption]
        return choices[int(rng.integers(len(choices))) if view is None else view % len(choices)]

    def draw(
        self, caption: str, size: int, ranges: Placement, rng: np.random.Generator, view: int | None = None
    ) -> Scene:
        """A random scene whose foreground has this caption; `view` as in `pick`."""
        row = self.pick(caption, rng, view)
        if self.given:
            return _view_given(self.given[row], size, ranges.flip and rng.random() < 0.5)
        sprite = self.sprites[row]
        if not self.backgrounds:
            return compose(sprite, make_background(size, rng), PLAIN, ranges, rng)
        behind = draw(self.backgrounds, 1, rng)[0]
        return compose(sprite, draw_view(behind, size, rng), behind.text, ranges, rng)


def compose(
    sprite: Sprite, background: NDArray[np.float32], text: str, ranges: Placement, rng: np.random.Generator
) -> Scene:
    """A sprite somewhere inside a background [S, S, 3] with the caption `text`, often with a soft shadow."""
    size = background.shape[0]
    zoom, angle = rng.uniform(*ranges.scale), rng.uniform(-ranges.rotate, ranges.rotate)
    room = (1 - zoom) / 2
    shift = np.array([rng.uniform(-room, room), rng.uniform(-0.6 * room, room)])  # lower rather than higher
    pixels = place(sprite.premultiplied, size, zoom, angle, shift, flip=ranges.flip and rng.random() < 0.5)
    lit = background
    if rng.random() < ranges.shadow:
        lit = background * (1 - cast_shadow(pixels[..., 3], zoom, ranges, rng)[..., None])
    blend = pixels[..., :3] + lit * (1 - pixels[..., 3:])
    template = BLEND_TEMPLATES[int(rng.integers(len(BLEND_TEMPLATES)))]
    both = sprite.text if text == PLAIN else template.format(foreground=sprite.text, background=text)
    texts = {"foreground": sprite.text, "background": text, "blend": both}
    return Scene(pixels, background, np.clip(blend, 0, 1).astype(np.float32), texts)


def make_condition(scene: Scene, role: str) -> NDArray[np.uint8]:
    """RGBA image [S, S, 4] for a mode that starts from the foreground, a background or a blend."""
    if role == "foreground":
        return unpremultiplied(scene.foreground)
    pixels = np.round(getattr(scene, role) * 255).astype(np.uint8)
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def cast_shadow(
    alpha: NDArray[np.float32], zoom: float, ranges: Placement, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Darkening [S, S], 0..1, behind a motif: its alpha, blurred, a little lower and to one side."""
    size = alpha.shape[0]
    down, across = rng.uniform(0.03, 0.07) * zoom * size, rng.uniform(-0.05, 0.05) * zoom * size
    matrix = np.array([[1, 0, across], [0, 1, down]], np.float32)
    moved = cv2.warpAffine(alpha, matrix, (size, size), flags=cv2.INTER_LINEAR)
    blurred = cv2.GaussianBlur(moved, (0, 0), rng.uniform(0.02, 0.045) * size)
    return np.asarray(blurred * rng.uniform(*ranges.shadow_strength), np.float32)


def _view_given(scene: GivenScene, size: int, flip: bool) -> Scene:
    """A given scene at the training size, mirrored or not; nothing else would keep its layers together."""

    def view(picture: Picture) -> NDArray[np.float32]:
        rgba = open_picture(picture)
        pixels = rgba[:, ::-1] if flip else rgba
        straight = np.ascontiguousarray(pixels).astype(np.float32) / 255
        straight[..., :3] *= straight[..., 3:]
        return np.asarray(cv2.resize(straight, (size, size), interpolation=cv2.INTER_AREA), np.float32)

    return Scene(view(scene.foreground), view(scene.background)[..., :3], view(scene.blend)[..., :3], scene.texts)


def _read_given(files: Mapping[str, bytes], facts: list[dict[str, Any]], size: int) -> list[GivenScene]:
    scenes: list[GivenScene] = []
    for number, row in enumerate(facts, 1):
        names: dict[str, str] = {}
        for role in ROLES:
            names[role] = str(row.get(role, ""))
            if names[role] not in files:
                raise Refusal(f"Line {number} of {METADATA} has no file as {role}; name one that the data set holds.")
        layers = {role: read_square(files[name], name, size, cover=True) for role, name in names.items()}
        scenes.append(_describe(layers, row, {role: Path(name).stem for role, name in names.items()}))
    return scenes


def _list_given(shards: Sequence[Path], size: int) -> list[GivenScene]:
    scenes: list[GivenScene] = []
    for shard in shards:
        for key, members in read_samples(shard):
            layers: dict[str, Stored] = {}
            for role in ROLES:
                images = [end for end in members if end.startswith(f"{role}.") and Path(end).suffix in IMAGE_ENDINGS]
                if len(images) != 1:
                    raise Refusal(f"The sample {key[:200]} of {shard} has no single {role} image; give it one.")
                layers[role] = Stored(members[images[0]], size, cover=True)
            scenes.append(_describe(layers, read_json(members), dict.fromkeys(ROLES, Path(key).name)))
    return scenes


def _describe(layers: Mapping[str, Picture], row: Mapping[str, Any], names: Mapping[str, str]) -> GivenScene:
    texts = {role: str(row.get(f"{role}_text") or names[role].replace("_", " ")) for role in ROLES}
    return GivenScene(**layers, texts=texts, split=str(row.get("split", "")))


def _leave_out_held_out(scenes: list[GivenScene]) -> list[GivenScene]:
    if any(scene.split for scene in scenes) or len(scenes) < HELD_OUT_EVERY:
        return [scene for scene in scenes if scene.split != "held-out"]
    return [scene for index, scene in enumerate(scenes) if not hold_out(index)]


def read_scenes(data: Path, backgrounds: Path | None, size: int, only_prompts: bool) -> SceneSource:
    """The source of a training's scenes at `size`, without what is held out.

    `data` is a folder or zip of RGBA images, or shards, put over the pictures in `backgrounds`. Or it has whole scenes:
    lines of its metadata.jsonl with the files `foreground`, `background` and `blend` (and `foreground_text`,
    `background_text`, `blend_text`), or samples with foreground.png, background.jpg, blend.jpg and these texts in JSON.
    """
    if shards := find_shards(data):
        _, members = next(read_samples(shards[0]), ("", {}))
        if any(ending.startswith("foreground.") for ending in members):
            return SceneSource(given=_leave_out_held_out(_list_given(shards, reading_size(size))))
    else:
        files = read_files(data)
        facts = read_facts(files)
        if facts and all("file_name" not in row for row in facts):
            return SceneSource(given=_leave_out_held_out(_read_given(files, facts, reading_size(size))))
    known, _ = split_sprites(read_sprites(data, reading_size(size)))
    behind, _ = read_backgrounds(backgrounds, size)
    return SceneSource(find_prompts(known) if only_prompts else known, behind)
