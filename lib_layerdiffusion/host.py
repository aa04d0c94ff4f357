"""Host: the few verbs that every world (a WebUI, diffusers) must offer so that a Session can work in it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lib_layerdiffusion.modes import Family

if TYPE_CHECKING:  # the command line's help needs this package without torch
    import torch
    from torch import Tensor, nn


class Host(Protocol):
    """What a Session asks of the world that samples.

    Sampler space = VAE space x `scaling_factor`. Adapters are small: what changes the live model (side paths, shared
    attention, posterior) is the same everywhere and works on `unet` and `vae` as they are.
    """

    @property
    def name(self) -> str:
        """What messages call this host, e.g. "StableDiffusionPipeline"."""
        ...

    @property
    def family(self) -> Family:
        """Base-model family of the loaded checkpoint."""
        ...

    @property
    def unet(self) -> nn.Module:
        """The live UNet that the sampler calls as `unet(sample, timestep, ...)`."""
        ...

    @property
    def unet_channels(self) -> int:
        """Input channels of the UNet's first convolution: 4, or 9 for an inpainting checkpoint."""
        ...

    @property
    def vae(self) -> nn.Module:
        """The live first-stage model; its `quant_conv` yields the posterior's moments."""
        ...

    @property
    def scaling_factor(self) -> float:
        """Factor from VAE space to sampler space."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the host computes."""
        ...

    @property
    def precision(self) -> torch.dtype:
        """What the UNet computes in, whatever its weights are stored in."""
        ...

    def parameter_name(self, ldm_name: str) -> str | None:
        """Name in `unet` of a parameter or module of the LDM layout; None when the layout has no such name."""
        ...

    def percent_to_timestep(self, fraction: float) -> float:
        """Timestep, as `unet` receives it, after `fraction` (0..1) of the noise schedule from noise to image."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode [B, 3, H, W], -1..1 to the posterior's mean [B, 4, H/8, W/8] in VAE space."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 4, h, w] in VAE space to [B, 3, 8h, 8w], 0..1."""
        ...

    def on_device(self, network: nn.Module, room: int = 0) -> AbstractContextManager[torch.device]:
        """Make room for one of our networks and hold it on the compute device; yields that device.

        `room`: bytes that the network computes in, where that is known.
        """
        ...


@runtime_checkable
class Reserving(Protocol):
    """A Host that manages the device's memory and can keep some of it free; a verb that a Host may lack."""

    def reserve(self, size: int) -> AbstractContextManager[None]:
        """Keep `size` bytes of the compute device free for our networks during the sampling in the block."""
        ...


@runtime_checkable
class Telling(Protocol):
    """A Host that knows its linear layers; of other hosts' only torch's own are joined with what is added to them."""

    def is_plain_linear(self, layer: nn.Module) -> bool:
        """Whether a linear layer computes the product with its weight and nothing else, in its present state.

        What it writes into the weight when it is called counts as the weight's.
        """
        ...


@runtime_checkable
class Measuring(Protocol):
    """A Host that knows how much memory of its device is free; of other hosts' devices torch is asked."""

    def free_memory(self) -> int:
        """Bytes of the compute device that our networks may take now."""
        ...
