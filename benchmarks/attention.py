"""Processor time of the 32 attention modules of SD1.5 with attention sharing, against the modules alone.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --sizes 256 512

diffusers' modules at full width with random weights, float32, as many images as a mode's set has, twice (guidance). The
limit is the ratio of the operations that are needed at least: one product for each projection of each frame, and four
for the attention between the frames (one frame: one).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import count_work, head, say, time_work
from lib_layerdiffusion.injection import shared_attention
from lib_layerdiffusion.shared_attention import AttentionSharingUnit

WIDTHS = ((320, 8, 5), (640, 16, 5), (1280, 32, 5), (1280, 64, 1))  # channels, pixels to a token's side, blocks
TEXT, WORDS = 768, 77
SETS = ((1, False), (2, True), (3, False))  # frames, control: foreground, on a given image, together


def name_set(frames: int, control: bool) -> str:
    return f"{frames} with control" if control else str(frames)


@dataclass(frozen=True)
class Case:
    """Attention modules of one shape, of which the UNet has `blocks`, and what they are called with."""

    blocks: int
    attention: Attention
    unit: AttentionSharingUnit
    hidden: Tensor
    context: Tensor | None
    signal: Tensor | None

    def call(self) -> Tensor:
        return self.attention(self.hidden, self.context)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """With the unit taking part."""
        with shared_attention(
            torch.nn.ModuleDict({"attention": self.attention}), {"attention": self.unit}, self.signal
        ):
            yield


def list_cases(size: int, frames: int, control: bool, device: str, dtype: torch.dtype) -> Iterator[Case]:
    """All shapes, with random values."""
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    for channels, pixels, blocks in WIDTHS:
        side = size // pixels
        for width in (None, TEXT):
            with torch.device(device):
                attention = Attention(channels, width, heads=8, dim_head=channels // 8).to(**like).eval()
                unit = AttentionSharingUnit(attention, frames, control).to(**like).eval().requires_grad_(False)
            hidden = torch.randn(2 * frames, side * side, channels, **like)
            context = None if width is None else torch.randn(2 * frames, WORDS, TEXT, **like)
            signal = torch.randn(1, 256, side, side, **like) if control else None
            yield Case(blocks, attention, unit, hidden, context, signal)


@torch.no_grad()  # tensors made in inference mode don't tell when they are written to, so nothing is joined with them
def measure(size: int, frames: int, control: bool) -> tuple[float, float, float]:
    """Seconds of all modules without and with their units, and the limit of the ratio."""
    plain = shared = work = least = 0.0
    for case in list_cases(size, frames, control, "cpu", torch.float32):
        plain += case.blocks * time_work(case.call)
        with case.shared():
            shared += case.blocks * time_work(case.call)
        layers = 1 if frames == 1 else 4
        least += case.blocks * layers * 2e-9 * case.hidden.numel() * case.hidden.shape[-1]
    for case in list_cases(size, frames, control, "meta", torch.float32):
        work += case.blocks * count_work(case.call)
    return plain, shared, (work + least) / work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    given = parser.parse_args()
    head("size", "frames", "alone, CPU s", "shared, CPU s", "ratio", "limit")
    for size in given.sizes:
        for frames, control in SETS:
            plain, shared, limit = measure(size, frames, control)
            named = name_set(frames, control)
            say(f"{size}x{size}", named, f"{plain:.2f}", f"{shared:.2f}", f"{shared / plain:.2f}", f"{limit:.2f}")


if __name__ == "__main__":
    main()
