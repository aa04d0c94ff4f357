"""What the loaded models of all WebUIs tell in the same way."""

from __future__ import annotations

from typing import Any

from lib_layerdiffusion.modes import Family

LAST_TIMESTEP = 999


def read_family(model: Any) -> Family:
    """The base-model family of a loaded model; for others its own name, which planning refuses."""
    if getattr(model, "is_sdxl", False):
        return "sdxl"
    return "sd15" if getattr(model, "is_sd1", False) else type(model).__name__  # pyright: ignore[reportReturnType]


def percent_to_timestep(fraction: float) -> float:
    """Timestep, as these UNets receive it, after `fraction` of the noise schedule."""
    return (1.0 - fraction) * LAST_TIMESTEP
