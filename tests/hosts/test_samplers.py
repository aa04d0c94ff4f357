"""Samplers by the names of WebUIs, and schedulers for checkpoints that predict v."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from lib_layerdiffusion.hosts.pipelines import load_pipeline
from lib_layerdiffusion.hosts.samplers import SAMPLERS, describe, make_scheduler
from lib_layerdiffusion.refusal import Refusal


def current(**settings: Any) -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", **settings)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_what_is_the_model_s_and_is_named_again(name: str) -> None:
    scheduler = make_scheduler(current(prediction_type="v_prediction", beta_end=0.0123), name.upper())
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_end == 0.0123
    scheduler.set_timesteps(4)
    assert describe(scheduler) == {"Sampler": name}


@pytest.mark.parametrize(
    ("sampler", "schedule", "named", "key"),
    [
        ("DPM++ 2M Karras", None, "Karras", "use_karras_sigmas"),
        ("dpm++ 2m", "karras", "Karras", "use_karras_sigmas"),
        ("Euler", "Exponential", "Exponential", "use_exponential_sigmas"),
        ("DPM++ 2M SDE Karras", "SGM Uniform", "SGM Uniform", "timestep_spacing"),
    ],
)
def test_schedule_types(sampler: str, schedule: str | None, named: str, key: str) -> None:
    scheduler = make_scheduler(current(), sampler, schedule)
    assert scheduler.config[key] in (True, "trailing")
    assert describe(scheduler)["Schedule type"] == named


@pytest.mark.parametrize(
    ("sampler", "schedule", "sentence"),
    [
        ("DDIM", "Karras", "DDIM has no schedule type 'Karras'"),
        ("DPM+ 2M", None, r"did you mean 'DPM\+\+ 2M'"),
        ("Euler", "Polyexponential", "There is no schedule type"),
        ("x" * 9000, None, "There is no sampler"),
    ],
)
def test_what_there_is_not_is_refused(sampler: str, schedule: str | None, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence) as refusal:
        make_scheduler(current(), sampler, schedule)
    assert len(str(refusal.value)) < 300


def test_zero_terminal_snr_is_kept_or_refused() -> None:
    zero = current(rescale_betas_zero_snr=True)
    assert make_scheduler(zero, "Euler").config.rescale_betas_zero_snr
    with pytest.raises(Refusal, match="PLMS can't sample a model with zero terminal SNR: choose among Euler"):
        make_scheduler(zero, "PLMS")


class Loaded:
    """A pipeline as diffusers gives it of a single file, whose keys for the prediction it doesn't read."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def to(self, *_: object) -> Loaded:
        return self

    def set_progress_bar_config(self, **_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("keys", "metadata", "kind", "prediction", "zero"),
    [
        ([], None, diffusers.PNDMScheduler, "epsilon", False),
        (["v_pred"], None, diffusers.PNDMScheduler, "v_prediction", False),
        ([], {"modelspec.prediction_type": "v"}, diffusers.PNDMScheduler, "v_prediction", False),
        (["v_pred", "ztsnr"], None, diffusers.DDIMScheduler, "v_prediction", True),
        (["ztsnr"], None, diffusers.DDIMScheduler, "epsilon", True),
    ],
)
def test_a_file_s_keys_decide_the_prediction(
    keys: list[str],
    metadata: dict[str, str] | None,
    kind: type[Any],
    prediction: str,
    zero: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1), **{key: torch.zeros(0) for key in keys}}, path, metadata)
    loaded = Loaded(diffusers.PNDMScheduler(beta_schedule="scaled_linear"))
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", lambda *_, **__: loaded)
    scheduler = load_pipeline(path, device="cpu", offline=True).scheduler
    assert isinstance(scheduler, kind)
    assert scheduler.config.prediction_type == prediction
    assert bool(scheduler.config.get("rescale_betas_zero_snr")) == zero
