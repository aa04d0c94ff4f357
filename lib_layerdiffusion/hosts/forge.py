"""Forge main, reForge's newforge branch and Forge Neo: the `backend` package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_layerdiffusion.hosts.forge_objects import ForgeObjectsHost


class ForgeHost(ForgeObjectsHost):
    """Host of one loaded model of Forge."""

    name = "Forge"

    def to_sampler_space(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.process_in(latents)

    @property
    def precision(self) -> torch.dtype:
        return self._model.forge_objects.unet.model.computation_dtype

    @property
    def memory(self) -> Any:
        from backend import memory_management  # pyright: ignore[reportMissingImports]

        return memory_management
