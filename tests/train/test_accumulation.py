"""Gradient accumulation in all four trainings: two batches of two make the step that one batch of four makes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_layerdiffusion.train import autoencoder, base, finetune, transparency
from lib_layerdiffusion.train.finetune import FinetuneConfig
from tests.train.tiny import TINY_BASE, TINY_TRANSPARENCY, TINY_VAE

pytestmark = pytest.mark.slow

LOGGED: dict[str, Any] = {"log_every": 1, "grid_every": 0, "learning_rate": 0.02}
ADVERSARIAL: dict[str, Any] = {"discriminator_weight": 0.1, "discriminator_from": 0.0, "size_steps": (2,)}


def make_config(stage: str, files: dict[str, Path]) -> Any:
    match stage:
        case "autoencoder":
            return replace(TINY_VAE, encoder=files["encoder"], latent_noise=0.1, **ADVERSARIAL)
        case "transparency":
            return replace(TINY_TRANSPARENCY, autoencoder=files["vae"], **ADVERSARIAL)
        case "base":
            return replace(TINY_BASE, autoencoder=files["vae"], views_per_caption=3, steps=2)
        case _:
            paths = {"base": files["sd15"], "encoder": files["encoder"]}
            return FinetuneConfig(**paths, mode="together", size=64, rank=2, views_per_caption=3, steps=2)


@pytest.mark.parametrize("stage", ["autoencoder", "transparency", "base", "finetune"])
def test_two_batches_of_two_are_one_of_four(
    stage: str,
    archive: Path,
    vae_folder: Path,
    sd15_folder: Path,
    encoder_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # with Adam, whose steps hardly depend on the gradient's size, a wrong sum would pass, and rounding would not
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, rate, **_: torch.optim.SGD(parameters, rate))
    files = {"vae": vae_folder, "sd15": sd15_folder, "encoder": encoder_file}
    config = replace(make_config(stage, files), data=archive, **LOGGED)
    name = "batches" if hasattr(config, "batches") else "batch"
    train: Callable[[Any, Path], None] = {
        "autoencoder": autoencoder.train,
        "transparency": transparency.train,
        "base": base.train,
        "finetune": finetune.train,
    }[stage]
    for run, batch, accumulate in (("two", 2, 2), ("one", 4, 1), ("half", 2, 1)):
        size: Any = (batch,) if name == "batches" else batch
        train(replace(config, **{name: size, "accumulate": accumulate}), tmp_path / run)
    two, one, half = (read_weights(tmp_path / run / "model") for run in ("two", "one", "half"))
    difference = max(float((two[each] - one[each]).abs().max()) for each in one)
    other = max(float((half[each] - one[each]).abs().max()) for each in one)
    assert difference < 2e-5
    assert other > 20 * difference
    logs = [read_log(tmp_path / run / "log.csv") for run in ("two", "one")]
    assert len(logs[0]) == 2
    for row, wanted in zip(*logs, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return {f"{file.name} {name}": value.float() for file in files for name, value in load_file(file).items()}


def read_log(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if name != "seconds"} for row in rows]
