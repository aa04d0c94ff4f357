"""AUTOMATIC1111 1.10: the checkpoint is one torch module (`ldm` for SD1.5, `sgm` for SDXL), moved as its flags say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib_layerdiffusion import injection
from lib_layerdiffusion.hosts.webui_model import WebUIHost, need
from lib_layerdiffusion.joining import is_own_linear, is_torchs
from lib_layerdiffusion.refusal import Refusal


class A1111Host(WebUIHost):
    """Host of one loaded model (`p.sd_model`); nothing in it is changed by making one."""

    name = "AUTOMATIC1111"

    def __init__(self, model: Any) -> None:
        vae = need(model, "first_stage_model")
        _refuse_other_unet()
        super().__init__(model, model.model.diffusion_model, vae)
        self.scaling_factor = float(model.scale_factor)

    @property
    def device(self) -> torch.device:
        from modules import devices  # pyright: ignore[reportMissingImports]

        return torch.device(devices.device)

    @property
    def precision(self) -> torch.dtype:
        from modules import devices  # pyright: ignore[reportMissingImports]

        return getattr(devices, "dtype_inference", devices.dtype)  # the first tells --precision=full

    def is_plain_linear(self, layer: nn.Module) -> bool:
        """Torch's own, also as the built-in Lora extension replaces it: it writes LoRAs into the weight when called."""
        forward, networks = nn.Linear.forward, sys.modules.get("networks")
        if forward is not getattr(networks, "network_Linear_forward", None):
            return is_own_linear(layer)
        from modules import shared  # pyright: ignore[reportMissingImports]

        original = getattr(getattr(networks, "originals", None), "Linear_forward", None)
        functional = getattr(shared.opts, "lora_functional", True)  # then LoRAs are products beside the layer
        return type(layer) is nn.Linear and is_torchs(original) and not functional

    def encode(self, pixels: Tensor) -> Tensor:
        # The VAE draws a sample with the global random numbers; without deviation the sample is the mean.
        with torch.random.fork_rng(devices=[]), injection.posterior(self.vae, injection.fix_moments):
            encoded = [self._encode(image) for image in pixels.split(1)]
        return torch.cat(encoded).float() / self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        from modules import devices  # pyright: ignore[reportMissingImports]

        latents = self._match_vae(latents * self.scaling_factor)
        with torch.no_grad(), devices.without_autocast():
            images = [self._model.decode_first_stage(latent).float() for latent in latents.split(1)]
        return (torch.cat(images) * 0.5 + 0.5).clamp(0, 1)

    @contextmanager
    def on_device(self, network: nn.Module, room: int = 0) -> Iterator[torch.device]:
        """Hold `network` on the compute device, cleared first under --medvram and --lowvram."""
        from modules import devices, lowvram  # pyright: ignore[reportMissingImports]

        if lowvram.is_enabled(self._model):
            lowvram.send_everything_to_cpu()
        devices.torch_gc()
        network.to(devices.device)
        try:
            yield self.device
        finally:
            network.to("cpu")
            devices.torch_gc()

    def _encode(self, image: Tensor) -> Tensor:
        from modules import devices  # pyright: ignore[reportMissingImports]

        with torch.no_grad(), devices.without_autocast():
            return self._model.get_first_stage_encoding(self._model.encode_first_stage(self._match_vae(image)))

    def _match_vae(self, tensor: Tensor) -> Tensor:
        """In the VAE's dtype, and where it computes: --medvram and --lowvram bring the VAE there when it is called."""
        from modules import devices  # pyright: ignore[reportMissingImports]

        return tensor.to(devices.device, next(self.vae.parameters()).dtype)


def _refuse_other_unet() -> None:
    """With the option "SD Unet" another network (such as TensorRT's) computes instead of the checkpoint's own."""
    from modules import sd_unet  # pyright: ignore[reportMissingImports]

    if sd_unet.current_unet is not None:
        raise Refusal('Another UNet replaces that of the checkpoint: set the option "SD Unet" to "None".')
