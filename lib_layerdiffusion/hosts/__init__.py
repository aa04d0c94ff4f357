"""One file per world that LayerDiffusion works in; each adapts it to the Host protocol and imports no other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ..host import Host
from ..refusal import Refusal

SUPPORTED = "AUTOMATIC1111, Forge, reForge and Forge Classic"
HOOK = "process_before_every_sampling"
OWN = "layerdiffusion_host"  # of `modules.shared`, in the page that ships with this project
# Modules by which WebUIs are told apart.
TELLING = (
    "backend.patcher.base",
    "ldm_patched.modules.model_patcher",
    "modules.sd_hijack",
    "modules_forge",
    "modules.scripts_manager",
)


def detect() -> Callable[[Any], Host]:
    """The adapter for the WebUI that runs here, to be called with its loaded model (`p.sd_model`).

    Decided by what is there, not by version numbers; names are for messages only. Refusal when there is none.
    """
    shared = sys.modules.get("modules.shared")
    if shared is None:
        raise Refusal("No WebUI runs here: use `lib_layerdiffusion.layer_diffusion` with a diffusers pipeline instead.")
    if own := getattr(shared, OWN, None):
        return own
    if _has("backend.patcher.base"):
        from .forge import ForgeHost

        return ForgeHost
    if _has("ldm_patched.modules.model_patcher"):
        from .ldm_patched import LdmPatchedHost

        return LdmPatchedHost
    if _has("modules.sd_hijack") and not _has("modules_forge") and not _has("modules.scripts_manager"):
        _refuse_old()
        from .a1111 import A1111Host

        return A1111Host
    raise Refusal(f"LayerDiffusion doesn't know this WebUI yet: it works in {SUPPORTED}.")


def load_model() -> Any | None:
    """The chosen checkpoint, in a WebUI that otherwise loads it with the first picture only; None in others."""
    load = getattr(sys.modules.get("modules.sd_models"), "forge_model_reload", None)
    return load()[0] if load else None


def find_capabilities() -> list[str]:
    """What there is of all that `detect` goes by, for a report."""
    tried = {name: _has(name) for name in TELLING}
    tried |= {HOOK: _has_hook(), OWN: hasattr(sys.modules.get("modules.shared"), OWN)}
    return [name for name, there in tried.items() if there]


def find_webui_version() -> str:
    """What the WebUI calls its version, and its commit, for a report."""
    launcher = sys.modules.get("modules.launch_utils")
    asked = (getattr(launcher, name, None) for name in ("git_tag", "commit_hash"))
    return " ".join(str(ask()) for ask in asked if ask) or "unknown"


def _refuse_old() -> None:
    """AUTOMATIC1111 lets scripts at the sampler since 1.10."""
    if not _has_hook():
        raise Refusal("This WebUI is too old for LayerDiffusion: update AUTOMATIC1111 to 1.10 or later.")


def _has_hook() -> bool:
    return hasattr(getattr(sys.modules.get("modules.scripts"), "Script", None), HOOK)


def _has(module: str) -> bool:
    """Whether the WebUI has a module; names like `backend` are generic, so a part of it is asked for."""
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ImportError, ValueError):
        return False
