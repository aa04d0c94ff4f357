"""The extension as one object: where it lies, its weight files, its host, and what the last run came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, shared

from ..host import Host
from ..hosts import detect, load_model
from ..weights import WeightStore
from . import api, arguments, doctor, settings, xyz
from .generation import present
from .replacing import Replaced, replace_method


@dataclass(frozen=True)
class LastRun:
    """A report for the status line and `doctor`; nothing is decided by it."""

    when: datetime
    host: str
    plan: str  # one line: what of the panel matters most
    job: str  # one line: the rest, and what was asked of the WebUI
    outcome: str  # "ok" with figures, or the sentence that says why not


class Extension:
    """One instance for the life of the WebUI's scripts; a generation's own state is on `p`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_run: LastRun | None = None
        self._store: tuple[tuple[Any, ...], WeightStore] | None = None
        self._replaced: list[Replaced] = []

    def setting(self, name: str) -> Any:
        """The user's value of one of `settings.SETTINGS`, or its default."""
        default = settings.defaults()[name]
        return getattr(shared.opts, settings.PREFIX + name, default)

    def store(self, model: Any | None = None) -> WeightStore:
        """The weight files as flags and settings say; the same object, with what it loaded, until those change.

        Files for one checkpoint only (of `model`, else the loaded one) lie in a folder of its name, and go first.
        """
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

    def host(self, model: Any | None = None) -> Host:
        """The adapter for the loaded model; Refusal when this WebUI is unknown or too old, or has no model."""
        return detect()(shared.sd_model if model is None else model)

    def loaded_host(self) -> Host:
        """The adapter for the chosen checkpoint, which some WebUIs load with the first picture only."""
        return self.host(load_model())

    def report(self, host: str, plan: str, job: str, outcome: str) -> None:
        """Keep what a run came to."""
        self.last_run = LastRun(datetime.now(), host, plan, job, outcome)

    def register(self) -> None:
        """Sign up with the WebUI; all of it ends when the scripts are unloaded."""
        callbacks: dict[str, Callable[..., Any]] = {
            "on_ui_settings": lambda: settings.add(lambda: doctor.report(self)),
            "on_before_ui": xyz.add,
            "on_cfg_denoiser": lambda params: present(params.denoiser.p).follow_refiner(),
            "on_app_started": lambda demo, app: api.add_routes(demo, app, self),
            "on_script_unloaded": self.unload,
        }
        for name, callback in callbacks.items():
            getattr(script_callbacks, name)(callback)
        self._replaced += accept_objects()

    def unload(self) -> None:
        """Put back every function of the WebUI that was replaced."""
        while self._replaced:
            self._replaced.pop().restore()


def accept_objects() -> list[Replaced]:
    """Let an API request's `args` be one object: WebUIs index it from 0 on, so it is put into a list for them."""
    try:
        from modules.api.api import Api
    except ImportError:  # the WebUI runs without its API
        return []
    if not hasattr(Api, "init_script_args"):  # a WebUI that nobody knows yet
        return []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def init_script_args(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            for title, sent in (getattr(request, "alwayson_scripts", None) or {}).items():
                if title.casefold() == arguments.TITLE.casefold() and isinstance(sent.get("args"), dict):
                    sent["args"] = [sent["args"]]
            return original(self, request, *args, **kwargs)

        return init_script_args

    return [replace_method(Api, "init_script_args", wrap)]
