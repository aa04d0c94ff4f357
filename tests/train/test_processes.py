"""Two real processes: they share the gradients and what is encoded, and the log has the mean over both."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.command import main

WORKER = """
import json, sys
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
from lib_layerdiffusion.train.bank import Bank
from lib_layerdiffusion.train.run import Run, open_accelerator

@dataclass(frozen=True)
class Config:
    rate: float = 0.1

accelerator = open_accelerator()
raw = nn.Linear(1, 1, bias=False)
nn.init.ones_(raw.weight)
optimizer = torch.optim.SGD(raw.parameters(), 1.0)
model, optimizer = accelerator.prepare(raw, optimizer)
rank = accelerator.process_index
run = Run(Path(sys.argv[1]), Config(), accelerator, 2, every=1)
bank = Bank(run.folder / "bank", 40)
bank.fill(bank.find_rows, lambda rows: ({"by": torch.full((len(rows),), rank)}, list(rows)), accelerator)
for step in run:
    loss = model(torch.full((1, 1), float(rank + 1))).sum()
    accelerator.backward(loss)
    run.log(loss=loss, rank=float(rank))
    optimizer.step()
    optimizer.zero_grad()
facts = {"processes": accelerator.num_processes, "weight": raw.weight.item()}
facts |= {"rows": bank.read_texts(), "by": bank.read(range(0, 40, 16))["by"].tolist()}
Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(facts))
"""


@pytest.mark.slow
def test_torchrun_starts_two_processes_that_train_together(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path / "run")]
    subprocess.run([sys.executable, *words], check=True, timeout=240, capture_output=True)
    facts = [json.loads((tmp_path / "run" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    # the gradient is the input: 1 in one process, 2 in the other, so each step takes their mean
    shared = {"rows": list(range(40)), "by": [0, 1, 0]}  # each file is written by one process and read by both
    assert facts == [{"processes": 2, "weight": 1 - 2 * 1.5, **shared}] * 2
    lines = (tmp_path / "run" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "step,seconds,processes,loss,rank"
    losses = [(float(line.split(",")[3]), float(line.split(",")[4])) for line in lines[1:]]
    assert losses == [(1.5, 0.5), (-0.75, 0.5)]


def train_by_two(command: str, out: Path, *options: str) -> None:
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "lib_layerdiffusion",
        "train",
    ]
    subprocess.run(
        [sys.executable, *words, command, "--out", str(out), *options],
        check=True,
        timeout=240,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def read_processes(run: Path) -> list[str]:
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        return [row["processes"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_layer_file_trained_by_two_processes_can_be_interrupted(
    archive: Path, sd15_folder: Path, encoder_file: Path, tmp_path: Path
) -> None:
    files = {"data": archive, "base": sd15_folder, "encoder": encoder_file}
    options = [f'{name}="{path}"' for name, path in files.items()]
    options += ['mode="together"', 'schedule="constant"', "size=64", "rank=2", "views_per_caption=2", "batch=2"]
    options += ["log_every=1", "grid_every=0"]
    train_by_two("finetune", tmp_path / "whole", *options, "steps=4")
    train_by_two("finetune", tmp_path / "parts", *options, "steps=2")
    with pytest.raises(Refusal, match="2 processes"):
        main(["finetune", "--out", str(tmp_path / "parts"), *options, "steps=4"])
    train_by_two("finetune", tmp_path / "parts", *options, "steps=4")
    parts, whole = (tmp_path / run / "model" / "layer_sd15_joint.safetensors" for run in ("parts", "whole"))
    assert parts.read_bytes() == whole.read_bytes()
    assert read_processes(tmp_path / "parts") == ["2"] * 4


@pytest.mark.slow
def test_an_autoencoder_is_trained_against_its_discriminator_by_two_processes(archive: Path, tmp_path: Path) -> None:
    options = ["widths=[4,4,8,8]", "groups=2", "sizes=[64]", "size_steps=[2]", "batches=[2]", "log_every=1"]
    options += ["discriminator_weight=0.1", "discriminator_from=0.0", "matching_weight=1.0", "grid_every=0"]
    train_by_two("autoencoder", tmp_path / "run", f'data="{archive}"', *options)
    assert read_processes(tmp_path / "run") == ["2"] * 2
    with (tmp_path / "run" / "log.csv").open(newline="", encoding="utf-8") as file:
        first, last = csv.DictReader(file)
        assert float(first["matching"]) == 0  # the discriminator counts from the second step on
        assert float(last["matching"]) > 0
