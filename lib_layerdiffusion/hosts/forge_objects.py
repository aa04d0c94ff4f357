"""What Forge and the WebUIs that come from it share: `forge_objects` on the loaded model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib_layerdiffusion import injection
from lib_layerdiffusion.hosts.webui_model import WebUIHost, need
from lib_layerdiffusion.joining import is_torchs

PLAIN = {  # modules and names of the `forward` of linear layers
    ("backend.operations", "ForgeOperations.Linear.forward"),
    ("ldm_patched.modules.ops", "disable_weight_init.Linear.forward"),
}
ON_THE_FLY = ("forge_online_loras", "weight_function", "bias_function")  # what changes weights in a call


class ForgeObjectsHost(WebUIHost, ABC):
    """Host of a model whose networks are wrapped in patchers, which know about memory."""

    name: str

    def __init__(self, model: Any) -> None:
        objects = need(model, "forge_objects")
        super().__init__(model, objects.unet.model.diffusion_model, objects.vae.first_stage_model)
        self._vae = objects.vae
        zero, one = self.to_sampler_space(torch.tensor([0.0, 1.0])).tolist()
        self.scaling_factor = one - zero

    @abstractmethod
    def to_sampler_space(self, latents: Tensor) -> Tensor:
        """The WebUI's own conversion of latents from VAE space."""

    @property
    @abstractmethod
    def memory(self) -> Any:
        """The WebUI's module that manages the memory of its devices."""

    @property
    @abstractmethod
    def precision(self) -> torch.dtype:
        """What the UNet computes in."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.memory.get_torch_device())

    def free_memory(self) -> int:
        """Bytes of the compute device that are free, by the WebUI's own count."""
        return int(self.memory.get_free_memory(self.device))

    def is_plain_linear(self, layer: nn.Module) -> bool:
        """The WebUI's own for weights of the usual kinds, without LoRAs on the fly and without a scale.

        Its weights may be tensors that don't tell when they are written to: it exchanges them, between two passes.
        """
        forward: Any = type(layer).forward
        known = (forward.__module__, forward.__qualname__) in PLAIN and is_torchs(nn.Linear.forward)
        changed = any(getattr(layer, name, None) for name in ON_THE_FLY)
        return known and not changed and getattr(layer, "scale_weight", None) is None

    def encode(self, pixels: Tensor) -> Tensor:
        # The VAE draws a sample with the global random numbers; without deviation the sample is the mean.
        fixed = injection.posterior(self.vae, injection.fix_moments)
        with torch.random.fork_rng(devices=[]), fixed, torch.inference_mode():  # which Forge's tiles need
            latents = self._vae.encode((pixels * 0.5 + 0.5).movedim(1, -1))
        return latents.clone()

    def decode(self, latents: Tensor) -> Tensor:
        with torch.inference_mode():
            pixels = self._vae.decode(latents)
        return pixels.movedim(-1, 1).clone()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Let the WebUI keep `size` bytes free of the model's weights while the block lasts."""
        patcher = self._model.forge_objects.unet  # the one of this pass
        before = patcher.extra_preserved_memory_during_sampling
        patcher.add_extra_preserved_memory_during_sampling(size)
        try:
            yield
        finally:
            patcher.extra_preserved_memory_during_sampling = before

    @contextmanager
    def on_device(self, network: nn.Module, room: int = 0) -> Iterator[torch.device]:
        """Hold `network` on the compute device, after making room; in the processor's memory afterwards."""
        device = self.device
        size = sum(p.numel() * p.element_size() for p in network.parameters())
        self.memory.free_memory(size + max(size, room), device)
        network.to(device)
        try:
            yield device
        finally:
            network.to("cpu")
