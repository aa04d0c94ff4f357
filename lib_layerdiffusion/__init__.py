"""LayerDiffusion: transparent images and layers from Stable Diffusion (arXiv 2402.17113)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_layerdiffusion.version import __version__

if TYPE_CHECKING:
    from lib_layerdiffusion.hosts.diffusers import layer_diffusion
    from lib_layerdiffusion.hosts.diffusers_scene import layer_scene

__all__ = ["__version__", "layer_diffusion", "layer_scene"]


class _SharedPath(list[str]):
    """The folders of this package's modules: its own, then those that share its name and have no `__init__.py`.

    sd-forge-layerdiffuse has such a folder, with modules of other names than these. Python would find it only where
    nothing else has its name, so that extension couldn't be loaded in a WebUI next to this one.
    """

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        for root in sys.path:  # where WebUIs put an extension while they load its scripts; what is found is kept
            folder = Path(root, __name__)
            if str(folder) not in self and folder.is_dir() and not (folder / "__init__.py").exists():
                self.append(str(folder))
                yield str(folder)


__path__ = _SharedPath(__path__)


def __getattr__(name: str) -> Any:
    """Import `layer_diffusion` or `layer_scene`, and with it torch and diffusers, only when it is asked for."""
    match name:
        case "layer_diffusion":
            from lib_layerdiffusion.hosts.diffusers import layer_diffusion

            return layer_diffusion
        case "layer_scene":
            from lib_layerdiffusion.hosts.diffusers_scene import layer_scene

            return layer_scene
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
