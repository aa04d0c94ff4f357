"""Latents that a trained UNet sampled, kept on disk: a decoder is to make as much of them as of encoded ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..embedded import GUIDANCE
from ..hosts.diffusers import DiffusersHost
from ..hosts.pipelines import load_pipeline
from ..options import LayerOptions
from ..planning import STEPS, Facts, plan
from ..session import Session
from ..weights import WeightStore
from .bank import Bank, Encoded

Encode = Callable[[list[tuple[int, str]]], Encoded]


def sample_latents(
    pipeline: Path, weights: Path, captions: list[str], size: int, count: int, folder: Path, accelerator: Accelerator
) -> Bank:
    """So many transparent foregrounds' latents `latent` [N, 4, h, w], VAE space, in the files of a folder.

    Captions take turns, and each latent has its row's number as seed. What is there is kept.
    `pipeline`: folder of a diffusers pipeline; `weights`: folder of its file for the mode `foreground`.
    """
    bank = Bank(folder, count)

    def draw(part: int) -> list[tuple[int, str]]:
        return [(row, captions[row % len(captions)]) for row in bank.find_rows(part)]

    with ExitStack() as stack:

        @functools.cache  # loaded for the first file that isn't there
        def load() -> Encode:
            return stack.enter_context(_open_sampler(pipeline, weights, size, accelerator))

        def encode(drawn: list[tuple[int, str]]) -> Encoded:
            return load()(drawn)

        bank.fill(draw, encode, accelerator)
    return bank


@contextmanager
def _open_sampler(pipeline: Path, weights: Path, size: int, accelerator: Accelerator) -> Iterator[Encode]:
    """What samples a file's rows, with the layer file in the pipeline's UNet."""
    host = DiffusersHost(load_pipeline(pipeline, device="cpu").to(accelerator.device))
    host.pipe.set_progress_bar_config(disable=True)
    whole = plan(LayerOptions(), Facts(host.family, size, size))
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    settings |= {"width": whole.width, "height": whole.height}

    @torch.no_grad()
    def sample(drawn: list[tuple[int, str]]) -> Encoded:
        seeds, captions = zip(*drawn, strict=True)
        generators: Any = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with session.sampling():
            sampled = host.pipe(list(captions), generator=generators, **settings)
        return {"latent": sampled.images.float().cpu() / host.scaling_factor}, captions

    with Session(host, WeightStore([weights])) as session:
        session.open(replace(whole, files=(whole.mode.file,)))  # nothing is decoded
        yield sample
