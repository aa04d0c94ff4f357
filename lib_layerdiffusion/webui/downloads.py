"""Fetches missing weight files before a generation, with the WebUI's own progress bar."""

from __future__ import annotations

from collections.abc import Iterable

from modules import shared

from ..refusal import Refusal
from ..weights import WeightStore
from ..weights.header import describe_bytes


def fetch(store: WeightStore, names: Iterable[str]) -> None:
    """Download what is nowhere; Refusal when a file can't be had, or when the user interrupts."""
    state = shared.state
    for name in names:
        if store.find(name) is not None:
            continue

        def show(done: int, total: int, name: str = name) -> None:
            state.textinfo = f"Downloading {name} ({describe_bytes(done)} of {describe_bytes(total)})"
            state.sampling_step, state.sampling_steps = done * 100 // max(total, 1), 100
            if state.interrupted:
                raise Refusal(f"The download of {name} was interrupted: generate again, which goes on with it.")

        try:
            store.fetch(name, show)
        finally:
            state.textinfo, state.sampling_step, state.sampling_steps = None, 0, 0
