"""A patch discriminator with feature matching, for the trainings of autoencoder and transparent decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Optimizer


class PatchDiscriminator(nn.Module):
    """Says for each patch of a picture whether it is real; spectrally normalised, so that it can stay on to the end."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        steps = zip((channels, *widths), widths, strict=False)
        layers = [nn.Conv2d(before, after, 4, 2, 1) for before, after in steps]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, 1, 1), nn.Conv2d(widths[-1], 1, 3, 1, 1)]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in layers)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Outputs of every layer for pictures [B, C, H, W]; the last are the logits [B, 1, H/8, W/8]."""
        outputs: list[Tensor] = []
        for layer in self.layers:
            picture = layer(F.leaky_relu(picture, 0.2) if outputs else picture)
            outputs.append(picture)
        return outputs

    @torch.no_grad()
    def follow_norms(self) -> None:
        """Estimate the spectral norms anew: once a step, so that all of a step's losses are of the same weights."""
        self.train()
        for layer in self.layers:
            _ = layer.weight  # each look at it is one power iteration
        self.eval()


def judging_loss(judge: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's own hinge loss, for pictures [B, C, H, W]."""
    of_real, of_made = judge(torch.cat([real, made.detach()]))[-1].float().split([len(real), len(made)])
    return F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean()


def fooling_loss(judge: nn.Module, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """What the judged network is to lower: the adversarial term, and the distance of the inner layers' outputs.

    The first of the made pictures are to be like the real ones; what is made beyond them has no such term. The
    discriminator itself gets no gradient.
    """
    judge.requires_grad_(False)
    with torch.no_grad():
        *wanted, _ = judge(real)
    *inner, logits = judge(made)
    judge.requires_grad_(True)
    distances = [(a[: len(b)].float() - b.float()).abs().mean() for a, b in zip(inner, wanted, strict=True)]
    return -logits.float().mean(), torch.stack(distances).mean()


class AdversarialConfig(Protocol):
    """The options of a training that has a discriminator."""

    @property
    def discriminator_weight(self) -> float:
        """Weight of the adversarial term; 0: no discriminator."""
        ...

    @property
    def discriminator_from(self) -> float:
        """Share of the steps without it."""
        ...

    @property
    def matching_weight(self) -> float:
        """Weight of the distance of its inner layers' outputs."""
        ...


@dataclass(frozen=True)
class Adversary:
    """The discriminator's part in a training, from a share of its steps on."""

    raw: PatchDiscriminator
    judge: nn.Module  # the same, as the accelerator prepared it
    optimizer: Optimizer
    accelerator: Accelerator
    steps: int
    config: AdversarialConfig

    @contextmanager
    def facing(self, step: int) -> Iterator[Callable[[Tensor, Tensor], dict[str, Tensor]]]:
        """Yield what gives the weighted terms of real and made pictures [B, C, H, W], of each part of the step.

        At the end of the block, after the other network's step, it takes its own on all that it was shown.
        """
        weight, start = self.config.discriminator_weight, self.config.discriminator_from
        active, strength = weight > 0 and step >= start * self.steps, grow(step, self.steps, start)
        self.raw.follow_norms()
        seen: list[tuple[Tensor, Tensor]] = []

        def face(real: Tensor, made: Tensor) -> dict[str, Tensor]:
            if not active:
                return {}
            seen.append((real, made.detach()))
            fooled, distance = fooling_loss(self.raw, real, made)
            return {
                "adversarial": strength * weight * fooled,
                "matching": strength * self.config.matching_weight * distance,
            }

        yield face
        if not seen:
            return
        for real, made in seen:
            with self.accelerator.accumulate(self.judge):
                self.accelerator.backward(judging_loss(self.judge, real, made))
        self.optimizer.step()
        self.optimizer.zero_grad()


def grow(step: int, steps: int, start: float, over: float = 0.1) -> float:
    """Weight of what sets in at a share `start` of the steps and grows to 1 over the share `over`."""
    return float(min(1.0, max(0.0, (step - start * steps) / (over * steps))))
