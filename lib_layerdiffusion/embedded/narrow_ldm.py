"""Narrow Stable Diffusion 1 models where `ldm` builds them (AUTOMATIC1111): an exported yaml names what is here.

`ldm` itself knows only widths that are whole multiples of the first and 32 groups in every norm. With so many, norms of
24 channels can't even be made, so the number can't be changed on a loaded model: it is given while one is built.
Parameters and their names are those of the classes that these derive from; no other checkpoint is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.models.autoencoder import AutoencoderKL  # pyright: ignore
from ldm.modules.diffusionmodules.openaimodel import UNetModel  # pyright: ignore
from ldm.modules.encoders.modules import FrozenCLIPEmbedder  # pyright: ignore
from modules import sd_models  # pyright: ignore[reportMissingImports]
from torch import nn

from lib_layerdiffusion.refusal import Refusal


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


def open_text_encoder(folder: str) -> Any:
    """The text encoder that a folder next to one of the WebUI's checkpoints describes, so that both can be moved.

    Of the very class that `ldm` has: AUTOMATIC1111 puts its own prompt syntax around no other.
    """
    for checkpoint in sd_models.checkpoints_list.values():
        if (path := Path(checkpoint.filename).with_name(folder)).is_dir():
            return FrozenCLIPEmbedder(version=str(path))
    raise Refusal(f"The folder {folder} is missing: put it next to the checkpoint that it was exported with.")


class Width(int):
    """A level's width where `ldm` wants its multiple of the first width: the product of both is the width."""

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
