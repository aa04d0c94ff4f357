"""Processor time of the attention modules of SD1.5: Forge's own against those of the foreground mode.

`python benchmarks/attention.py <Forge's folder> [sizes]` with Forge's Python: two rows, float32, one thread, random
weights. The difference is what a sampling step costs more or less; the rest of the UNet is the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

WIDTHS = ((320, 8, 5), (640, 16, 5), (1280, 32, 5), (1280, 64, 1))  # channels, pixels to a token's side, blocks
TEXT, WORDS, ROUNDS = 768, 77, 3


def shortest(work: Callable[[], Any]) -> float:
    """Seconds of the shortest of some calls, after one that doesn't count."""
    times: list[float] = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times[1:])


@torch.inference_mode()
def measure(size: int) -> dict[str, float]:
    from backend.nn.unet import CrossAttention  # pyright: ignore[reportMissingImports]

    from lib_layerdiffusion.injection import shared_attention
    from lib_layerdiffusion.shared_attention import AttentionSharingUnit

    seconds = {"plain": 0.0, "foreground": 0.0}
    for channels, pixels, blocks in WIDTHS:
        hidden = torch.randn(2, (size // pixels) ** 2, channels)
        for width, context in ((None, None), (TEXT, torch.randn(2, WORDS, TEXT))):
            own = CrossAttention(channels, context_dim=width, heads=8, dim_head=channels // 8).eval()
            unit = AttentionSharingUnit(own, frames=1).eval().requires_grad_(False)
            unet = torch.nn.ModuleDict({"attention": own})
            for name, hooks in (("plain", nullcontext()), ("foreground", shared_attention(unet, {"attention": unit}))):
                with hooks:
                    seconds[name] += blocks * shortest(lambda own=own, args=(hidden, context): own(*args))
    return seconds


if __name__ == "__main__":
    folder, *sizes = sys.argv[1:]
    sys.path[:0] = [str(Path(folder) / name) for name in ("", "packages_3rdparty")]
    sys.argv[1:] = ["--always-cpu"]  # Forge reads the command line
    torch.set_num_threads(1)
    for size in [int(word) for word in sizes] or [256, 512]:
        times = {name: round(value, 2) for name, value in measure(size).items()}
        sys.stdout.write(f"{json.dumps({'size': size, **times})}\n")
