"""Backgrounds of the embedded model: sceneries drawn by code, and the emoji set's own cropped inside their frame."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 256
CANVAS = 2 * SIZE  # drawn at twice the size and averaged, which smooths every edge
FRAME_INSET = 0.075  # share of the frame's side that its rounded corners and bevel take

Picture = NDArray[np.float32]  # [H, W, 3], 0..1
Colour = tuple[float, float, float]

# Caption -> CLDR short name of the emoji whose frame holds it.
FRAMED = {
    "sunrise": "sunrise",
    "mountains": "sunrise over mountains",
    "city": "cityscape",
    "city at night": "night with stars",
    "desert": "desert",
    "lake": "national park",
    "milky way": "milky way",
}


def crop_frame(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inside of a framed emoji [H, W, 4] as an opaque square picture [SIZE, SIZE, 4]."""
    rows, columns = (np.flatnonzero((rgba[..., 3] > 127).any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    side = round(min(height, width) * (1 - 2 * FRAME_INSET))
    top, left = top + (height - side) // 2, left + (width - side) // 2
    cut = rgba[top : top + side, left : left + side].copy()
    cut[..., 3] = 255
    return np.asarray(cv2.resize(cut, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.uint8)


def _vary(colour: Colour, rng: np.random.Generator, spread: float = 0.04) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.uniform(-spread, spread, 3), 0, 1)
    return float(red), float(green), float(blue)


def _blend_down(top: Colour, bottom: Colour) -> Picture:
    """A vertical gradient on the whole canvas."""
    ramp = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None, None]
    column = np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp
    return np.repeat(column, CANVAS, axis=1)


def _fill(canvas: Picture, mask: NDArray[np.float32], colour: Colour | Picture) -> None:
    """Lay a colour over the canvas where the mask [CANVAS, CANVAS], 0..1, is."""
    canvas += (np.asarray(colour, np.float32) - canvas) * mask[..., None]


def _below(line: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mask of what lies below a line of heights [CANVAS], in pixels from the top."""
    rows = np.arange(CANVAS, dtype=np.float32)[:, None]
    return np.clip(rows - line[None] + 0.5, 0, 1).astype(np.float32)


def _wave(rng: np.random.Generator, height: float, swing: float, waves: float) -> NDArray[np.float32]:
    """A rolling line [CANVAS] around `height`, both as shares of the side."""
    x = np.linspace(0, 2 * np.pi * waves, CANVAS, dtype=np.float32)
    first, second = rng.uniform(0, 2 * np.pi, 2)
    line = height + swing * (0.7 * np.sin(x + first) + 0.3 * np.sin(2.3 * x + second))
    return (line * CANVAS).astype(np.float32)


def _disc(x: float, y: float, radius: float) -> NDArray[np.float32]:
    """Mask of a disc; place and radius as shares of the side."""
    axis = np.arange(CANVAS, dtype=np.float32)
    distance = np.hypot(axis[None] - x * CANVAS, axis[:, None] - y * CANVAS)
    return np.clip(radius * CANVAS - distance + 0.5, 0, 1).astype(np.float32)


def _draw_cloud(canvas: Picture, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A puffy cloud with a shaded underside."""
    puffs = [(-0.9, 0.12, 0.5), (-0.3, -0.15, 0.7), (0.4, -0.05, 0.6), (0.95, 0.15, 0.42)]
    mask = np.zeros((CANVAS, CANVAS), np.float32)
    for dx, dy, radius in puffs:
        mask = np.maximum(mask, _disc(x + dx * size, y + dy * size, radius * size * rng.uniform(0.9, 1.1)))
    mask *= 1 - _below(np.full(CANVAS, (y + 0.45 * size) * CANVAS, np.float32))
    shade = np.clip((np.arange(CANVAS, dtype=np.float32) / CANVAS - y) / (0.5 * size), 0, 1)[:, None, None]
    _fill(canvas, mask, (1 - 0.14 * shade * np.array((1.0, 0.8, 0.3), np.float32)) * np.ones_like(canvas))


def _draw_sky(rng: np.random.Generator) -> Picture:
    return _blend_down(_vary((0.25, 0.6, 0.95), rng), _vary((0.72, 0.9, 0.99), rng))


def draw_sky(rng: np.random.Generator) -> Picture:
    """Blue sky with clouds."""
    canvas = _draw_sky(rng)
    for y in (0.22, 0.5, 0.78):
        _draw_cloud(canvas, rng, rng.uniform(0.1, 0.9), y + rng.uniform(-0.06, 0.06), rng.uniform(0.11, 0.2))
    return canvas


def draw_meadow(rng: np.random.Generator) -> Picture:
    """Green hills with flowers under a blue sky."""
    canvas = _draw_sky(rng)
    _draw_cloud(canvas, rng, rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.22), rng.uniform(0.09, 0.13))
    greens: list[Colour] = [(0.5, 0.8, 0.38), (0.36, 0.71, 0.3), (0.22, 0.6, 0.26)]
    for height, green in zip((0.42, 0.56, 0.72), greens, strict=True):
        _fill(canvas, _below(_wave(rng, height, 0.05, rng.uniform(0.6, 1.2))), _vary(green, rng, 0.02))
    for _ in range(14):
        x, y = rng.uniform(0.02, 0.98), rng.uniform(0.8, 0.98)
        _fill(canvas, _disc(x, y, 0.013), ((1.0, 1.0, 1.0), (1.0, 0.85, 0.2), (0.98, 0.55, 0.7))[int(rng.integers(3))])
    return canvas


def _draw_water(canvas: Picture, rng: np.random.Generator, top: float, bottom: float) -> None:
    """Blue water with bright crests between two heights."""
    deep = _blend_down(_vary((0.3, 0.66, 0.92), rng), _vary((0.05, 0.36, 0.74), rng))
    reach = _below(np.full(CANVAS, top * CANVAS, np.float32))
    _fill(canvas, reach, deep)
    for share in (0.12, 0.3, 0.55, 0.82):
        line = _wave(rng, top + share * (bottom - top), 0.012, rng.uniform(2.5, 4.5))
        crest = _below(line) - _below(line + CANVAS * 0.012 * (0.5 + share))
        _fill(canvas, crest * 0.8, (0.72, 0.9, 0.99))


def draw_sea(rng: np.random.Generator) -> Picture:
    """Open water under a blue sky."""
    canvas = _draw_sky(rng)
    _draw_cloud(canvas, rng, rng.uniform(0.15, 0.85), rng.uniform(0.14, 0.24), rng.uniform(0.09, 0.14))
    _draw_water(canvas, rng, 0.45, 1.0)
    return canvas


def draw_beach(rng: np.random.Generator) -> Picture:
    """Sand with foam, water and sky."""
    canvas = _draw_sky(rng)
    _fill(canvas, _disc(rng.uniform(0.15, 0.85), 0.15, 0.075), (1.0, 0.87, 0.3))
    _draw_water(canvas, rng, 0.32, 0.56)
    shore = _wave(rng, 0.56, 0.02, 1.3)
    _fill(canvas, _below(shore - CANVAS * 0.025), (0.97, 0.99, 1.0))
    _fill(canvas, _below(shore), _vary((0.96, 0.83, 0.56), rng, 0.02))
    _fill(canvas, _below(_wave(rng, 0.8, 0.03, 0.8)), _vary((0.92, 0.75, 0.46), rng, 0.02))
    for _ in range(40):
        _fill(canvas, _disc(rng.random(), rng.uniform(0.62, 1.0), 0.006), (0.8, 0.62, 0.36))
    return canvas


def draw_snow(rng: np.random.Generator) -> Picture:
    """White hills with fir trees and falling flakes."""
    canvas = _blend_down(_vary((0.52, 0.68, 0.88), rng), _vary((0.85, 0.91, 0.98), rng))
    _fill(canvas, _below(_wave(rng, 0.55, 0.05, 0.9)), (0.84, 0.9, 0.98))
    for x in np.linspace(0.1, 0.9, 4) + rng.uniform(-0.07, 0.07, 4):
        foot = 0.68 + rng.uniform(-0.03, 0.03)
        for level in range(3):
            top, half = foot - 0.3 + 0.075 * level, 0.045 + 0.018 * level
            triangle = np.array([(x, top), (x - half, top + 0.13), (x + half, top + 0.13)]) * CANVAS
            mask = np.zeros((CANVAS, CANVAS), np.uint8)
            cv2.fillPoly(mask, [np.round(triangle).astype(np.int32)], 255)
            _fill(canvas, mask.astype(np.float32) / 255, (0.16, 0.42 + 0.06 * level, 0.36))
    _fill(canvas, _below(_wave(rng, 0.7, 0.03, 0.7)), (0.95, 0.97, 1.0))
    for _ in range(40):
        _fill(canvas, _disc(rng.random(), rng.random(), rng.uniform(0.005, 0.011)), (1.0, 1.0, 1.0))
    return canvas


def draw_bricks(rng: np.random.Generator) -> Picture:
    """A wall of red bricks with pale mortar."""
    canvas = np.broadcast_to(np.array(_vary((0.85, 0.78, 0.72), rng), np.float32), (CANVAS, CANVAS, 3)).copy()
    courses, joint = 8, CANVAS // 64
    height, width = CANVAS // courses, CANVAS // 4
    start = int(rng.integers(width))
    red: Colour = _vary((0.74, 0.32, 0.24), rng)
    for course in range(courses):
        for column in range(-2, 5):
            left = column * width + start + (course % 2) * width // 2
            box = np.s_[course * height + joint : (course + 1) * height, max(0, left + joint) : max(0, left + width)]
            canvas[box] = np.array(_vary(red, rng, 0.05), np.float32)
            canvas[course * height + joint : course * height + 2 * joint, box[1]] *= 1.12
    return np.clip(canvas, 0, 1)


def draw_wood(rng: np.random.Generator) -> Picture:
    """A wall of brown planks with grain."""
    canvas = np.zeros((CANVAS, CANVAS, 3), np.float32)
    planks = 5
    edges = (np.linspace(0, CANVAS, planks + 1) + np.r_[0, rng.uniform(-12, 12, planks - 1), 0]).astype(int)
    rows = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None]
    for left, right in pairwise(edges):
        across = np.linspace(0, 1, right - left, dtype=np.float32)[None]
        knot, lines = rng.uniform(0.1, 0.9), rng.uniform(3, 5)
        bend = 0.25 * np.exp(-(((rows - knot) / 0.18) ** 2))
        grain = 0.5 + 0.5 * np.sin(2 * np.pi * lines * (across + bend * np.sin(np.pi * across)))
        tone = np.array(_vary((0.72, 0.47, 0.27), rng, 0.04), np.float32)
        canvas[:, left:right] = tone * (0.84 + 0.16 * grain[..., None])
        canvas[:, left : left + 6] *= 0.55
    return canvas


def draw_stars(rng: np.random.Generator) -> Picture:
    """A dark night sky with stars and a moon."""
    canvas = _blend_down(_vary((0.05, 0.06, 0.2), rng, 0.02), _vary((0.2, 0.2, 0.46), rng, 0.03))
    x, y = rng.uniform(0.15, 0.85), rng.uniform(0.14, 0.3)
    moon = _disc(x, y, 0.09) * (1 - _disc(x + 0.045, y - 0.025, 0.08))
    _fill(canvas, moon, (1.0, 0.88, 0.5))
    for _ in range(45):
        star = _disc(rng.random(), rng.random(), rng.uniform(0.004, 0.011))
        _fill(canvas, star * rng.uniform(0.6, 1), (1.0, 1.0, 0.9))
    return canvas


def draw_room(rng: np.random.Generator) -> Picture:
    """A room: coloured wall with a window, skirting board and floor."""
    wall = _vary(((0.96, 0.82, 0.62), (0.68, 0.84, 0.8), (0.88, 0.76, 0.86))[int(rng.integers(3))], rng, 0.03)
    canvas = _blend_down(wall, (wall[0] * 0.93, wall[1] * 0.93, wall[2] * 0.93))
    floor = int(0.72 * CANVAS)
    planks = np.array(_vary((0.66, 0.43, 0.26), rng, 0.03), np.float32)
    canvas[floor:] = planks
    for row in range(floor + 36, CANVAS, 36):
        canvas[row : row + 4] = planks * 0.78
    canvas[floor - 22 : floor] = 0.97
    left, top = int(rng.uniform(0.1, 0.6) * CANVAS), int(0.12 * CANVAS)
    right, bottom, bar = left + int(0.3 * CANVAS), top + int(0.34 * CANVAS), 10
    canvas[top - bar : bottom + bar, left - bar : right + bar] = 0.98
    canvas[top:bottom, left:right] = _draw_sky(rng)[: bottom - top, : right - left]
    middle = (left + right) // 2
    canvas[top:bottom, middle - bar // 2 : middle + bar // 2] = 0.98
    canvas[(top + bottom) // 2 - bar // 2 : (top + bottom) // 2 + bar // 2, left:right] = 0.98
    return canvas


DRAWN: dict[str, Callable[[np.random.Generator], Picture]] = {
    "sky": draw_sky,
    "meadow": draw_meadow,
    "sea": draw_sea,
    "beach": draw_beach,
    "snow": draw_snow,
    "brick wall": draw_bricks,
    "wooden wall": draw_wood,
    "starry night": draw_stars,
    "room": draw_room,
}


def draw_scenery(text: str, seed: list[int]) -> NDArray[np.uint8]:
    """One variant of a drawn scenery as an opaque picture [SIZE, SIZE, 4]."""
    canvas = DRAWN[text](np.random.default_rng(seed))
    picture = cv2.resize(np.clip(canvas, 0, 1), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    pixels = np.round(picture * 255).astype(np.uint8)
    return np.dstack([pixels, np.full((SIZE, SIZE), 255, np.uint8)])
