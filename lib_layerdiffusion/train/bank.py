"""What a training encodes once: rows of tensors with their texts, in files that the processes write and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .loader import draw_ahead

PART = 16  # rows of a file, which are drawn and encoded together

Drawn = TypeVar("Drawn")
Encoded = tuple[
    dict[str, Tensor], Sequence[object]
]  # tensors [rows, ...] by name, and a text (or several) for each row


@dataclass(frozen=True)
class Bank:
    """So many rows in the files of a folder; only what is asked for is read."""

    folder: Path
    rows: int

    def find_rows(self, part: int) -> range:
        """The rows that a file holds."""
        return range(part * PART, min(self.rows, (part + 1) * PART))

    def fill(
        self,
        draw: Callable[[int], Drawn],
        encode: Callable[[Drawn], Encoded],
        accelerator: Accelerator,
        workers: int = 0,
    ) -> None:
        """Write the files that aren't there yet: every process its own, then all wait for the last.

        `draw` gives what a file is made of, by its number and drawn ahead by the workers, and `encode` makes it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = range(accelerator.process_index, -(-self.rows // PART), accelerator.num_processes)
        absent = [part for part in parts if not self._find_file(part).exists()]
        for part, drawn in zip(absent, draw_ahead(draw, absent, workers), strict=True):
            tensors, texts = encode(drawn)
            fresh = self._find_file(part).with_suffix(".new")
            whole = {name: value.contiguous() for name, value in tensors.items()}
            save_file(whole, fresh, {"texts": json.dumps(texts)})
            fresh.replace(self._find_file(part))
        accelerator.wait_for_everyone()

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """These rows of all tensors, in this order."""
        found: dict[str, list[Tensor]] = {}
        for row in rows:
            part, place = divmod(row, PART)
            with safe_open(self._find_file(part), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    found.setdefault(name, []).append(file.get_slice(name)[place])
        return {name: torch.stack(values) for name, values in found.items()}

    def read_texts(self) -> list[Any]:
        """The texts of all rows."""
        texts: list[Any] = []
        for part in range(-(-self.rows // PART)):
            with safe_open(self._find_file(part), "pt") as file:
                texts += json.loads(file.metadata()["texts"])
        return texts

    def _find_file(self, part: int) -> Path:
        return self.folder / f"{part:06d}.safetensors"
