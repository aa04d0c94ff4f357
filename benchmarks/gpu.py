"""What layers cost on a GPU: decoding by precision and way, and a step of the UNet by mode, in under five minutes.

    python benchmarks/gpu.py                     # CUDA; about 12 GB of memory, less with --size 768

The full networks with random weights in half precision. Time is that of the fastest of three calls after one that
doesn't count, until the device has finished; memory is what the call takes beside what was there, at its peak.
Decoding is done whole, view by view, with the views at once that are chosen for what is free, and in the tiles that
are chosen where half of the whole's memory is free; beside each stands the estimate by which that is chosen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.attention import SETS, list_cases, name_set
from benchmarks.machine import head, say, time_work
from benchmarks.side_path import make_inputs, make_patches, make_unet
from lib_layerdiffusion.decoding import WHOLE, Way, choose_way
from lib_layerdiffusion.injection import side_path
from lib_layerdiffusion.transparent_vae import TransparentDecoder

DEVICE = "cuda"
MIB = 2**20
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_clock() -> float:
    """Seconds, when the device has finished what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(work: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds and mebibytes of a call."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = time_work(work, clock=read_clock)
    return 1000 * seconds, (torch.cuda.max_memory_allocated() - before) / MIB


def read_free() -> int:
    """Bytes that the device has free."""
    return torch.cuda.mem_get_info()[0]


def decode(size: int) -> None:
    """Time, memory and difference from float32 of the decoder, by precision, number of views and way."""
    torch.manual_seed(0)
    pixel, latent = torch.rand(1, 3, size, size, device=DEVICE), torch.randn(1, 4, size // 8, size // 8, device=DEVICE)
    state = TransparentDecoder().state_dict()
    exact: dict[int, torch.Tensor] = {}
    head("decoded in", "views", "at once", "pixels", "ms", "MiB", "estimate", "mean difference x 255", "largest")
    for name, dtype in DTYPES.items():
        decoder = TransparentDecoder.from_state_dict(state, dtype).to(DEVICE)
        for views, way in list_ways(decoder, size):
            settings: dict[str, Any] = {"views": views, "view_batch": way.view_batch, "max_pixels": way.max_pixels}
            milliseconds, mebibytes = measure(lambda d=decoder, s=settings: d.decode(pixel, latent, **s))
            made = decoder.decode(pixel, latent, **settings)
            apart = (made - exact.setdefault(views, made)).abs() * 255
            estimate = (
                "" if way.max_pixels else f"{decoder.estimate_memory(size, size, views, way.view_batch) / MIB:.0f}"
            )
            pixels = way.max_pixels or size**2
            cells = (f"{milliseconds:.0f}", f"{mebibytes:.0f}", estimate, f"{apart.mean():.2f}", f"{apart.max():.2f}")
            say(name, views, way.view_batch, pixels, *cells)


def list_ways(decoder: TransparentDecoder, size: int) -> list[tuple[int, Way]]:
    """Numbers of views, with the ways in which they are decoded."""
    chosen = choose_way(decoder, (size, size), 8, read_free())
    tiles = choose_way(decoder, (size, size), 8, decoder.estimate_memory(size, size) // 2)
    ways = [(8, WHOLE), (8, chosen), (8, tiles), (2, WHOLE), (1, WHOLE)]
    return list(dict.fromkeys(ways))


def share_attention(size: int) -> None:
    """SD1.5's attention modules by the frames of a set."""
    head("SD1.5, frames", "alone, ms", "shared, ms", "ratio", "MiB more")
    for frames, control in SETS:
        plain = shared = most = 0.0
        for case in list_cases(size, frames, control, DEVICE, torch.float16):
            without, memory = measure(case.call)
            with case.shared():
                with_units, more = measure(case.call)
            plain, shared = plain + case.blocks * without, shared + case.blocks * with_units
            most = max(most, more - memory)
        say(name_set(frames, control), f"{plain:.1f}", f"{shared:.1f}", f"{shared / plain:.2f}", f"{most:.0f}")


def patch(size: int) -> None:
    """A step of SDXL, alone and with patches on every attention projection."""
    unet = make_unet(torch.float16, DEVICE)
    inputs, patches = make_inputs(size, torch.float16, DEVICE), make_patches(unet)
    plain, memory = measure(lambda: unet(**inputs))
    with side_path(unet, patches, 1.0):
        patched, more = measure(lambda: unet(**inputs))
    head("SDXL, patches", "alone, ms", "patched, ms", "ratio", "MiB alone", "MiB patched")
    say(len(patches), f"{plain:.0f}", f"{patched:.0f}", f"{patched / plain:.3f}", f"{memory:.0f}", f"{more:.0f}")


@torch.no_grad()  # nothing is joined with weights that are made in inference mode
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA GPU; decode.py, attention.py and side_path.py measure on the processor.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {given.size}x{given.size}\n")
    for part in (decode, share_attention, patch):
        part(given.size)
        print()


if __name__ == "__main__":
    main()
