"""PixiJS, a reader that isn't ours, finds every picture of an atlas again, pixel by pixel."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lib_layerdiffusion.export.atlas import AtlasOptions, write
from lib_layerdiffusion.image_file import read_image
from tests.node_package import install

pytest.importorskip("rectpack")
pytestmark = pytest.mark.slow

PIXI = "pixi.js@8.6.6"

# Spritesheet works without a renderer; what it makes of the JSON are a texture's rectangles.
READ = """
import { readFileSync } from 'node:fs';
import { Spritesheet, Texture, TextureSource } from 'pixi.js';

const about = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const source = new TextureSource({ width: about.meta.size.w, height: about.meta.size.h });
const textures = await new Spritesheet(new Texture({ source }), about).parse();
const box = ({ x, y, width, height }) => [x, y, width, height];
console.log(JSON.stringify(Object.entries(textures).map(([name, { frame, orig, trim, rotate, defaultAnchor }]) => ({
    name, frame: box(frame), orig: box(orig), trim: trim && box(trim), rotate,
    anchor: [defaultAnchor.x, defaultAnchor.y],
}))));
"""


@pytest.fixture(scope="module")
def pixi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script that reads with PixiJS."""
    return install(PIXI, READ, tmp_path_factory.mktemp("pixi"))


def draw_pictures(count: int) -> dict[str, NDArray[np.uint8]]:
    """Shapes with soft edges and a line, in pictures of mixed sizes; some with invisible borders."""
    rng = np.random.default_rng(0)
    pictures: dict[str, NDArray[np.uint8]] = {}
    for number in range(count):
        width, height = (int(side) for side in rng.integers(12, 121, 2))
        colour, line = ((*map(int, rng.integers(0, 256, 3)), 255) for _ in range(2))
        rgba = np.zeros((height, width, 4), np.uint8)
        reach = [max(2, int(side * rng.uniform(0.3, 0.55))) for side in (width, height)]
        cv2.ellipse(rgba, ((width / 2, height / 2), (2 * reach[0], 2 * reach[1]), 0), colour, -1, cv2.LINE_AA)
        cv2.line(rgba, (width // 3, height // 4), (width // 2, height // 2), line, 2, cv2.LINE_AA)
        pictures[f"sprite-{number}.png"] = rgba
    return pictures


def cut_out(sheet: NDArray[np.uint8], texture: dict[str, Any]) -> NDArray[np.uint8]:
    """What PixiJS shows of a texture, on the whole picture's canvas."""
    (x, y, width, height), (_, _, whole_width, whole_height) = texture["frame"], texture["orig"]
    left, top, shown_width, shown_height = texture["trim"] or (0, 0, width, height)
    assert texture["rotate"] == 0
    assert (shown_width, shown_height) == (width, height)
    whole = np.zeros((whole_height, whole_width, 4), np.uint8)
    whole[top : top + height, left : left + width] = sheet[y : y + height, x : x + width]
    return whole


@pytest.mark.parametrize("form", ["hash", "array"])
def test_every_picture_is_found_again(form: Any, pixi: Path, tmp_path: Path) -> None:
    pictures = draw_pictures(200)

    (sheet,) = write(pictures, tmp_path / "all", AtlasOptions(form=form, pivot=(0.25, 1)))

    node = ["node", str(pixi), str(tmp_path / "all.json")]
    textures = json.loads(subprocess.run(node, check=True, capture_output=True).stdout)
    if form == "array":  # PixiJS knows its frames by their numbers
        frames = json.loads((tmp_path / "all.json").read_text("utf-8"))["frames"]
        textures = [{**texture, "name": frames[int(texture["name"])]["filename"]} for texture in textures]
    image = read_image(tmp_path / "all.png")
    assert sorted(texture["name"] for texture in textures) == sorted(pictures)
    for texture in textures:
        picture, made = pictures[texture["name"]], cut_out(image, texture)
        assert texture["anchor"] == [0.25, 1]
        assert (made[..., 3] == picture[..., 3]).all()
        assert (made[picture[..., 3] > 0] == picture[picture[..., 3] > 0]).all()
    assert sum(texture["trim"] is not None for texture in textures) > 50
    assert sheet.occupancy >= 0.8
