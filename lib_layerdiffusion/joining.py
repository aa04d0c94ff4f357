"""A layer's weight joined with what is added to it: a copy for one run, so that one product computes both.

The layer stays as it is. A hook gives it no rows, so that whatever else happens in its call still does (AUTOMATIC1111
writes LoRAs into the weight there), and the hook on its result computes the whole with the copy. That goes for layers
whose result is the product with their weight alone: torch's own, and those of which the host says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

JOIN_CALLS = 12
"""Calls in which joining has to pay: a run has about 20 steps, with fast samplers fewer."""

GUIDED = 2
"""Sets that a call has at least, as a rule: with the prompt and without it. What pays is reckoned for that many, so
that a picture is computed alike, to the last bit, alone and in a batch."""

JOIN_BYTES = 1 << 30
"""What the joined weights of a run may take; SD1.5's attention has 0.4 GB for a frame in single precision."""

JOIN_CHANGES = 2
"""Changes of a layer's weight in a run, after which it isn't joined any more."""

HOOKS = 2  # those by which a layer is joined

IsPlain: TypeAlias = "Callable[[Any], bool]"
"""Whether a linear layer computes the product with its weight and nothing else, by its class and its own state."""


@dataclass
class Room:
    """Bytes that further joined weights may take; those of a run share it."""

    left: int = JOIN_BYTES
    measured: bool = False

    def take(self, size: int, device: torch.device) -> bool:
        """Take so many bytes, if they are left: on a GPU a quarter of what is free when the first are asked for.

        By then a WebUI has brought the model there.
        """
        if device.type == "cuda" and not self.measured:
            self.left = min(self.left, torch.cuda.mem_get_info(device)[0] // 4)
        self.measured = True
        if size > self.left:
            return False
        self.left -= size
        return True


class JoinedWeight:
    """The joined weight of one layer, made at the first call of a run and again after a change."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.kept: tuple[Hashable, int, Tensor] | None = None  # state of what went into it, its bytes, and itself
        self.changes = 0

    def find(
        self, weight: Tensor, change: Hashable, copies: int, pays: Callable[[], bool], make: Callable[[], Tensor]
    ) -> Tensor | None:
        """What `make` makes of the layer's `weight`, `copies` times as large; None where it isn't to be joined.

        `change` tells when what is added isn't the same any more. Where weight or change are new again and again, as
        with layers that are brought to the GPU in every step, nothing is joined.
        """
        state = (weight.data_ptr(), read_version(weight), change)
        if self.kept is not None and self.kept[0] == state:
            return self.kept[2]
        if self.kept is not None:
            self.room.left += self.kept[1]
            self.changes += 1
            self.kept = None
        size = copies * weight.nbytes
        if self.changes > JOIN_CHANGES or not pays() or not self.room.take(size, weight.device):
            return None
        with torch.inference_mode(False), torch.no_grad():
            self.kept = (state, size, make())
        return self.kept[2]


def add_product(weight: Tensor, up: Tensor, down: Tensor, factor: float = 1.0) -> Tensor:
    """weight [out, in] + factor * up [out, rank] @ down [rank, in], computed in single precision at least."""
    exact = make_exact(weight)
    return torch.addmm(weight.to(exact), up.to(exact), down.to(exact), alpha=factor).to(weight)


def pays_to_join(outputs: int, inputs: int, rank: int, rows: int) -> bool:
    """Whether a low-rank product in the weight is less work after JOIN_CALLS calls with so many rows.

    It costs outputs * inputs * rank multiplications, once, and saves (outputs + inputs) * rank for each row. A product
    no larger than its factors is computed in any case.
    """
    whole, factors = outputs * inputs, outputs + inputs
    return whole <= factors * rank or whole <= JOIN_CALLS * rows * factors


def count_rows(x: Tensor) -> int:
    """Rows of a call for one picture, by its x [sets, ..., width]; see GUIDED."""
    return GUIDED * x.shape[1:-1].numel()


def is_own_linear(layer: Any) -> bool:
    """Whether a layer is torch's own as it is, with a weight that tells when it is written to."""
    return type(layer) is nn.Linear and is_torchs(nn.Linear.forward) and not layer.weight.is_inference()


def is_torchs(forward: Any) -> bool:
    """Whether a linear layer's `forward` is the one that torch defines, and none that was put in its place."""
    written = getattr(getattr(forward, "__code__", None), "co_filename", None)
    return written == nn.Linear.extra_repr.__code__.co_filename


def can_join(layer: nn.Module, x: Tensor, is_plain: IsPlain) -> bool:
    """Whether a call of the layer with `x` is the product with its weight and nothing else.

    No `forward` of the instance's own and no hook but the two by which it is joined, no gradient, and a weight in the
    precision of the product, where that is computed.
    """
    if torch.is_grad_enabled() or "forward" in vars(layer) or not is_plain(layer):
        return False
    if len(layer._forward_hooks) + len(layer._forward_pre_hooks) != HOOKS:  # pyright: ignore[reportPrivateUsage]  the only way to ask
        return False
    weight: Any = layer.weight
    return weight.dtype in (x.dtype, find_precision(x)) and weight.is_floating_point() and weight.device == x.device


def make_exact(x: Tensor) -> Tensor:
    """An empty tensor of x's device, in single precision at least: what products of weights are computed in."""
    return x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))


def find_precision(x: Tensor) -> torch.dtype:
    """What a product with `x` is computed in: under autocast that is another than that of `x`."""
    if x.dtype != torch.float32:
        return x.dtype
    kind = x.device.type
    if not hasattr(torch, "get_autocast_dtype"):  # before torch 2.4
        return torch.get_autocast_gpu_dtype() if kind == "cuda" and torch.is_autocast_enabled() else x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def make_like(x: Tensor) -> Tensor:
    """No rows of `x` [rows, ..., width], in what is computed with it: what weights are cast to."""
    return x.new_empty((0, *x.shape[1:]), dtype=find_precision(x))


def read_version(parameter: Tensor) -> tuple[int, int]:
    """Changes when a parameter is written to or exchanged."""
    return id(parameter), -1 if parameter.is_inference() else parameter._version  # pyright: ignore[reportPrivateUsage]  the only way to ask
