"""Build the embedded model's training archives: sprites (emoji and drawn soft ones) and backgrounds, with captions."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..refusal import Parser, Refusal
from .dataset import METADATA, hold_out
from .sceneries import DRAWN, FRAMED, SIZE, crop_frame, draw_scenery

log = logging.getLogger(__name__)

VARIANTS = 16  # of each sprite or background that is drawn by code
HELD_OUT_VARIANTS = 4
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")

# The words of the embedded model. Key: the caption; value: the CLDR short name of its emoji.
OPAQUE_PROMPTS = {
    "red apple": "red apple",
    "frog": "frog",
    "pizza": "pizza",
    "red heart": "red heart",
    "balloon": "balloon",
    "star": "star",
    "mushroom": "mushroom",
    "doughnut": "doughnut",
    "cactus": "cactus",
    "sunflower": "sunflower",
    "penguin": "penguin",
    "fox": "fox",
    "panda": "panda",
    "octopus": "octopus",
    "rocket": "rocket",
    "crown": "crown",
    "strawberry": "strawberry",
    "snowman": "snowman without snow",
}
# Emoji that are opaque in the set but not in life; their alpha comes from brightness and saturation.
GLASSY = {"wine glass": "wine glass", "fire": "fire", "ghost": "ghost", "jellyfish": "jellyfish", "ice cube": "ice"}
GLASSY_EXTRA = ("droplet", "cocktail glass", "crystal ball", "bubbles", "beer mug")

Rgba = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One image of an archive: its file name, caption, kind, split and pixels (straight RGBA, uint8)."""

    file_name: str
    text: str
    kind: str
    split: str
    prompt: bool
    rgba: NDArray[np.uint8]


def _grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates x, y in -1..1, each [SIZE, SIZE]."""
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return np.meshgrid(axis, axis)  # pyright: ignore[reportReturnType]


def _cloud(rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
    """Smooth noise of four octaves, 0..1, [SIZE, SIZE]."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(4):
        n = cells * 2**octave
        field = rng.random((n, n), dtype=np.float32)
        total += cv2.resize(field, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return np.clip((total - total.min()) / (np.ptp(total) + 1e-6), 0, 1).astype(np.float32)


def _with_alpha(colour: NDArray[np.float32], alpha: NDArray[np.float32]) -> Rgba:
    return np.concatenate([np.clip(colour, 0, 1), np.clip(alpha, 0, 1)[..., None]], axis=-1).astype(np.float32)


def draw_glow(rng: np.random.Generator) -> Rgba:
    """A warm light: white core, golden halo that fades out."""
    x, y = _grid()
    radius = np.sqrt(x**2 + y**2)
    reach = rng.uniform(0.75, 0.9)
    alpha = np.clip(1 - radius / reach, 0, 1) ** rng.uniform(1.0, 1.4)
    core = np.exp(-((radius / 0.28) ** 2))[..., None]
    gold = np.array([1.0, rng.uniform(0.74, 0.82), 0.25], np.float32)
    return _with_alpha(gold * (1 - core) + core, alpha * 0.95)


def draw_bubble(rng: np.random.Generator) -> Rgba:
    """A soap bubble: thin body, iridescent rim, two highlights."""
    x, y = _grid()
    radius = np.sqrt(x**2 + y**2) / rng.uniform(0.78, 0.88)
    angle = np.arctan2(y, x) + rng.uniform(-0.4, 0.4)
    hue = 0.5 + 0.5 * np.stack([np.cos(angle * 2), np.cos(angle * 2 + 2.1), np.cos(angle * 2 + 4.2)], axis=-1)
    colour = 0.55 + 0.45 * hue
    inside = np.clip((1 - radius) * 40, 0, 1)
    alpha = inside * (0.18 + 0.5 * np.clip(radius, 0, 1) ** 5)
    for cx, cy, size, power in ((-0.35, -0.4, 0.16, 0.75), (0.35, 0.42, 0.09, 0.5)):
        spot = np.exp(-(((x - cx) / size) ** 2 + ((y - cy) / size) ** 2)) * inside
        colour = colour * (1 - spot[..., None]) + spot[..., None]
        alpha = np.maximum(alpha, spot * power)
    return _with_alpha(colour, alpha)


def draw_smoke(rng: np.random.Generator) -> Rgba:
    """A grey plume that widens and thins towards the top."""
    x, y = _grid()
    height = (1 - y) / 2
    bend = 0.12 * np.sin(height * rng.uniform(3.0, 4.0) + rng.uniform(-0.5, 0.5))
    width = 0.2 + 0.5 * height
    body = np.exp(-(((x - bend) / width) ** 2) * 2.2) * np.clip(height / 0.12, 0, 1) * np.clip((1 - height) / 0.3, 0, 1)
    noise = _cloud(rng, 4)
    alpha = body * (0.35 + 0.75 * noise)
    shade = (0.72 + 0.25 * _cloud(rng, 3))[..., None]
    return _with_alpha(np.repeat(shade, 3, axis=-1), np.clip(alpha * 0.95 - 0.05, 0, 0.9))


def draw_fire(rng: np.random.Generator) -> Rgba:
    """A flame that thins out in licks at its rim."""
    x, y = _grid()
    height = np.clip((0.85 - y) / 1.6, 0, 1.2)
    width = 0.62 * np.sqrt(np.clip(height, 0, 1)) * (1.05 - height) * 1.9 + 1e-3
    licks = 0.12 * (_cloud(rng, 4) - 0.5) * height
    edge = np.abs(x + licks * 3) / width
    heat = np.clip(1.15 - edge, 0, 1) * np.clip(height * 12, 0, 1) * np.clip((1.03 - height) * 4, 0, 1)
    heat *= 0.75 + 0.35 * _cloud(rng, 5)
    green, blue = np.clip(heat * 1.15, 0.12, 1), np.clip((heat - 0.6) * 1.7, 0.02, 1)
    return _with_alpha(np.stack([np.ones_like(heat), green, blue], axis=-1), np.clip(heat * 1.35, 0, 0.97))


def draw_orb(rng: np.random.Generator) -> Rgba:
    """A tinted translucent ball."""
    x, y = _grid()
    radius = np.sqrt(x**2 + y**2) / rng.uniform(0.6, 0.88)
    tint = rng.random(3, dtype=np.float32)
    light = np.exp(-(((x + 0.3) / 0.5) ** 2 + ((y + 0.35) / 0.5) ** 2))[..., None]
    alpha = np.clip((1 - radius) * 30, 0, 1) * rng.uniform(0.3, 0.8)
    return _with_alpha(tint * (0.6 + 0.4 * light) + 0.5 * light, alpha + 0.2 * light[..., 0] * (radius < 1))


def draw_fog(rng: np.random.Generator) -> Rgba:
    """A tinted cloud with holes."""
    x, y = _grid()
    fade = np.clip(1.1 - np.sqrt(x**2 + y**2), 0, 1)
    tint = 0.4 + 0.6 * rng.random(3, dtype=np.float32)
    alpha = np.clip(_cloud(rng, int(rng.integers(2, 6))) * 1.5 - 0.35, 0, 1) * np.clip(fade * 2, 0, 1)
    return _with_alpha(np.broadcast_to(tint, (SIZE, SIZE, 3)) * (0.7 + 0.3 * _cloud(rng, 4)[..., None]), alpha)


def draw_shadow(rng: np.random.Generator) -> Rgba:
    """A soft dark ellipse."""
    x, y = _grid()
    spread = rng.uniform(0.35, 0.7), rng.uniform(0.2, 0.5)
    alpha = np.exp(-((x / spread[0]) ** 2 + (y / spread[1]) ** 2) * 1.5) * rng.uniform(0.4, 0.9)
    tint = rng.random(3, dtype=np.float32) * 0.25
    return _with_alpha(np.broadcast_to(tint, (SIZE, SIZE, 3)), alpha - 0.02)


SOFT_PROMPTS: dict[str, Callable[[np.random.Generator], Rgba]] = {
    "soap bubble": draw_bubble,
    "smoke": draw_smoke,
    "glow": draw_glow,
}
SOFT_EXTRA: dict[str, Callable[[np.random.Generator], Rgba]] = {
    "flame": draw_fire,
    "orb": draw_orb,
    "fog": draw_fog,
    "shadow": draw_shadow,
}


def make_glassy(rgba: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Give an opaque emoji [H, W, 4] the alpha of its material; colour is kept, highlights stay dense."""
    pixels = rgba.astype(np.float32) / 255
    colour, alpha = pixels[..., :3], pixels[..., 3]
    saturation = colour.max(-1) - colour.min(-1)
    brightness = colour.mean(-1)
    match name:
        case "fire":
            distance = cv2.distanceTransform((rgba[..., 3] > 127).astype(np.uint8), cv2.DIST_L2, 5)
            material = 0.25 + 0.75 * np.clip(distance / (0.16 * rgba.shape[0]), 0, 1)
        case "ghost":
            material = np.where(saturation + (1 - brightness) > 0.45, 0.95, 0.55)
        case _:
            material = np.clip(0.3 + 0.75 * saturation + 0.4 * (brightness > 0.93), 0.3, 0.97)
    material = cv2.GaussianBlur(material.astype(np.float32), (0, 0), rgba.shape[0] / 120)
    return np.round(np.dstack([colour, alpha * material]) * 255).astype(np.uint8)


def _draw(draw: Callable[[np.random.Generator], Rgba], seed: list[int]) -> NDArray[np.uint8]:
    return np.round(draw(np.random.default_rng(seed)) * 255).astype(np.uint8)


def _open_package(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except (OSError, tarfile.TarError) as error:
        raise Refusal(f"The package {path} can't be read ({error}); fetch it again with npm pack.") from error


def _read_names(path: Path) -> dict[str, dict[str, str]]:
    """Emoji to its facts, `name` and `group` among them."""
    with _open_package(path) as archive:
        try:
            member = archive.extractfile("package/data-by-emoji.json")
        except KeyError:
            member = None
        if member is None:
            raise Refusal(f"{path} holds no data-by-emoji.json; give the package unicode-emoji-json here.")
        return json.load(member)


def _read_emoji(fluent: Path, names: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """CLDR short name and pixels [SIZE, SIZE, 4] of every emoji in the object groups, in the set's order."""
    wanted = {*OPAQUE_PROMPTS.values(), *GLASSY.values()}
    table = _read_names(names)
    with _open_package(fluent) as archive:
        files = {Path(member.name).stem.removesuffix("-fe0f"): member for member in archive if member.isfile()}
        for emoji, facts in table.items():
            code = "-".join(f"{ord(c):x}" for c in emoji).removesuffix("-fe0f")
            if facts["group"] not in GROUPS and facts["name"] not in wanted:
                continue
            member = files.get(code)
            stream = archive.extractfile(member) if member is not None else None
            if stream is None:
                continue
            image = Image.open(io.BytesIO(stream.read())).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            yield facts["name"], np.asarray(image)


def list_entries(fluent: Path, names: Path) -> Iterator[Entry]:
    """Every sprite of the archive; each twelfth emoji and a fourth of the drawn ones are held out."""
    captions = {name: caption for caption, name in OPAQUE_PROMPTS.items()}
    glassy = {name: caption for caption, name in GLASSY.items()}
    for index, (name, rgba) in enumerate(_read_emoji(fluent, names)):
        slug = name.replace(" ", "_").replace(":", "")
        prompt = name in captions or name in glassy
        split = "held-out" if not prompt and hold_out(index) else "train"
        if name in glassy or name in GLASSY_EXTRA:
            yield Entry(f"{slug}.png", glassy.get(name, name), "soft", split, prompt, make_glassy(rgba, name))
        else:
            yield Entry(f"{slug}.png", captions.get(name, name), "opaque", split, prompt, rgba)
    for row, (text, draw) in enumerate({**SOFT_PROMPTS, **SOFT_EXTRA}.items()):
        for variant in range(VARIANTS):
            split = "held-out" if variant >= VARIANTS - HELD_OUT_VARIANTS else "train"
            name = f"{text.replace(' ', '_')}_{variant:02d}.png"
            yield Entry(name, text, "soft", split, text in SOFT_PROMPTS, _draw(draw, [row, variant]))


def list_backgrounds(fluent: Path, names: Path) -> Iterator[Entry]:
    """Every background: the emoji set's own sceneries, and the drawn ones, of which a fourth is held out."""
    captions = {name: caption for caption, name in FRAMED.items()}
    for name, rgba in _read_emoji(fluent, names):
        if name in captions:
            text = captions[name]
            yield Entry(f"{text.replace(' ', '_')}.png", text, "background", "train", True, crop_frame(rgba))
    for row, text in enumerate(DRAWN):
        for variant in range(VARIANTS):
            split = "held-out" if variant >= VARIANTS - HELD_OUT_VARIANTS else "train"
            name = f"{text.replace(' ', '_')}_{variant:02d}.png"
            yield Entry(name, text, "background", split, True, draw_scenery(text, [100 + row, variant]))


def write_archive(entries: Iterator[Entry], path: Path) -> int:
    """Write PNGs and metadata.jsonl (file_name, text, kind, split, prompt) into a zip; returns the images' number."""
    lines: list[str] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            buffer = io.BytesIO()
            Image.fromarray(entry.rgba).save(buffer, "PNG")
            archive.writestr(zipfile.ZipInfo(entry.file_name), buffer.getvalue())
            facts = {key: getattr(entry, key) for key in ("file_name", "text", "kind", "split", "prompt")}
            lines.append(json.dumps(facts, ensure_ascii=False))
        archive.writestr(zipfile.ZipInfo(METADATA), "\n".join(lines) + "\n")
    return len(lines)


def main(argv: list[str]) -> int:
    """Command `layerdiffusion train sprites`."""
    parser = Parser(prog="layerdiffusion train sprites", description=__doc__)
    parser.add_argument("--fluent", type=Path, required=True, help="npm package @lobehub/fluent-emoji-3d 1.1.0 (.tgz)")
    parser.add_argument("--names", type=Path, required=True, help="npm package unicode-emoji-json 0.9.0 (.tgz)")
    parser.add_argument("--out", type=Path, required=True, help="the archive to write (.zip)")
    parser.add_argument("--backgrounds", type=Path, help="the archive of backgrounds to write (.zip)")
    given = parser.parse_args(argv)
    log.info("%d sprites in %s", write_archive(list_entries(given.fluent, given.names), given.out), given.out)
    if given.backgrounds is not None:
        count = write_archive(list_backgrounds(given.fluent, given.names), given.backgrounds)
        log.info("%d backgrounds in %s", count, given.backgrounds)
    return 0
