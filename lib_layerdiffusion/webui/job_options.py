"""The WebUI's options that must have other values while layers are made; afterwards they are as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared

# Other formats drop alpha. Stealth infotext makes it opaque and writes into it, even where its option was never set.
OVERRIDES = {
    "samples_format": "png",
    "stealth_pnginfo_option": "None",  # Forge
    "stealth_pnginfo_opt": "None",  # reForge
    "stealth_pnginfo": False,  # the extension of that name
}


def override(p: Any) -> dict[str, Any]:
    """Add our values to a job's `override_settings`; returns what `restore` needs, None for an unset option."""
    options = shared.opts
    known = {name: value for name, value in OVERRIDES.items() if name in options.data_labels}
    before = {name: options.data.get(name) for name in known}
    if not p.override_settings_restore_afterwards:
        before |= {name: p.override_settings[name] for name in known if name in p.override_settings}
    p.override_settings = {**p.override_settings, **known}
    return before


def restore(before: dict[str, Any]) -> None:
    """Put the options back: WebUIs do so only for a job that restores, and only for options that were set before."""
    for name, value in before.items():
        if value is None:
            shared.opts.data.pop(name, None)
        else:
            shared.opts.data[name] = value


@contextmanager
def applied() -> Iterator[None]:
    """Have our values while the block saves images outside of a job."""
    options = shared.opts
    known = {name: value for name, value in OVERRIDES.items() if name in options.data_labels}
    before = {name: options.data.get(name) for name in known}
    options.data |= known
    try:
        yield
    finally:
        restore(before)
