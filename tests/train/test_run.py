"""A run's log, checkpoints, result folder, and the average of its weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.run import Average, Run, constant, cosine, open_accelerator


@dataclass(frozen=True)
class Config:
    rate: float = 0.1


CONFIG = Config()


class Interrupted(Exception):
    pass


def count_up(folder: Path, steps: int = 6, config: Config = CONFIG, stop_at: int | None = None) -> float:
    """Add 1 to a weight in each step, logging every second one; returns the weight."""
    accelerator = open_accelerator()
    layer = accelerator.prepare(nn.Linear(1, 1, bias=False))
    nn.init.zeros_(layer.weight)
    run = Run(folder, config, accelerator, steps, every=2)
    for step in run:
        if step == stop_at:
            raise Interrupted
        with torch.no_grad():
            layer.weight += 1
        run.log(weight=layer.weight.sum())
    return layer.weight.item()


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_log_has_one_line_of_means_for_each_interval(tmp_path: Path) -> None:
    count_up(tmp_path, steps=5)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    assert [float(row["weight"]) for row in rows] == [1.5, 3.5, 5]


def test_resumed_run_goes_on_where_the_last_checkpoint_was(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        count_up(tmp_path, stop_at=3)
    assert count_up(tmp_path) == 6
    assert [float(row["weight"]) for row in read_log(tmp_path)] == [1.5, 3.5, 5.5]


def test_log_forgets_steps_that_no_checkpoint_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Run.checkpoint

    def keep_first(run: Run) -> None:
        if run.step > 2:
            raise Interrupted
        keep(run)

    monkeypatch.setattr(Run, "checkpoint", keep_first)
    with pytest.raises(Interrupted):
        count_up(tmp_path)
    assert len(read_log(tmp_path)) == 2
    monkeypatch.undo()
    count_up(tmp_path)
    assert [row["step"] for row in read_log(tmp_path)] == ["2", "4", "6"]


def test_column_that_the_log_does_not_have_is_left_out(tmp_path: Path) -> None:
    count_up(tmp_path, steps=2)
    run = Run(tmp_path, CONFIG, open_accelerator(), 4, every=2)
    run.step = 4
    run.log(new=1.0, weight=3.0)
    run.write_log()
    assert list(read_log(tmp_path)[-1]) == ["step", "seconds", "processes", "weight"]
    assert read_log(tmp_path)[-1]["weight"] == "3.0"


def test_broken_values_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path: Path) -> None:
    accelerator = open_accelerator()
    layer = accelerator.prepare(nn.Linear(1, 1, bias=False))
    nn.init.ones_(layer.weight)
    run = Run(tmp_path, CONFIG, accelerator, 6, every=2)
    with pytest.raises(Refusal, match=r"weight became nan before step 4; the last good checkpoint is kept in .*"):
        for step in run:
            if step == 2:
                nn.init.constant_(layer.weight, float("nan"))
            run.log(weight=layer.weight.sum())
    again = Run(tmp_path, CONFIG, accelerator, 6, every=2)
    again.resume()
    assert (again.step, layer.weight.item()) == (2, 1.0)
    assert [row["step"] for row in read_log(tmp_path)] == ["2"]
    assert not (tmp_path / "model").exists()


@dataclass(frozen=True)
class Longer:
    steps: int = 4
    schedule: str = "constant"
    rate: float = 0.1


class Scaled(Accelerator):
    """As in half precision: the first steps are skipped, since gradients are too large as they were scaled."""

    skipped = 2

    @property
    def optimizer_step_was_skipped(self) -> bool:
        return self.skipped > 0

    def clip_grad_norm_(self, *_given: Any) -> Tensor:
        return torch.tensor(torch.inf if self.skipped else 3.0)


def test_steps_that_half_precision_skips_do_not_stop_the_run(tmp_path: Path) -> None:
    accelerator = Scaled(cpu=True)
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    run = Run(tmp_path, CONFIG, accelerator, 4, every=4)
    for step in run:
        accelerator.skipped = max(0, 2 - step)
        run.take_step(layer, optimizer, schedule)
    assert [float(row["norm"]) for row in read_log(tmp_path)] == [3.0]


def test_half_precision_that_needs_scaling_is_refused_on_processors() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # it is one for the whole process
    try:
        with pytest.raises(Refusal, match='give "bf16"'):
            open_accelerator(mixed_precision="fp16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_run_at_a_constant_rate_may_be_lengthened_but_not_shortened(tmp_path: Path) -> None:
    accelerator = open_accelerator()
    Run(tmp_path, Longer(), accelerator, 4, every=2)
    Run(tmp_path, Longer(steps=6), accelerator, 6, every=2)
    for other in (Longer(), Longer(steps=8, schedule="cosine"), Longer(steps=8, rate=0.2)):
        with pytest.raises(Refusal, match="name another folder"):
            Run(tmp_path, other, accelerator, 8, every=2)


def test_option_newer_than_the_run_counts_with_its_default(tmp_path: Path) -> None:
    accelerator = open_accelerator()
    Run(tmp_path, Longer(), accelerator, 4, every=2)
    older = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del older["rate"]
    (tmp_path / "config.json").write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(Refusal, match="name another folder"):
        Run(tmp_path, Longer(rate=0.2), accelerator, 4, every=2)
    Run(tmp_path, Longer(), accelerator, 4, every=2)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["rate"] == 0.1


def test_other_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    count_up(tmp_path, steps=2)
    before = (tmp_path / "config.json").read_text(encoding="utf-8")
    with pytest.raises(Refusal, match="name another folder"):
        count_up(tmp_path, config=Config(rate=0.2))
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == before


def break_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(self: Accelerator, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise Interrupted

    monkeypatch.setattr(Accelerator, "save_state", save_half)


def break_renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def stop_before_the_last(self: Path, target: Path) -> Path:
        if self.name == "checkpoint.new":
            raise Interrupted
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_before_the_last)


@pytest.mark.parametrize("break_it", [break_saving, break_renaming])
def test_interruption_while_a_checkpoint_is_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    count_up(tmp_path, steps=2)
    break_it(monkeypatch)
    with pytest.raises(Interrupted):
        count_up(tmp_path, steps=4)
    monkeypatch.undo()
    accelerator = open_accelerator()
    layer = accelerator.prepare(nn.Linear(1, 1, bias=False))
    run = Run(tmp_path, CONFIG, accelerator, 4, every=2)
    run.resume()
    assert (run.step, layer.weight.item()) == (2, 2)
    assert count_up(tmp_path, steps=4) == 4
    assert json.loads((tmp_path / "checkpoint" / "step.json").read_text(encoding="utf-8")) == {
        "step": 4,
        "processes": 1,
    }
    assert not (tmp_path / "checkpoint.old").exists()


def test_model_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIG, open_accelerator(), 1, every=1)

    def write(text: str, error: type[Exception] | None = None) -> None:
        with run.write_model() as folder:
            (folder / "file").write_text(text)
            if error is not None:
                raise error

    with pytest.raises(Interrupted):
        write("half", Interrupted)
    assert not (tmp_path / "model").exists()
    write("old")
    with pytest.raises(Interrupted):
        write("half", Interrupted)
    assert (tmp_path / "model" / "file").read_text() == "old"
    write("new")
    assert (tmp_path / "model" / "file").read_text() == "new"


def test_a_models_files_can_be_read_by_those_who_can_read_others(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIG, open_accelerator(), 1, every=1)
    with run.write_model() as folder:
        (folder / "unet").mkdir()
        save_file({"weight": torch.zeros(2)}, folder / "unet" / "weights.safetensors")
    written = tmp_path / "model" / "unet" / "weights.safetensors"
    assert written.stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_grid_is_named_after_the_step_and_ordered_in_rows(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIG, open_accelerator(), 10, every=5)
    run.step = 4
    run.save_grid("samples", [[torch.zeros(3, 2, 2), torch.ones(3, 2, 2)], [torch.full((3, 2, 2), 2.0)] * 2])
    pixels = np.asarray(Image.open(tmp_path / "samples-000005.png"))
    assert pixels[..., 0].tolist() == [[0, 0, 255, 255]] * 2 + [[255] * 4] * 2


def test_what_is_due(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIG, open_accelerator(), 7, every=5)

    def due(every: int) -> list[int]:
        steps: list[int] = []
        for step in range(7):
            run.step = step
            if run.is_due(every):
                steps.append(step + 1)
        return steps

    assert due(3) == [3, 6, 7]
    assert due(0) == []


def test_average_follows_with_its_decay_and_survives_a_checkpoint() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = Average(layer, decay=0.5)
    nn.init.ones_(layer.weight)
    average.update(layer)
    first = average.shadow["weight"].item()
    assert first == pytest.approx(1 - 2 / 11)  # warm-up: younger weights count more than the decay says
    for _ in range(50):
        average.update(layer)
    kept: dict[str, Any] = {"updates": average.updates, "shadow": {"weight": average.shadow["weight"].clone()}}
    other = Average(nn.Linear(1, 1, bias=False), decay=0.5)
    place = other.shadow["weight"]
    other.load_state_dict(kept)
    nn.init.zeros_(layer.weight)
    for each in (average, other):
        each.update(layer)
    assert other.shadow["weight"].item() == average.shadow["weight"].item() == pytest.approx(0.5, abs=1e-6)
    assert other.shadow["weight"] is place  # loading moves nothing to another device


def test_average_inside_a_module_is_taken_out_again() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = Average(layer, decay=0.9)
    before = layer.weight.item()
    nn.init.constant_(layer.weight, 7)
    with pytest.raises(Interrupted), average.inside(layer):
        assert layer.weight.item() == before
        raise Interrupted
    assert layer.weight.item() == 7


def test_constant_learning_rate_stays_after_its_warm_up() -> None:
    assert [constant(4)(step) for step in (0, 1, 3, 4, 10_000)] == [0.25, 0.5, 1, 1, 1]


def test_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    factor = cosine(warm_up=10, steps=110, floor=0.1)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == factor(500) == pytest.approx(0.1)
