"""Narrow Stable Diffusion 1 models where `ldm` builds them (AUTOMATIC1111): an exported yaml names these classes.

`ldm` itself knows only widths that are whole multiples of the first and 32 groups in every norm; with so many, norms of
24 channels can't even be made. Parameters and their names are those of the classes that these derive from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ldm.models.autoencoder import AutoencoderKL  # pyright: ignore
from ldm.modules.diffusionmodules.openaimodel import UNetModel  # pyright: ignore
from torch import nn


class NarrowUNet(UNetModel):  # pyright: ignore[reportUntypedBaseClass]
    """A UNet of any `widths`, each a multiple of its `groups`."""

    def __init__(self, widths: Sequence[int], groups: int, **params: Any) -> None:
        with _norms_of(groups):
            super().__init__(model_channels=widths[0], channel_mult=[Width(width) for width in widths], **params)


class NarrowAutoencoder(AutoencoderKL):  # pyright: ignore[reportUntypedBaseClass]
    """An autoencoder of any `widths`, each a multiple of its `groups`."""

    def __init__(self, widths: Sequence[int], groups: int, ddconfig: Mapping[str, Any], **params: Any) -> None:
        shape = {**ddconfig, "ch": widths[0], "ch_mult": [Width(width) for width in widths]}
        with _norms_of(groups):
            super().__init__(ddconfig=shape, **params)


class Width(int):
    """A level's width in the place of its multiple of the first width: the product of both is the width."""

    def __mul__(self, other: int) -> int:
        return int(self)

    __rmul__ = __mul__


@contextmanager
def _norms_of(groups: int) -> Iterator[None]:
    """Give every norm that is made in this block so many groups."""
    before = nn.GroupNorm.__init__

    def init(self: nn.GroupNorm, num_groups: int, *args: Any, **kwargs: Any) -> None:
        before(self, groups, *args, **kwargs)

    nn.GroupNorm.__init__ = init
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = before
