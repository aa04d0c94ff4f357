"""Where tensors go; the stand-in's pipeline decides."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

device = torch.device("cpu")
dtype = dtype_vae = torch.float32


def autocast(disable: bool = False) -> AbstractContextManager[None]:
    """Nothing: diffusers' parts have one type throughout."""
    return nullcontext()


def torch_gc() -> None:
    """Nothing to collect that Python doesn't."""
