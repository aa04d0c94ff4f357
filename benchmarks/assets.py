"""What defringing and enlarging give back of held-out sprites: the tables of docs/assets.md.

    python benchmarks/assets.py sprites.zip

The archive is that of `layerdiffusion train sprites`. Figures are PSNR in dB over black and over white, the mean of all
sprites of a kind. For edges, sprites are composited on neutral grey and cut out again with their own alpha. For
enlarging, they are made smaller and brought back to their size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import head, say
from lib_layerdiffusion.edges import NEUTRAL_GREY, Edges, clean_edges
from lib_layerdiffusion.layers import Bytes, Layer, composite, fit
from lib_layerdiffusion.train.dataset import Sprite, read_sprites
from lib_layerdiffusion.train.measures import psnr
from lib_layerdiffusion.upscaling import upscale

FACTORS = (2, 4)


def cut_from_grey(image: Bytes) -> Bytes:
    """The sprite composited on neutral grey, with its own alpha."""
    return np.dstack([composite_on(image, NEUTRAL_GREY), image[..., 3]])


def enlarge_straight(image: Bytes, side: int) -> Bytes:
    """All four channels apart, whatever colour the invisible pixels have."""
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LANCZOS4)


def enlarge_colour(image: Bytes, side: int) -> Bytes:
    """Colour alone; the picture is opaque afterwards."""
    colour = cv2.resize(image[..., :3], (side, side), interpolation=cv2.INTER_LANCZOS4)
    return np.dstack([colour, np.full((side, side), 255, np.uint8)])


WAYS: dict[str, Callable[[Bytes, int], Bytes]] = {
    "straight RGBA resized": enlarge_straight,
    "RGB only": enlarge_colour,
    "`upscale`, Lanczos": lambda image, side: upscale(image, (side, side)),
}


def composite_on(image: Bytes, colour: str) -> Bytes:
    return composite([Layer("sprite", image, "foreground")], colour)


def measure_likeness(made: Sequence[Bytes], wanted: Sequence[Bytes]) -> float:
    """PSNR in dB over black and white; the mean of all pairs."""
    shown = [
        torch.from_numpy(np.stack([composite_on(image, colour) for image in images for colour in ("black", "white")]))
        for images in (made, wanted)
    ]
    return float(psnr(*(pictures.permute(0, 3, 1, 2) / 255 for pictures in shown)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sprites", type=Path)
    sprites = [sprite for sprite in read_sprites(parser.parse_args().sprites) if sprite.split != "train"]
    kinds: dict[str, list[Sprite]] = {}
    for sprite in sprites:
        kinds.setdefault("half-transparent" if sprite.kind == "soft" else "opaque", []).append(sprite)
    head("sprites", "cut from grey", "after `defringe grey`")
    for kind, some in sorted(kinds.items(), reverse=True):
        wanted = [sprite.rgba for sprite in some]
        cut = [cut_from_grey(image) for image in wanted]
        clean = [clean_edges(image, Edges(defringe="grey")) for image in cut]
        say(f"{len(some)} {kind}", *(f"{measure_likeness(made, wanted):.1f} dB" for made in (cut, clean)))
    print()
    columns = [(kind, factor) for kind in sorted(kinds, reverse=True) for factor in FACTORS]
    head("enlarged again", *(f"{len(kinds[kind])} {kind}, x{factor}" for kind, factor in columns))
    cells: dict[str, list[str]] = {name: [] for name in WAYS}
    for kind, factor in columns:
        wanted = [sprite.rgba for sprite in kinds[kind]]
        small = [fit(image, (len(image) // factor,) * 2, "stretch") for image in wanted]
        for name, enlarge in WAYS.items():
            made = [enlarge(tiny, len(image)) for tiny, image in zip(small, wanted, strict=True)]
            cells[name].append(f"{measure_likeness(made, wanted):.1f} dB")
    for name, row in cells.items():
        say(name, *row)


if __name__ == "__main__":
    main()
