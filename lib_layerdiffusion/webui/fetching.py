"""Fetches missing weight files before a generation, with the WebUI's own progress bar."""

from __future__ import annotations

from collections.abc import Iterable

from modules import shared

from ..refusal import Refusal
from ..weights import WeightStore
from ..weights.header import describe_bytes


def fetch(store: WeightStore, names: Iterable[str]) -> None:
    """Download what is missing; Refusal when a file can't be had or is damaged, or when the user interrupts."""
    for name in names:
        progress = Progress(name)
        try:
            store.fetch(name, progress)
        finally:
            progress.end()


class Progress:
    """Shows a download in the WebUI; nothing changes there as long as nothing is downloaded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = False

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are here. Refusal when the user interrupts."""
        state, self.shown = shared.state, True
        state.textinfo = f"Downloading {self.name} ({describe_bytes(done)} of {describe_bytes(total)})"
        state.sampling_step, state.sampling_steps = done * 100 // max(total, 1), 100
        if state.interrupted:
            raise Refusal(f"The download of {self.name} was interrupted: generate again to continue it.")

    def end(self) -> None:
        """Take the progress away."""
        if self.shown:
            shared.state.textinfo, shared.state.sampling_step, shared.state.sampling_steps = None, 0, 0
