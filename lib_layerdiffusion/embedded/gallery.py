"""The embedded model's prompts, and the contact sheet that shows what it makes of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lib_layerdiffusion.hosts.prompts import parse_weights
from lib_layerdiffusion.refusal import Refusal

Pixels = NDArray[np.uint8]
CAPTION_HEIGHT = 16
GAP = 8
PAPER, INK = (255, 255, 255), (40, 40, 40)
DUSK = ((38, 44, 78), (120, 82, 84), (34, 28, 30))  # from top to bottom


def read_words(model: Path) -> list[str]:
    """Read all that a model knows: what it draws alone, then the backgrounds."""
    return [*read_captions(model), *read_captions(model, "backgrounds.json")]


def read_captions(model: Path, file: str = "captions.json") -> list[str]:
    """Read the prompts that a model knows from a file of its folder, what it draws alone or "backgrounds.json"."""
    path = model / file
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [str(row["caption"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} is missing or damaged; install the package again.") from error


def find_unknown_words(prompts: Sequence[str], captions: Sequence[str]) -> list[str]:
    """The words of some prompts that none of a model's captions has, once each; of weights only the words count."""
    known = {word for caption in captions for word in _list_words(caption)}
    words = [word for prompt in prompts for text, _ in parse_weights(prompt) for word in _list_words(text)]
    return [word for word in dict.fromkeys(words) if word not in known]


def tell_unknown_words(unknown: Sequence[str], captions: Sequence[str]) -> str:
    """What to tell somebody who asked the embedded model for them."""
    named = ", ".join(repr(word[:30]) for word in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    return (
        f"The embedded model doesn't know {named} and may draw anything for that: it knows {', '.join(captions)}; "
        "for other pictures choose another model."
    )


def _list_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


def draw_lights(size: int, seed: int = 4) -> Pixels:
    """A picture [size, size, 3] like a photo of a street at dusk, out of focus: discs of light, and grain."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:size, :size] / size
    dusk = np.array(DUSK) / 255
    picture = np.stack([np.interp(down, (0, 0.55, 1), dusk[:, channel]) for channel in range(3)], axis=2)
    for _ in range(26):
        x, y, radius = rng.random(), rng.normal(0.55, 0.17), rng.uniform(0.03, 0.1)
        colour = np.array([1.0, rng.uniform(0.5, 0.9), rng.uniform(0.2, 0.6)]) * rng.uniform(0.15, 0.5)
        if rng.random() < 0.2:  # a cold light among the warm ones
            colour = colour[::-1]
        distance = np.hypot(across - x, down - y) / radius
        disc = np.clip((1 - distance) * radius * size / 1.5, 0, 1) * (0.75 + 0.25 * np.minimum(distance, 1) ** 4)
        picture = 1 - (1 - picture) * (1 - disc[..., None] * colour)
    picture += rng.normal(0, 0.012, picture.shape[:2])[..., None]
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def contact_sheet(pictures: Sequence[tuple[str, Pixels]], columns: int = 6) -> Pixels:
    """Arrange opaque [H, W, 3] pictures, each with its caption below, row by row."""
    columns = min(columns, len(pictures))
    width = max(picture.shape[1] for _, picture in pictures)
    height = max(picture.shape[0] for _, picture in pictures)
    across, down = width + GAP, height + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (columns * across + GAP, math.ceil(len(pictures) / columns) * down + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, (caption, picture) in enumerate(pictures):
        left, top = GAP + index % columns * across, GAP + index // columns * down
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.text((left, top + height + 2), _shorten(caption, font, width), fill=INK, font=font)
    return np.asarray(sheet)


def _shorten(text: str, font: Any, width: int) -> str:
    """Cut a caption to the width of its picture."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "..") > width:
        text = text[:-1]
    return text + ".."
