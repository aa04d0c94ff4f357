"""The host adapter for the stand-in: its models are diffusers pipelines."""

from __future__ import annotations

from typing import Any

from lib_layerdiffusion.hosts.diffusers import DiffusersHost
from lib_layerdiffusion.refusal import Refusal


class StandInHost(DiffusersHost):
    """Host of one loaded model (`p.sd_model`)."""

    def __init__(self, model: Any) -> None:
        if model is None:
            raise Refusal("No model is loaded: start the page with --model.")
        super().__init__(model.pipe)
        self.name = "the stand-in WebUI"
