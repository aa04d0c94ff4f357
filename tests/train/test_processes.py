"""Two real processes: they share the gradients and what is encoded, and the log has the mean over both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert lines[0] == "step,seconds,loss,rank"
    losses = [(float(line.split(",")[2]), float(line.split(",")[3])) for line in lines[1:]]
    assert losses == [(1.5, 0.5), (-0.75, 0.5)]
