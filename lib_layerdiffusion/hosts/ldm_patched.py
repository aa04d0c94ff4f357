"""reForge, Forge Classic and Forge of early 2024: the `ldm_patched` package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_layerdiffusion.hosts.forge_objects import ForgeObjectsHost


class LdmPatchedHost(ForgeObjectsHost):
    """Host of one loaded model of a WebUI with `ldm_patched`."""

    name = "reForge or Forge Classic"

    def to_sampler_space(self, latents: Tensor) -> Tensor:
        return self._model.forge_objects.unet.model.latent_format.process_in(latents)

    @property
    def precision(self) -> torch.dtype:
        model = self._model.forge_objects.unet.model
        return model.manual_cast_dtype or model.get_dtype()

    @property
    def memory(self) -> Any:
        from ldm_patched.modules import model_management  # pyright: ignore[reportMissingImports]

        return model_management
