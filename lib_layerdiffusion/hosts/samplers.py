"""Samplers and schedule types by the names that WebUIs have for them, as schedulers of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lib_layerdiffusion.refusal import Refusal, list_choices

# The class, and what sets it apart.
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("LCMScheduler", {}),
}
# What a schedule type sets; without one a sampler has the model's own spacing.
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "Automatic": {},
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "Uniform": {"timestep_spacing": "linspace"},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}


def set_sampler(pipe: Any, sampler: str | None, schedule: str | None) -> None:
    """Give a pipeline the scheduler of these names; without either it keeps its own. Refusal as of `make_scheduler`."""
    if sampler or schedule:
        pipe.scheduler = make_scheduler(pipe.scheduler, sampler, schedule)


def make_scheduler(current: Any, sampler: str | None, schedule: str | None = None) -> Any:
    """The scheduler of that name for a model, with what `current` says about the model (noise, prediction type).

    A name may have the schedule type at its end ("DPM++ 2M Karras"); case doesn't matter. None keeps the model's own
    sampler or spacing. Refusal when there is no such name, or the sampler doesn't take the schedule or the model.
    """
    import diffusers

    name, chosen = read_names(sampler, schedule)
    kind, settings = (getattr(diffusers, SAMPLERS[name][0]), SAMPLERS[name][1]) if name else (type(current), {})
    takes = inspect.signature(kind.__init__).parameters
    if wrong := [each for each in SCHEDULES[chosen] if each not in takes]:
        able = [each for each, wanted in SCHEDULES.items() if set(wanted) <= set(takes)]
        raise Refusal(
            f"{name or kind.__name__} has no schedule type {chosen!r} ({wrong[0]}): choose among {', '.join(able)}."
        )
    if current.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        able = [each for each in SAMPLERS if "rescale_betas_zero_snr" in _parameters(each)]
        raise Refusal(
            f"{name or kind.__name__} can't sample a model with zero terminal SNR: choose among {', '.join(able)}."
        )
    return kind.from_config(current.config, **settings, **SCHEDULES[chosen])


def adapt_to_keys(current: Any, is_v: bool, is_zero_snr: bool) -> Any:
    """The scheduler for a checkpoint that predicts v, or was trained down to zero terminal SNR (arXiv 2305.08891)."""
    import diffusers

    settings: dict[str, Any] = {"prediction_type": "v_prediction"} if is_v else {}
    kind = type(current)
    if is_zero_snr:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in inspect.signature(kind.__init__).parameters:
            kind = diffusers.DDIMScheduler
    return kind.from_config(current.config, **settings) if settings else current


def describe(scheduler: Any) -> dict[str, str]:
    """A scheduler's entries in an infotext, by the names that WebUIs know; the name of its class if they have none."""
    config, kind = scheduler.config, type(scheduler).__name__
    matching = [
        name
        for name, (each, settings) in SAMPLERS.items()
        if each == kind and all(config.get(key) == value for key, value in settings.items())
    ]
    flags = [name for name in ("Karras", "Exponential", "Beta") if all(map(config.get, SCHEDULES[name]))]
    if config.get("timestep_spacing") == "trailing" and not flags:
        flags = ["SGM Uniform"]
    named = {"Sampler": matching[0] if matching else kind.removesuffix("Scheduler")}
    return named | ({"Schedule type": flags[0]} if flags else {})


def read_names(sampler: str | None, schedule: str | None) -> tuple[str | None, str]:
    """A sampler's name, None for the model's own, and the schedule type, which its text may have at the end."""
    head, last = sampler, "Automatic"
    for each in SCHEDULES:
        if sampler and sampler.casefold().endswith(f" {each.casefold()}"):
            head, last = sampler[: -len(each) - 1], each
    name = _find(head, SAMPLERS, "sampler") if head else None
    return name, _find(schedule, SCHEDULES, "schedule type") if schedule else last


def _find(text: str, names: Mapping[str, Any], kind: str) -> str:
    found = [name for name in names if name.casefold() == text.strip().casefold()]
    if not found:
        raise Refusal(f"There is no {kind} {text[:60]!r}: {list_choices(text[:60], names)}.")
    return found[0]


def _parameters(sampler: str) -> Mapping[str, Any]:
    import diffusers

    return inspect.signature(getattr(diffusers, SAMPLERS[sampler][0]).__init__).parameters
