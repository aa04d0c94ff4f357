"""One training run: its folder with the log (CSV), sample grids, checkpoints to resume from and the progress bar."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..refusal import Refusal


class Run:
    """Steps through a training, resuming from the folder's last checkpoint.

    Everything that `accelerator.prepare` has seen is part of a checkpoint, and what was given to
    `accelerator.register_for_checkpointing`. A configuration that differs from the folder's own is refused.
    """

    def __init__(self, folder: Path, config: Any, accelerator: Accelerator, steps: int, every: int) -> None:
        self.folder, self.accelerator, self.steps, self.every = folder, accelerator, steps, every
        self.step = 0
        self._values: dict[str, list[float]] = {}
        self._started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(config), default=str, indent=1, sort_keys=True)
        kept = folder / "config.json"
        if kept.exists() and kept.read_text(encoding="utf-8") != text:
            raise Refusal(f"{kept} differs from the configuration given; resume with the same one or name another folder.")
        kept.write_text(text, encoding="utf-8")

    def resume(self) -> None:
        """Load the last whole checkpoint, if there is one."""
        folder = self.folder / "checkpoint"
        if (folder / "step.json").exists():
            self.accelerator.load_state(str(folder))
            self.step = json.loads((folder / "step.json").read_text(encoding="utf-8"))["step"]

    def __iter__(self) -> Iterator[int]:
        self.resume()
        main = self.accelerator.is_main_process
        with tqdm(total=self.steps, initial=self.step, desc=self.folder.name, disable=not main, mininterval=5) as bar:
            while self.step < self.steps:
                yield self.step
                self.step += 1
                bar.update()
                if self.step % self.every == 0 or self.step == self.steps:
                    bar.set_postfix(self.write_log())
                    self.checkpoint()

    def log(self, **values: Tensor | float) -> None:
        """Collect values of this step; their means become one line of the log every `every` steps."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(float(value.detach() if isinstance(value, Tensor) else value))

    def write_log(self) -> dict[str, str]:
        """Write the means of what was collected since the last line to log.csv."""
        means = {name: sum(values) / len(values) for name, values in self._values.items() if values}
        self._values.clear()
        row = {"step": self.step, "seconds": round(time.monotonic() - self._started, 1)}
        row |= {name: float(f"{value:.6g}") for name, value in means.items()}
        if self.accelerator.is_main_process and means:
            path = self.folder / "log.csv"
            fresh = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(row.keys())
                writer.writerow(row.values())
        return {name: f"{value:.4g}" for name, value in means.items()}

    def checkpoint(self) -> None:
        """Write the state beside the last checkpoint, then put it in its place."""
        fresh, kept = self.folder / "checkpoint.new", self.folder / "checkpoint"
        self.accelerator.save_state(str(fresh))
        if self.accelerator.is_main_process:
            (fresh / "step.json").write_text(json.dumps({"step": self.step}), encoding="utf-8")
            if kept.exists():
                shutil.rmtree(kept)
            fresh.rename(kept)
        self.accelerator.wait_for_everyone()

    def save_grid(self, name: str, rows: list[list[Tensor]]) -> None:
        """Write pictures [3, H, W] in 0..1 as one PNG, `rows` of equal length."""
        if not self.accelerator.is_main_process:
            return
        lines = [torch.cat([picture.detach().float().cpu() for picture in row], dim=2) for row in rows]
        pixels: NDArray[np.uint8] = (torch.cat(lines, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(self.folder / f"{name}-{self.step:06d}.png")

    def is_due(self, every: int) -> bool:
        """Whether something that happens every `every` steps, and at the last step, is due after this step."""
        return (self.step + 1) % every == 0 or self.step + 1 == self.steps


class Average:
    """Exponential moving average of a module's parameters, with a warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present values."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            shadow = self.shadow[name]
            if shadow.is_floating_point():
                shadow.lerp_(value.to(shadow.dtype), 1 - decay)
            else:
                shadow.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.shadow = state["updates"], state["shadow"]


def cosine(warm_up: int, steps: int, floor: float = 0.02) -> Callable[[int], float]:
    """Factor of the learning rate: linear warm-up, then half a cosine down to `floor`."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
