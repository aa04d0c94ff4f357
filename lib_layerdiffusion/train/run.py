"""One training run: its folder with the log (CSV), sample grids, checkpoints to resume from and the progress bar."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..refusal import Refusal
from .loader import draw_ahead, split

Drawn = TypeVar("Drawn")


def open_accelerator(
    unused_parameters: bool = False, mixed_precision: str | None = None, accumulate: int = 1
) -> Accelerator:
    """Each process draws its own batches, so the learning rate's schedule goes by steps and not by batches.

    `unused_parameters`: whether some parameters may get no gradient; `mixed_precision`: None leaves it to accelerate;
    `accumulate`: the parts of a step that are computed one after the other.
    """
    parallel = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
    # without a GPU, accelerate takes the processes of torchrun for strangers unless it is told
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=several and not (torch.cuda.is_available() or torch.xpu.is_available()),
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[parallel],
    )
    accelerator.gradient_accumulation_steps = accumulate  # whatever the environment says: batches are drawn for it
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise Refusal('mixed_precision = "fp16" needs a GPU, as its small gradients have to be scaled: give "bf16".')
    return accelerator


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
        if kept.exists() and not _is_same(config, json.loads(kept.read_text(encoding="utf-8")), json.loads(text)):
            raise Refusal(
                f"{kept} differs from the configuration given; resume with the same one or name another folder."
            )
        accelerator.wait_for_everyone()  # all have compared before one writes
        if accelerator.is_main_process:
            kept.write_text(text, encoding="utf-8")

    def resume(self) -> None:
        """Load the last whole checkpoint, if there is one, and drop what the log tells of later steps."""
        for folder in (self.folder / "checkpoint", self.folder / "checkpoint.old"):
            if (folder / "step.json").exists():
                state = json.loads((folder / "step.json").read_text(encoding="utf-8"))
                processes = state.get("processes", self.accelerator.num_processes)
                if processes != self.accelerator.num_processes:
                    raise Refusal(
                        f"{self.folder} was trained by {processes} processes, which decide what a step sees, and this "
                        f"command starts {self.accelerator.num_processes}: start {processes}, or name another folder."
                    )
                self.accelerator.load_state(str(folder))
                self.step = state["step"]
                break
        if self.accelerator.is_main_process:
            self._rewind_log()

    def _rewind_log(self) -> None:
        path = self.folder / "log.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                head, *rows = file.readlines()
            kept = [row for row in rows if int(row.partition(",")[0]) <= self.step]
            if len(kept) < len(rows):
                _replace_text(path, "".join([head, *kept]))

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
        """Write the means over steps and processes of what was collected since the last line to log.csv.

        Refused, before anything is kept of it, where a value isn't finite.
        """
        means = {name: sum(values) / len(values) for name, values in self._values.items() if values}
        self._values.clear()
        own = torch.tensor(list(means.values()), dtype=torch.float64, device=self.accelerator.device)
        shared: Any = self.accelerator.reduce(own, "mean")
        means = dict(zip(means, shared.tolist(), strict=True))
        if broken := [name for name, value in means.items() if not math.isfinite(value)]:
            raise Refusal(
                f"The training's {broken[0]} became {means[broken[0]]} before step {self.step}; the last good "
                f"checkpoint is kept in {self.folder}. Lower learning_rate, and name another folder."
            )
        row: dict[str, float] = {"step": self.step, "seconds": round(time.monotonic() - self._started, 1)}
        row["processes"] = self.accelerator.num_processes
        row |= {name: float(f"{value:.6g}") for name, value in means.items()}
        if self.accelerator.is_main_process and means:
            path = self.folder / "log.csv"
            head = path.read_text(encoding="utf-8").splitlines()[0].split(",") if path.exists() else list(row)
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, head, extrasaction="ignore")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        return {name: f"{value:.4g}" for name, value in means.items()}

    def checkpoint(self) -> None:
        """Write the state beside the last checkpoint, then put it in its place: one of them is whole at any time."""
        fresh, kept, old = (self.folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
        self.accelerator.save_state(str(fresh))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {"step": self.step, "processes": self.accelerator.num_processes}
            (fresh / "step.json").write_text(json.dumps(state), encoding="utf-8")
            if kept.exists():
                shutil.rmtree(old, ignore_errors=True)
                kept.rename(old)
            fresh.rename(kept)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def write_model(self) -> Iterator[Path]:
        """A folder to write the result into; it becomes `model` when it is whole."""
        fresh, kept = self.folder / "model.new", self.folder / "model"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        usual = (self.folder / "config.json").stat().st_mode
        for file in filter(Path.is_file, fresh.rglob("*")):
            file.chmod(usual)  # safetensors writes files that nobody but their owner can read
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)

    def save_grid(self, name: str, rows: list[list[Tensor]]) -> None:
        """Write pictures [3, H, W] in 0..1 as one PNG, `rows` of equal length, named after the step being made."""
        if not self.accelerator.is_main_process:
            return
        lines = [torch.cat([picture.detach().float().cpu() for picture in row], dim=2) for row in rows]
        pixels: NDArray[np.uint8] = (torch.cat(lines, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(self.folder / f"{name}-{self.step + 1:06d}.png")

    def draw(self, draw: Callable[[int], Drawn], workers: int) -> Iterator[tuple[int, Drawn]]:
        """Each step with what `draw` makes for it, on the accelerator's device; workers draw ahead."""
        ahead: Iterator[Drawn] | None = None
        for step in self:
            ahead = ahead or draw_ahead(draw, range(step, self.steps), workers)
            yield step, send_to_device(next(ahead), self.accelerator.device)

    def divide(self, batch: Any, *models: nn.Module) -> Iterator[Any]:
        """The parts of a step's batch, in turn; processes exchange the models' gradients with the last one only."""
        for part in split(batch, self.accelerator.gradient_accumulation_steps):
            with self.accelerator.accumulate(*models):
                yield part

    def lower(self, model: nn.Module, batch: Any, optimizer: Any, schedule: Any) -> None:
        """Lower the loss that a model gives of a step's batch by one step."""
        for part in self.divide(batch, model):
            loss: Tensor = model(**part)
            self.accelerator.backward(loss)
            self.log(loss=loss)
        self.take_step(model, optimizer, schedule)

    def take_step(self, model: nn.Module, optimizer: Any, schedule: Any) -> None:
        """Bound the gradients' norm, log it, and change the weights by them.

        In half precision a step is skipped where gradients are too large as they were scaled; the scale is halved then.
        """
        norm = self.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.log(norm=norm)
        schedule.step()
        optimizer.zero_grad()

    def is_due(self, every: int) -> bool:
        """Whether what happens every `every` steps and at the last one is due after this step; 0 means never."""
        return every > 0 and ((self.step + 1) % every == 0 or self.step + 1 == self.steps)


def _is_same(config: Any, kept: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether two resolved configurations agree.

    An option that is newer than the kept one counts with its default. A training at a constant learning rate may be
    lengthened, since its steps are the same whatever their number. So they are with any number of workers.
    """
    defaults = json.loads(json.dumps(dataclasses.asdict(type(config)()), default=str))
    kept = defaults | kept | {"workers": given["workers"]} if "workers" in given else defaults | kept
    if given.get("schedule") == "constant" and kept["steps"] < given["steps"]:
        kept = kept | {"steps": given["steps"]}
    return kept == given


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
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)  # stays on its device

    @contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """Give the module the averaged values for as long as the block lasts."""
        live = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.shadow)
        try:
            yield
        finally:
            module.load_state_dict(live)


def _replace_text(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def constant(warm_up: int) -> Callable[[int], float]:
    """Factor of the learning rate: linear warm-up, then 1."""
    return lambda step: min(1.0, (step + 1) / warm_up)


def cosine(warm_up: int, steps: int, floor: float = 0.02) -> Callable[[int], float]:
    """Factor of the learning rate: linear warm-up, then half a cosine down to `floor`."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
