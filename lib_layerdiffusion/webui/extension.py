"""The extension's state: its weight files, the adapter for the WebUI's model, and what the last run came to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..hosts import DetectedHost, detect, load_model
from ..weights import WeightStore
from . import settings


@dataclass(frozen=True)
class LastRun:
    """A report for the status line and `doctor`; nothing is decided by it."""

    when: datetime
    mode: str  # its name
    host: str
    plan: str  # one line: what of the panel matters most
    job: str  # one line: the rest, and what was asked of the WebUI
    outcome: str  # "ok" with figures, or the sentence that says why not


class Extension:
    """One instance for the life of the WebUI's scripts; a generation's own state is on `p`.

    The WebUI's `modules` are imported when they are needed, so that whatever takes an Extension loads without a WebUI.
    """

    def __init__(self) -> None:
        self.last_run: LastRun | None = None
        self._store: tuple[tuple[Any, ...], WeightStore] | None = None

    def setting(self, name: str) -> Any:
        """The user's value of one of `settings.SETTINGS`, or its default."""
        from modules import shared

        default = settings.defaults()[name]
        return getattr(shared.opts, settings.PREFIX + name, default)

    def store(self, model: Any | None = None) -> WeightStore:
        """The weight files as flags and settings say; the same object, with what it loaded, until those change.

        Files for one checkpoint only (of `model`, else the loaded one) are in a folder of its name, searched first.
        """
        from modules import paths, shared

        own = getattr(shared.cmd_opts, "layerdiffusion_dir", None) or self.setting("folder")
        home = Path(paths.models_path) / "layer_model"
        offline = bool(getattr(shared.cmd_opts, "layerdiffusion_offline", False) or self.setting("offline"))
        folder = Path(own).expanduser() if own else home
        checkpoint = getattr(shared.sd_model if model is None else model, "sd_checkpoint_info", None)
        special = [path for path in (home / Path(checkpoint.filename).stem,) if path.is_dir()] if checkpoint else []
        folders, endpoint = (*special, folder, home), self.setting("endpoint") or None
        wanted = (folders, offline, endpoint)
        if self._store is None or self._store[0] != wanted:
            self._store = wanted, WeightStore([*dict.fromkeys(folders)], folder, offline, endpoint=endpoint)
        return self._store[1]

    def host_of(self, model: Any) -> DetectedHost:
        """The adapter for a model of the WebUI; Refusal when the WebUI is unknown or too old, or `model` is None."""
        return detect()(model)

    def current_host(self) -> DetectedHost:
        """The adapter for the model that is loaded now; Refusal when none is."""
        from modules import shared

        return self.host_of(shared.sd_model)

    def load_host(self) -> DetectedHost:
        """Load the chosen checkpoint where the WebUI waits with that for the first picture; then as `current_host`."""
        model = load_model()
        return self.current_host() if model is None else self.host_of(model)

    def report(self, mode: str, host: str, plan: str, job: str, outcome: str) -> None:
        """Keep what a run came to."""
        self.last_run = LastRun(datetime.now(), mode, host, plan, job, outcome)
