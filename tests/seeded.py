"""Made-up weights that are the same on every machine: numpy only, each tensor seeded by its own name."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def tensor(name: str, shape: Sequence[int], seed: int, gain: float = 1.0) -> Tensor | None:
    """Standard normal numbers, scaled by what the name and the shape say; None for a scalar (it keeps its default)."""
    if len(shape) == 0:
        return None
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    normal = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
    if name.endswith("bias"):
        return 0.02 * normal
    if len(shape) == 1:
        return 1 + 0.05 * normal
    return normal * (gain / math.sqrt(math.prod(shape[1:])))


def state_dict(shapes: Mapping[str, Sequence[int]], seed: int, gain: float = 1.0) -> dict[str, Tensor]:
    """One tensor per name; scalars are left out."""
    state = {name: tensor(name, shape, seed, gain) for name, shape in shapes.items()}
    return {name: value for name, value in state.items() if value is not None}


def fill(module: nn.Module, seed: int, gain: float = 1.0, prefix: str = "") -> nn.Module:
    """Overwrite the parameters of `module` in place; a tensor's name is `prefix` + its state-dict key."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = tensor(prefix + name, parameter.shape, seed, gain)
            if value is not None:
                parameter.copy_(value)
    return module


def damage(data: bytes, rng: random.Random) -> bytes:
    """The data with some bytes changed, put in or taken out, or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(max(1, len(changed)))
        match rng.randrange(4):
            case 0:
                changed[place : place + 1] = rng.randbytes(1)
            case 1:
                changed[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
            case 2:
                del changed[place : place + rng.choice((1, 4, 100))]
            case _:
                changed[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
    return bytes(changed[: rng.choice((len(changed), len(changed), rng.randrange(len(changed) + 1)))])
