"""Latents that a trained UNet sampled, kept on disk: a decoder is to make as much of them as of encoded ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..embedded import GUIDANCE
from ..hosts.diffusers import DiffusersHost
from ..hosts.pipelines import load_pipeline
from ..options import LayerOptions
from ..planning import STEPS, Facts, Plan
from ..planning import plan as make_plan
from ..session import Session
from ..weights import WeightStore
from .bank import Bank, Encoded


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
        opened = functools.cache(lambda: stack.enter_context(_Sampler.opened(pipeline, weights, size, accelerator)))
        bank.fill(draw, lambda drawn: opened().sample(drawn), accelerator)
    return bank


@dataclass(frozen=True)
class _Sampler:
    """A pipeline with the layer file in its UNet."""

    host: DiffusersHost
    session: Session
    plan: Plan

    @classmethod
    @contextmanager
    def opened(cls, pipeline: Path, weights: Path, size: int, accelerator: Accelerator) -> Iterator[_Sampler]:
        host = DiffusersHost(load_pipeline(pipeline, device="cpu").to(accelerator.device))
        host.pipe.set_progress_bar_config(disable=True)
        whole = make_plan(LayerOptions(), Facts(host.family, size, size))
        plan = dataclasses.replace(whole, files=(whole.mode.file,))  # nothing is decoded
        with Session(host, WeightStore([weights])) as session:
            session.open(plan)
            yield cls(host, session, plan)

    @torch.no_grad()
    def sample(self, drawn: list[tuple[int, str]]) -> Encoded:
        seeds, captions = zip(*drawn, strict=True)
        settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
        settings["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with self.session.sampling():
            sampled = self.host.pipe(list(captions), width=self.plan.width, height=self.plan.height, **settings)
        return {"latent": sampled.images.float().cpu() / self.host.scaling_factor}, captions
