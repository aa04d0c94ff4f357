"""The host adapter for the stand-in: its models are diffusers pipelines."""

from __future__ import annotations

from typing import Any

from lib_layerdiffusion.hosts.diffusers import DiffusersHost
from lib_layerdiffusion.hosts.webui_model import explain_misfit
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WeightStore


class StandInHost(DiffusersHost):
    """Host of one loaded model (`p.sd_model`)."""

    def __init__(self, model: Any) -> None:
        if model is None:
            raise Refusal("No model is loaded: start the page with --model.")
        super().__init__(model.pipe)
        self.name = "the stand-in WebUI"

    def why_not(self, mode: str, store: WeightStore) -> str:
        """Why the mode's file can't fit the loaded model, or nothing."""
        return explain_misfit(mode, self.family, self.unet.conv_in.out_channels, store)
