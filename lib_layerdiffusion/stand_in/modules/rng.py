"""Noise that depends on an image's seeds only, not on its place in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIKE = 0.9995  # cosine of two noises from which on a straight line between them is as good as an arc


class ImageRNG:
    """The random numbers of a batch: one generator for each image.

    The first noise may be varied: turned towards that of `subseeds`, and drawn for another size, in whose middle this
    image's lies, so that a motif stays where it is.
    """

    def __init__(
        self,
        shape: Sequence[int],
        seeds: Sequence[int],
        subseeds: Sequence[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize_from_h: int = 0,
        seed_resize_from_w: int = 0,
        **kwargs: Any,
    ) -> None:
        self.shape = tuple(int(side) for side in shape)
        self.seeds = list(seeds)
        self.subseeds = list(subseeds or []) if subseed_strength else []
        self.subseed_strength = subseed_strength
        resized = (self.shape[0], seed_resize_from_h // 8, seed_resize_from_w // 8)
        self.drawn_shape = resized if min(resized) > 0 else self.shape
        self.generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        self.is_first = True

    def next(self) -> Tensor:
        """The batch's next noise, [B, *shape]."""
        own = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        if self.is_first:
            self.is_first = False
            own = [self._vary(index, noise) for index, noise in enumerate(own)]
        return torch.stack(own)

    def _vary(self, index: int, noise: Tensor) -> Tensor:
        resized = self.drawn_shape != self.shape
        drawn = draw(self.seeds[index], self.drawn_shape) if resized else noise
        if index < len(self.subseeds):
            drawn = turn(drawn, draw(self.subseeds[index], self.drawn_shape), self.subseed_strength)
        return put_in_the_middle(drawn, noise) if resized else drawn


def draw(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(int(seed)))


def turn(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Noise on the arc between two, each column of pixels for itself: at 0 the one, at 1 the other."""
    cosine = torch.cosine_similarity(one, other, dim=1).unsqueeze(1)
    if cosine.mean() > ALIKE:
        return torch.lerp(one, other, share)
    angle = torch.acos(cosine)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)


def put_in_the_middle(noise: Tensor, around: Tensor) -> Tensor:
    """`around` [C, H, W] with the middle of `noise` [C, h, w] in its own middle, as much as fits."""
    result = around.clone()
    ours: list[slice] = []
    theirs: list[slice] = []
    for mine, other in zip(around.shape[1:], noise.shape[1:], strict=True):
        size = min(mine, other)
        ours.append(slice((mine - size) // 2, (mine - size) // 2 + size))
        theirs.append(slice((other - size) // 2, (other - size) // 2 + size))
    result[:, ours[0], ours[1]] = noise[:, theirs[0], theirs[1]]
    return result
