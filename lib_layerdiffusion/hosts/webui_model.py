"""What the adapters of all WebUIs share: the loaded model's networks in the LDM layout, its family and its schedule."""

from __future__ import annotations

from typing import Any

from torch import nn

from lib_layerdiffusion.modes import FAMILIES, MODES, Family, Mode
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WeightStore

LAST_TIMESTEP = 999


class WebUIHost:
    """Host of one loaded model (`p.sd_model`); nothing in it is changed by making one."""

    def __init__(self, model: Any, unet: nn.Module, vae: nn.Module) -> None:
        self._model = model
        self.family: Family = read_family(model)
        self.unet = unet
        self.vae = vae
        first_conv: Any = unet.get_submodule("input_blocks.0.0")
        self.unet_channels = int(first_conv.weight.shape[1])
        self._width = int(first_conv.weight.shape[0])

    def parameter_name(self, ldm_name: str) -> str | None:
        return ldm_name

    def why_not(self, mode: str, store: WeightStore) -> str:
        """Why the mode's file can't fit the loaded model, or nothing."""
        return explain_misfit(mode, self.family, self._width, store)

    def percent_to_timestep(self, fraction: float) -> float:
        return (1.0 - fraction) * LAST_TIMESTEP


def explain_misfit(mode: str, family: str, width: int, store: WeightStore) -> str:
    """Why a mode's file can't fit a UNet of this width: it is made for another, as the embedded model's is."""

    def fits(row: Mode) -> bool:
        return store.unet_width(row.file) in (None, width)

    rows = [row for row in MODES if row.family == family]
    refused = next((row for row in rows if row.name == mode and not fits(row)), None)
    if refused is None:
        return ""
    others = [row.name for row in rows if fits(row)]
    choice = f", or choose {' or '.join(others)}" if others else ""
    return (
        f"The file {refused.file} is made for a UNet of {store.unet_width(refused.file)} channels, and this "
        f"checkpoint's has {width}: load an ordinary {FAMILIES[refused.family]} checkpoint{choice}."
    )


def need(model: Any, name: str) -> Any:
    """An attribute that every loaded model has; Refusal when no model is loaded."""
    if (value := getattr(model, name, None)) is None:
        raise Refusal("No checkpoint is loaded: choose an SD1.5 or SDXL checkpoint in the WebUI.")
    return value


def read_family(model: Any) -> Family:
    """The base-model family of a loaded model; for others its own name, which planning refuses."""
    if getattr(model, "is_sdxl", False):
        return "sdxl"
    return "sd15" if getattr(model, "is_sd1", False) else type(model).__name__  # pyright: ignore[reportReturnType]
