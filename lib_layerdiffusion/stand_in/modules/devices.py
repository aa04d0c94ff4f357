"""Where tensors go; the stand-in's pipeline decides."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

device = torch.device("cpu")
dtype = dtype_vae = torch.float32
_give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def autocast(disable: bool = False) -> AbstractContextManager[None]:
    """Nothing: diffusers' parts have one type throughout."""
    return nullcontext()


def torch_gc() -> None:
    """Give freed memory back to the system: glibc keeps it, in more pieces from job to job."""
    if _give_back is not None:
        _give_back(0)
