"""LayerDiffusion: transparent images and layers from Stable Diffusion (arXiv 2402.17113)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_layerdiffusion.version import __version__

if TYPE_CHECKING:
    from lib_layerdiffusion.hosts.diffusers import layer_diffusion

__all__ = ["__version__", "layer_diffusion"]


def __getattr__(name: str) -> Any:
    """Import `layer_diffusion`, and with it torch and diffusers, only when it is asked for."""
    if name == "layer_diffusion":
        from lib_layerdiffusion.hosts.diffusers import layer_diffusion

        return layer_diffusion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
