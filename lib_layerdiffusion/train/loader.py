"""What a training sees, drawn ahead by worker processes and cut into the parts that are computed at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..refusal import Refusal

Drawn = TypeVar("Drawn")


class _Draws(Dataset[Any], Generic[Drawn]):
    """A refusal is handed over as a value: thrown in a worker, it would come out as a traceback."""

    def __init__(self, draw: Callable[[int], Drawn]) -> None:
        self.draw = draw

    def __getitem__(self, number: int) -> Drawn | Refusal:
        try:
            return self.draw(number)
        except Refusal as refusal:
            return refusal


def draw_ahead(draw: Callable[[int], Drawn], numbers: Sequence[int], workers: int) -> Iterator[Drawn]:
    """`draw` of each of the numbers in their order, made ahead by `workers` processes, or here without any.

    Since what is drawn depends on the number alone, the number of workers doesn't change it. Where systems start
    processes anew (Windows, macOS), `draw` has to be one that can be pickled.
    """
    own = torch.Generator()  # else the loader would take a number from torch's own, and change what is trained
    loader = DataLoader(
        _Draws(draw),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_pass,
        worker_init_fn=_start_worker,
        generator=own,
    )
    for drawn in loader:
        if isinstance(drawn, Refusal):
            raise drawn
        yield drawn


def _pass(drawn: Drawn) -> Drawn:
    return drawn


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # its threads don't survive a fork; torch sets its own to one


def split(batch: Any, parts: int) -> list[Any]:
    """Cut the tensors and lists inside a batch into so many equal parts; all parts get what else is in it."""
    if isinstance(batch, Tensor):
        return list(batch.chunk(parts))
    if isinstance(batch, list):
        count = len(batch) // parts
        return [batch[part * count : (part + 1) * count] for part in range(parts)]
    if isinstance(batch, dict):
        cut = {key: split(value, parts) for key, value in batch.items()}
        return [{key: values[part] for key, values in cut.items()} for part in range(parts)]
    if dataclasses.is_dataclass(batch):
        return [type(batch)(**part) for part in split(dict(vars(batch)), parts)]
    return [batch] * parts
