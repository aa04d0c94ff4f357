"""Noise that depends on an image's seed only, not on its place in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ImageRNG:
    """The random numbers of a batch: one generator for each image."""

    def __init__(self, shape: Sequence[int], seeds: Sequence[int], **kwargs: Any) -> None:
        self.shape = tuple(int(side) for side in shape)
        self.seeds = list(seeds)
        self.generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]

    def next(self) -> Tensor:
        """The batch's next noise, [B, *shape]."""
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
