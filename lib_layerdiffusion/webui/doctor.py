"""The doctor inside a WebUI: text for a bug report, by a button among the settings and by HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from ..doctor import Finding, examine_installation, examine_machine, examine_weights, find_version
from ..host import Reserving
from ..hosts import DetectedHost, find_capabilities, find_webui_version
from ..modes import FAMILIES, MODES
from ..refusal import Refusal
from ..weights import WeightStore
from .extension import Extension
from .status import find_host

logger = logging.getLogger(__name__)


def report(extension: Extension) -> str:
    """A line for each thing that was checked, in the form of the command `layerdiffusion doctor`; never raises."""
    sections: tuple[Callable[[], Iterator[Finding]], ...] = (
        examine_installation,
        _examine_webui,
        lambda: _examine_checkpoint(extension),
        examine_machine,
        lambda: _examine_weights(extension),
        lambda: _examine_last_run(extension),
    )
    return "\n".join(str(finding) for section in sections for finding in _attempt(section))


def _attempt(section: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from section()
    except Refusal as refusal:
        yield Finding("broken", str(refusal))
    except Exception as error:  # the rest of the report is needed all the more
        logger.warning("A part of the report failed", exc_info=True)
        yield Finding("broken", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _examine_webui() -> Iterator[Finding]:
    yield Finding("ok", f"WebUI {find_webui_version()}, gradio {find_version('gradio')}")
    found = find_capabilities()
    yield Finding("ok" if found else "absent", f"WebUI has {', '.join(found) or 'nothing that tells which it is'}")


def _examine_checkpoint(extension: Extension) -> Iterator[Finding]:
    host = extension.current_host()
    managed = ", which manages memory" if isinstance(host, Reserving) else ""
    yield Finding("ok", f"host: {host.name}{managed}")
    parts = (
        f"{name} in {str(weight.dtype).removeprefix('torch.')} on {weight.device}"
        for name, network in (("UNet", host.unet), ("VAE", host.vae))
        for weight in [next(network.parameters())]
    )
    family = FAMILIES.get(host.family, host.family)
    yield Finding("ok", f"checkpoint: {family}, {host.unet_channels} input channels, {', '.join(parts)}")
    store = extension.store()
    names = [mode.name for mode in MODES if mode.family == host.family and not host.why_not(mode.name, store)]
    yield Finding("ok" if names else "broken", f"layer modes: {', '.join(names) or 'none for this checkpoint'}")


def find_unfit(host: DetectedHost, store: WeightStore) -> dict[str, str]:
    """The files of modes that the loaded checkpoint can't do, and why not."""
    files = {mode.file: mode.name for mode in MODES if mode.family == host.family}
    return {file: reason for file, name in files.items() if (reason := host.why_not(name, store))}


def _examine_weights(extension: Extension) -> Iterator[Finding]:
    store, host = extension.store(), find_host(extension)
    yield from examine_weights(store, {} if host is None else find_unfit(host, store))


def _examine_last_run(extension: Extension) -> Iterator[Finding]:
    last = extension.last_run
    if last is None:
        yield Finding("absent", "no run with layers since the WebUI was started or reloaded")
        return
    state = "ok" if last.outcome.startswith("ok") else "broken"
    where = f", {last.host}" if last.host else ""
    yield Finding(state, f"last run {last.when:%Y-%m-%d %H:%M:%S}{where}: {last.plan}; {last.job}: {last.outcome}")
