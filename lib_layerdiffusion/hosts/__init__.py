"""One file for each host that LayerDiffusion works in; each adapts it to the Host protocol and imports no other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from ..host import Host
from ..refusal import Refusal

if TYPE_CHECKING:  # it needs torch, which the command line's `--help` is to do without
    from ..weights import WeightStore

SUPPORTED = "AUTOMATIC1111, Forge, Forge Neo, reForge and Forge Classic"
HOOK = "process_before_every_sampling"
STAND_IN = "layerdiffusion_host"  # of `modules.shared`, in the stand-in WebUI that is part of this project
# Modules by which WebUIs are told apart.
TELLING = (
    "backend.patcher.base",
    "ldm_patched.modules.model_patcher",
    "modules.sd_hijack",
    "modules_forge",
    "modules.scripts_manager",
)


class DetectedHost(Host, Protocol):
    """What `detect` gives: a Host whose user chooses the checkpoint, which may be one that can't do every mode."""

    def why_not(self, mode: str, store: WeightStore) -> str:
        """Why the loaded checkpoint can't do a mode of its family, known before any download, in one sentence, or "".

        `mode`: a name in `modes.MODES`. `store`: where its file is looked for.
        """
        ...


def detect() -> Callable[[Any], DetectedHost]:
    """The adapter for the WebUI that runs here, to be called with its loaded model (`p.sd_model`).

    It goes by what is there, not by version numbers; names are for messages only. Refusal in an unknown WebUI.
    """
    shared = sys.modules.get("modules.shared")
    if shared is None:
        raise Refusal("No WebUI runs here: use `lib_layerdiffusion.layer_diffusion` with a diffusers pipeline instead.")
    if adapter := getattr(shared, STAND_IN, None):
        return adapter
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
    """Load the chosen checkpoint in a WebUI that otherwise waits with that for the first picture; None in others."""
    load = getattr(sys.modules.get("modules.sd_models"), "forge_model_reload", None)
    return load()[0] if load else None


def find_capabilities() -> list[str]:
    """Which of the things that `detect` looks for are there, for a report."""
    tried = {name: _has(name) for name in TELLING}
    tried |= {HOOK: _has_hook(), STAND_IN: hasattr(sys.modules.get("modules.shared"), STAND_IN)}
    return [name for name, found in tried.items() if found]


def find_webui_version() -> str:
    """What the WebUI calls its version, and its commit, for a report."""
    launcher = sys.modules.get("modules.launch_utils")
    asked = (getattr(launcher, name, None) for name in ("git_tag", "commit_hash"))
    return " ".join(str(ask()) for ask in asked if ask) or "unknown"


def _refuse_old() -> None:
    """AUTOMATIC1111 calls scripts before sampling since 1.10."""
    if not _has_hook():
        raise Refusal("This WebUI is too old for LayerDiffusion: update AUTOMATIC1111 to 1.10 or later.")


def _has_hook() -> bool:
    return hasattr(getattr(sys.modules.get("modules.scripts"), "Script", None), HOOK)


def _has(module: str) -> bool:
    """Whether the WebUI has a module; names like `backend` are generic, so callers ask for a part of it."""
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ImportError, ValueError):
        return False
