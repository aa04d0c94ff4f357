"""Latents that a trained UNet sampled, kept on disk: a decoder is to make as much of them as of encoded ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..hosts.diffusers import DiffusersHost
from ..hosts.pipelines import load_pipeline
from ..options import LayerOptions
from ..planning import Facts, Plan
from ..planning import plan as make_plan
from ..session import Session
from ..weights import WeightStore
from .bank import Bank, Encoded

SAMPLING = {"num_inference_steps": 20, "guidance_scale": 3.0, "output_type": "latent"}  # as `evaluate` and the demo


def sample_latents(
    pipeline: Path,
    weights: Sequence[Path],
    captions: list[str],
    size: int,
    count: int,
    folder: Path,
    accelerator: Accelerator,
) -> Bank:
    """So many transparent foregrounds' latents `latent` [N, 4, h, w], VAE space, in the files of a folder.

    Captions take turns, and each latent has its row's number as seed. What is there is kept.
    `pipeline`: folder of a diffusers pipeline; `weights`: where the mode's files are looked for.
    """
    bank = Bank(folder, count)
    host = DiffusersHost(load_pipeline(pipeline, device="cpu").to(accelerator.device))
    host.pipe.set_progress_bar_config(disable=True)
    plan = make_plan(LayerOptions(), Facts(host.family, size, size))
    with Session(host, WeightStore(list(weights))) as session:
        session.open(plan)

        def draw(part: int) -> list[tuple[int, str]]:
            return [(row, captions[row % len(captions)]) for row in bank.find_rows(part)]

        bank.fill(draw, partial(_sample, session, host, plan), accelerator)
    return bank


@torch.no_grad()
def _sample(session: Session, host: DiffusersHost, plan: Plan, drawn: list[tuple[int, str]]) -> Encoded:
    seeds, captions = zip(*drawn, strict=True)
    generator: Any = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with session.sampling():
        sampled = host.pipe(list(captions), generator=generator, width=plan.width, height=plan.height, **SAMPLING)
    return {"latent": sampled.images.float().cpu() / host.scaling_factor}, captions
