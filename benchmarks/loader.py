"""Images a second that a training's loader gives from WebDataset shards, by its number of workers, and its memory.

    OMP_NUM_THREADS=1 python benchmarks/loader.py --sizes 512 1024 --workers 0 1 2

What is timed is all that a step of `train transparency` is given: pictures are read from the shards, placed, faded,
padded with colour and put over grey, and backgrounds and noise are drawn for them. The shards are made for it: a few
drawn pictures many times, of 1024 pixels. Processor time is that of the process and its workers. Memory is theirs
too, pages that they share counted once, as Linux tells it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib_layerdiffusion.train.dataset import read_sprites, reading_size
from lib_layerdiffusion.train.loader import draw_ahead
from lib_layerdiffusion.train.transparency import Batches, TransparencyConfig

SIDE = 1024
BATCH = 4
SOURCES = 4
MARKS = (0.01, 0.1, 0.25, 0.5, 1.0)  # shares of the long run at which memory is read


def draw_picture(seed: int, side: int) -> bytes:
    """A cloudy disc with a soft edge as PNG."""
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.random((12, 12, 4), dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    pixels[..., 3] *= np.clip((0.8 - np.hypot(*np.meshgrid(axis, axis))) * 20, 0, 1)
    buffer = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, side: int, count: int) -> int:
    """So many samples of a few pictures; returns their bytes."""
    pictures = [draw_picture(seed, side) for seed in range(SOURCES)]
    folder.mkdir()
    with webdataset.ShardWriter((folder / "%04d.tar").as_posix(), maxcount=1000, verbose=0) as writer:
        for number in range(count):
            writer.write({"__key__": f"{number:06d}", "png": pictures[number % SOURCES], "txt": f"disc {number}"})
    return sum(file.stat().st_size for file in folder.iterdir())


def list_processes() -> list[str]:
    """This process and the workers that it has started."""
    own = f"/proc/{os.getpid()}"
    return [own, *(f"/proc/{each}" for each in Path(own, "task", own[6:], "children").read_text("ascii").split())]


def read_mebibytes() -> float:
    lines = [line for each in list_processes() for line in Path(each, "smaps_rollup").read_text("ascii").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def read_seconds() -> float:
    """Processor seconds so far."""
    fields = [Path(each, "stat").read_text("ascii").rpartition(")")[2].split() for each in list_processes()]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def open_batches(data: Path, size: int, steps: int) -> Batches:
    config = TransparencyConfig(sizes=(size,), size_steps=(steps,), batches=(BATCH,), pairs=False)
    return Batches.of(read_sprites(data, reading_size(size)), config, 0.18215)


def time_loader(data: Path, size: int, workers: int, images: int) -> tuple[float, float]:
    """Images a second, and processor seconds for each, after the first batches."""
    steps = images // BATCH
    warm = 2 * workers + 1  # those that are drawn ahead
    drawn = draw_ahead(open_batches(data, size, steps + warm).draw, range(steps + warm), workers)
    for _ in range(warm):
        next(drawn)
    wall, cpu = time.perf_counter(), read_seconds()
    for _ in range(steps - 1):
        next(drawn)
    spent = read_seconds() - cpu
    next(drawn)  # the workers are there until it is asked for
    return images / (time.perf_counter() - wall), spent / (images - BATCH)


def watch_memory(data: Path, size: int, workers: int, images: int) -> tuple[float, list[str]]:
    """Seconds that the index took, and memory after some of the images, in mebibytes."""
    steps = images // BATCH
    start = time.process_time()
    batches = open_batches(data, size, steps)
    seconds = time.process_time() - start
    marks = {max(1, round(share * steps)) - 1 for share in MARKS}
    seen: list[str] = []
    for step, _ in enumerate(draw_ahead(batches.draw, range(steps), workers)):
        if step in marks:
            seen.append(f"{(step + 1) * BATCH}: {read_mebibytes():.0f}")
    return seconds, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=40, help="timed in each row")
    parser.add_argument("--long", type=int, default=10_000, help="images over which memory is watched; 0: none")
    parser.add_argument("--long-size", type=int, default=64, help="training size of these, stored at twice that")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        timed, long = Path(folder, "timed"), Path(folder, "long")
        write_shards(timed, SIDE, given.images)
        print("| size | workers | images/s | processor seconds for an image |\n|---|---|---|---|")
        for size in given.sizes:
            for workers in given.workers:
                rate, seconds = time_loader(timed, size, workers, given.images)
                print(f"| {size}x{size} | {workers} | {rate:.2f} | {seconds:.2f} |", flush=True)
        if given.long:
            stored = write_shards(long, given.long_size * 2, given.long)
            workers = max(given.workers)
            seconds, seen = watch_memory(long, given.long_size, workers, given.long)
            figures = f"{stored / 2**20:.0f} MiB of shards, index {seconds:.1f} s; MiB after images"
            print(f"{given.long} images, {workers} workers, {figures} {', '.join(seen)}", flush=True)


if __name__ == "__main__":
    main()
