"""The host adapter for the stand-in: its models are diffusers pipelines."""

from __future__ import annotations

from typing import Any

from lib_layerdiffusion.embedded import EMBEDDED
from lib_layerdiffusion.hosts.diffusers import DiffusersHost
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WeightStore


class StandInHost(DiffusersHost):
    """Host of one loaded model (`p.sd_model`)."""

    def __init__(self, model: Any) -> None:
        if model is None:
            raise Refusal("No model is loaded: start the page with --model.")
        super().__init__(model.pipe)
        self.name = "the stand-in WebUI"
        self.is_embedded = model.sd_checkpoint_info.name_for_extra == EMBEDDED

    def why_not(self, mode: str, _store: WeightStore) -> str:
        """Why the loaded model can't do a mode: the published files don't fit the embedded model."""
        if not self.is_embedded or mode == "foreground":
            return ""
        return (
            "The embedded model knows only the foreground mode: choose that, or start the page with --model and a "
            "Stable Diffusion checkpoint."
        )
