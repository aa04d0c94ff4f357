"""Time and memory of the transparent decoder against a plain loop over the same network made of diffusers' blocks.

    OMP_NUM_THREADS=2 python benchmarks/decode.py --sizes 512 1024

Both take the median over 8 views, have the same random weights and input, and run in processes of their own, in turn.
Time is the CPU time of the process, which means something on a busy machine too. Memory is what decoding adds to the
process's peak resident size, as Linux tells it. `--dtype bfloat16` runs the project's side in bfloat16, for processors
that have it. The limit is what the ratio would be if all operations were done as fast as this machine multiplies large
matrices in that precision.

    OMP_NUM_THREADS=2 python benchmarks/decode.py --memory --sizes 512 1024

measures what torch's allocator gives out at the peak of a decode with one view, by precision, beside the estimate by
which the way of decoding is chosen. In bfloat16, which the processor computes with tensors of half the size, as GPUs do
with float16.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import count_work, head, measure_peak, measure_speed, say
from lib_layerdiffusion import strips
from lib_layerdiffusion.transparent_vae import TransparentDecoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WIDTHS = (32, 32, 64, 128, 256, 512, 512)
SIDES = ("plain", "project")


class PlainDecoder(nn.Module):
    """The transparent decoder assembled from diffusers' 2-D U-Net blocks, without anything done for speed."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, head_dim: int = 8, groups: int = 4) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d_blocks import (
            AttnDownBlock2D,
            AttnUpBlock2D,
            DownBlock2D,
            UNetMidBlock2D,
            UpBlock2D,
        )

        norm: dict[str, Any] = {"resnet_eps": 1e-5, "resnet_groups": groups, "temb_channels": None}
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.latent_conv_in = nn.Conv2d(4, widths[2], 1)
        self.down_blocks = nn.ModuleList()
        levels = range(len(widths))
        for level in levels:
            last = level == len(widths) - 1
            settings = norm | {"in_channels": widths[max(0, level - 1)], "out_channels": widths[level], "num_layers": 2}
            if level >= len(widths) - 3:
                sample = None if last else "conv"
                block = AttnDownBlock2D(**settings, attention_head_dim=head_dim, downsample_type=sample)
            else:
                block = DownBlock2D(**settings, add_downsample=not last)
            self.down_blocks.append(block)
        self.mid_block = UNetMidBlock2D(in_channels=widths[-1], attention_head_dim=head_dim, attn_groups=groups, **norm)
        self.up_blocks = nn.ModuleList()
        for level in reversed(levels):
            settings = norm | {
                "in_channels": widths[max(0, level - 1)],
                "prev_output_channel": widths[min(len(widths) - 1, level + 1)],
                "out_channels": widths[level],
                "num_layers": 3,
            }
            if level >= len(widths) - 3:
                block = AttnUpBlock2D(**settings, attention_head_dim=head_dim, upsample_type="conv")
            else:
                block = UpBlock2D(**settings, add_upsample=level > 0)
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
        h = self.conv_in(pixel)
        skips: tuple[Tensor, ...] = (h,)
        for level, block in enumerate(self.down_blocks):
            if level == 3:
                h = h + self.latent_conv_in(latent)
            h, more = block(h)
            skips += more
        h = self.mid_block(h)
        for block in self.up_blocks:
            h, skips = block(h, skips[-3:]), skips[:-3]
        return self.conv_out(nn.functional.silu(self.conv_norm_out(h)))

    def decode(self, pixel: Tensor, latent: Tensor) -> Tensor:
        """The lower median over eight views, one after the other."""
        results: list[Tensor] = []
        for mirrored in (False, True):
            for quarters in range(4):
                turned = (torch.rot90(x.flip(-1) if mirrored else x, quarters, (-2, -1)) for x in (pixel, latent))
                result = torch.rot90(self(*turned).clip(0, 1), -quarters, (-2, -1))
                results.append(result.flip(-1) if mirrored else result)
        return torch.stack(results).median(dim=0).values


def make_networks() -> tuple[PlainDecoder, dict[str, Tensor]]:
    """The plain network and its weights, which are also those of the project's; seeded."""
    torch.manual_seed(0)
    plain = PlainDecoder().eval()
    state = plain.state_dict()
    for name, value in state.items():
        if value.dim() > 1:
            value.mul_(0.8)  # keeps the output within 0..1 for most pixels, so that the comparison sees it
        if name.startswith("conv_out.bias"):
            value.add_(0.5)
    return plain, state


def peak_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def run_side(side: str, size: int, dtype: torch.dtype, result: Path) -> dict[str, float]:
    """Decode once in this process; CPU seconds, wall seconds and mebibytes."""
    plain, state = make_networks()
    project = TransparentDecoder.from_state_dict(state).to(dtype)
    decode = plain.decode if side == "plain" else project.decode
    if side == "plain":
        del project
    else:
        del plain
    pixel, latent = torch.rand(1, 3, size, size), torch.randn(1, 4, size // 8, size // 8)
    with torch.no_grad():
        decode(pixel[..., :64, :64], latent[..., :8, :8])  # the first call also sets up threads and kernels
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        before = peak_mebibytes()
        cpu, wall = time.process_time(), time.perf_counter()
        output = decode(pixel, latent)
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    torch.save(output.float(), result)
    return seconds | {"mebibytes": peak_mebibytes() - before}


def compare(size: int, dtype: str, repeats: int) -> dict[str, float]:
    """Run both sides in turn; the least of each figure over the repeats, and the largest difference."""
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder, f"{side}.pt") for side in SIDES}
        for _ in range(repeats):
            for side, file in files.items():
                words = [sys.executable, __file__, "--side", side, "--sizes", str(size), "--dtype", dtype]
                done = subprocess.run([*words, "--result", file], check=True, capture_output=True, text=True)
                row: dict[str, float] = json.loads(done.stdout)
                best[side] = {name: min(value, best.get(side, row)[name]) for name, value in row.items()}
        plain, project = (torch.load(files[side]) for side in SIDES)
    return {f"{side}_{name}": value for side in SIDES for name, value in best[side].items()} | {
        "difference": float((plain - project).abs().max())
    }


def tell_memory(sizes: list[int]) -> None:
    """A table of the peaks of one view, and the estimates for that and for eight."""
    strips.LARGE = math.inf  # layers as a whole, as GPUs compute them
    head("size", "computed in", "one view, MiB", "estimate", "8 views, estimate")
    for size in sizes:
        pixel, latent = torch.rand(1, 3, size, size), torch.randn(1, 4, size // 8, size // 8)
        for name, dtype in DTYPES.items():
            decoder = TransparentDecoder(WIDTHS).requires_grad_(False).to(dtype)
            decoder.decode(pixel[..., :64, :64], latent[..., :8, :8], views=1)  # the first call lays out the weights
            taken = measure_peak(lambda d=decoder, p=pixel, z=latent: d.decode(p, z, views=1))
            estimates = (decoder.estimate_memory(size, size, views) for views in (1, 8))
            say(f"{size}x{size}", name, *(f"{count / 2**20:.0f}" for count in (taken, *estimates)))


@torch.no_grad()
def count_pass(size: int) -> float:
    """10⁹ operations of one pass of the network, counted without computing it."""
    with torch.device("meta"):
        network, pixel = TransparentDecoder(WIDTHS), torch.empty(1, 3, size, size)
        latent = torch.empty(1, 4, size // 8, size // 8)
    return count_work(lambda: network(pixel, latent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--memory", action="store_true", help="measure memory by precision, and no time")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        print(json.dumps(run_side(given.side, given.sizes[0], DTYPES[given.dtype], given.result)))
        return
    if given.memory:
        tell_memory(given.sizes)
        return
    speed = measure_speed(DTYPES[given.dtype])
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, the project in {given.dtype}")
    print(f"{speed:.0f} x 10⁹ operations a processor second in a product of matrices\n")
    times = ("size", "plain, CPU s", "project, CPU s", "ratio", "limit")
    head(*times, "plain, MiB", "project, MiB", "ratio", "largest difference")
    for size in given.sizes:
        row = compare(size, given.dtype, given.repeats)
        cells = [f"{size}x{size}"]
        for name, digits in (("cpu", 1), ("mebibytes", 0)):
            plain, project = row[f"plain_{name}"], row[f"project_{name}"]
            cells += [f"{plain:.{digits}f}", f"{project:.{digits}f}", f"{project / plain:.2f}"]
            if name == "cpu":
                cells.append(f"{8 * count_pass(size) / speed / plain:.2f}")
        say(*cells, f"{row['difference']:.1e}")


if __name__ == "__main__":
    main()
