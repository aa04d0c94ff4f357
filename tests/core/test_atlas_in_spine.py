"""Spine's TextureAtlas, a reader of libGDX's form that isn't ours, finds every picture again, pixel by pixel."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib_layerdiffusion.export.atlas import AtlasOptions, write
from lib_layerdiffusion.image_file import read_image
from tests.core.test_atlas_in_pixi import draw_pictures
from tests.node_package import install

pytest.importorskip("rectpack")
pytestmark = pytest.mark.slow

SPINE = "@esotericsoftware/spine-core@4.3.13"

READ = """
import { readFileSync } from 'node:fs';
import { TextureAtlas } from '@esotericsoftware/spine-core';

const { pages, regions } = new TextureAtlas(readFileSync(process.argv[2], 'utf8'));
console.log(JSON.stringify({
    pages: pages.map(({ name, width, height }) => [name, width, height]),
    regions: regions.map(({ name, page, x, y, width, height, offsetX, offsetY, originalWidth, originalHeight, degrees,
        index }) => ({ name, page: page.name, box: [x, y, width, height], offset: [offsetX, offsetY],
        whole: [originalWidth, originalHeight], degrees, index })),
}));
"""


@pytest.fixture(scope="module")
def spine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script that reads with Spine's runtime."""
    return install(SPINE, READ, tmp_path_factory.mktemp("spine"))


def cut_out(sheet: np.ndarray[Any, Any], region: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What is shown of a region, on the whole picture's canvas; its offset counts from the left bottom corner."""
    (x, y, width, height), (whole_width, whole_height) = region["box"], region["whole"]
    left, below = region["offset"]
    top = whole_height - height - below
    whole = np.zeros((whole_height, whole_width, 4), np.uint8)
    whole[top : top + height, left : left + width] = sheet[y : y + height, x : x + width]
    return whole


@pytest.mark.parametrize("max_side", [4096, 400])
def test_every_picture_is_found_again(max_side: int, spine: Path, tmp_path: Path) -> None:
    pictures = draw_pictures(200)

    sheets = write(pictures, tmp_path / "all", AtlasOptions(form="libgdx", max_side=max_side))

    node = ["node", str(spine), str(tmp_path / "all.atlas")]
    found = json.loads(subprocess.run(node, check=True, capture_output=True).stdout)
    names = ["all.png"] if max_side == 4096 else [f"all-{number}.png" for number in range(len(sheets))]
    assert len(names) == len(sheets) > (0 if max_side == 4096 else 1)
    assert found["pages"] == [
        [name, sheet.image.shape[1], sheet.image.shape[0]] for name, sheet in zip(names, sheets, strict=True)
    ]
    images = {name: read_image(tmp_path / name) for name in names}
    assert sorted(f"{region['name']}.png" for region in found["regions"]) == sorted(pictures)
    for region in found["regions"]:
        picture, made = pictures[f"{region['name']}.png"], cut_out(images[region["page"]], region)
        assert (region["degrees"], region["index"]) == (0, -1)
        assert (made[..., 3] == picture[..., 3]).all()
        assert (made[picture[..., 3] > 0] == picture[picture[..., 3] > 0]).all()
    assert sum(region["box"][2:] != region["whole"] for region in found["regions"]) > 50
