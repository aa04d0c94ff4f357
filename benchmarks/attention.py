"""Processor time of the 32 attention modules of SD1.5 with attention sharing, against the modules alone.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --sizes 256 512

diffusers' modules at full width with random weights, float32, as many images as a mode's set has, twice (guidance). The
limit is the ratio of what has to be computed at least: each frame by one product for each projection, and four for the
attention between the frames (one frame: one).
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import count_work, say, time_work
from lib_layerdiffusion.injection import shared_attention
from lib_layerdiffusion.shared_attention import AttentionSharingUnit

WIDTHS = ((320, 8, 5), (640, 16, 5), (1280, 32, 5), (1280, 64, 1))  # channels, pixels to a token's side, blocks
TEXT, WORDS = 768, 77
SETS = ((1, False), (2, True), (3, False))  # frames, control: foreground, on a given image, together


@torch.inference_mode()
def measure(size: int, frames: int, control: bool) -> tuple[float, float, float]:
    """Seconds of all modules without and with their units, and the limit of the ratio."""
    plain = shared = work = least = 0.0
    for channels, pixels, blocks in WIDTHS:
        side = size // pixels
        hidden = torch.randn(2 * frames, side * side, channels)
        signal = torch.randn(1, 256, side, side) if control else None
        for width in (None, TEXT):
            context = None if width is None else torch.randn(2 * frames, WORDS, TEXT)
            own = Attention(channels, width, heads=8, dim_head=channels // 8).eval()
            unit = AttentionSharingUnit(own, frames, control).eval().requires_grad_(False)
            unet = torch.nn.ModuleDict({"attention": own})
            places = (nullcontext(), shared_attention(unet, {"attention": unit}, signal))
            times: list[float] = []
            for place in places:
                with place:
                    times.append(blocks * time_work(lambda own=own, args=(hidden, context): own(*args)))
            plain, shared = plain + times[0], shared + times[1]
            once = blocks * count_work(lambda own=own, args=(hidden, context): own(*args))
            layers = 1 if frames == 1 else 4
            work, least = work + once, least + once + blocks * layers * 2e-9 * hidden.numel() * channels
    return plain, shared, least / work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    given = parser.parse_args()
    say("size", "frames", "alone, CPU s", "shared, CPU s", "ratio", "limit")
    say(*["---"] * 6)
    for size in given.sizes:
        for frames, control in SETS:
            plain, shared, limit = measure(size, frames, control)
            named = f"{frames} with control" if control else frames
            say(f"{size}x{size}", named, f"{plain:.2f}", f"{shared:.2f}", f"{shared / plain:.2f}", f"{limit:.2f}")


if __name__ == "__main__":
    main()
