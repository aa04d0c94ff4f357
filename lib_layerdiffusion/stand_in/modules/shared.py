"""What all of a WebUI shares: settings, flags, the state of the current job, the loaded model.

Module globals, since that is what extensions find in a WebUI; `launch.start` sets them and `launch.stop` forgets them.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch

from lib_layerdiffusion.stand_in.host import StandInHost
from lib_layerdiffusion.stand_in.traits import FORGE, Traits

from .options import OptionInfo, Options, make_options, options_section
from .styles import StyleDatabase

__all__ = ["OptionInfo", "options_section"]  # extensions look for them here


class State:
    """The current job: how far it is, and whether the user wants it to end."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, job: str = "") -> None:
        self.job = job
        self.job_no = 0
        self.job_count = 0
        self.job_timestamp = datetime.now().strftime("%Y%m%d%H%M%S")
        self.processing_has_refined_job_count = False
        self.sampling_step = 0
        self.sampling_steps = 0
        self.skipped = False
        self.interrupted = False
        self.stopping_generation = False
        self.current_latent: Any = None
        self.current_image: Any = None
        self.textinfo: str | None = None
        self.time_start = time.time()

    def begin(self, job: str = "(unknown)") -> None:
        self.reset(job)
        self.job_count = -1

    def end(self) -> None:
        self.job = ""
        self.job_count = 0

    def nextjob(self) -> None:
        self.job_no += 1
        self.sampling_step = 0

    def skip(self) -> None:
        self.skipped = True

    def interrupt(self) -> None:
        self.interrupted = True

    def stop_generating(self) -> None:
        self.stopping_generation = True

    def dict(self) -> dict[str, Any]:
        names = ("skipped", "interrupted", "stopping_generation", "job", "job_count", "job_timestamp", "job_no")
        return {name: getattr(self, name) for name in (*names, "sampling_step", "sampling_steps")}


@dataclass(frozen=True)
class Upscaler:
    """An upscaler of pixels, for hires fix."""

    name: str
    data_path: str | None = None
    scale: float = 4.0


class TotalTqdm:
    """WebUIs show all steps of a job on the console; nothing here."""

    def clear(self) -> None: ...

    def updateTotal(self, total: int) -> None: ...


traits: Traits = FORGE
layerdiffusion_host: Callable[[Any], StandInHost] = StandInHost
opts: Options = make_options("outputs")
cmd_opts = Namespace(api=True, api_auth=None, freeze_settings=False, hide_ui_dir_config=False, no_prompt_history=True)
state = State()
sd_model: Any = None
demo: Any = None
device = torch.device("cpu")
prompt_styles = StyleDatabase()
total_tqdm = TotalTqdm()
sd_upscalers = [Upscaler("None"), Upscaler("Lanczos"), Upscaler("Nearest")]
latent_upscale_default_mode = "Latent"
latent_upscale_modes: dict[str, dict[str, Any]] = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
}
defaults: dict[str, Any] = {}  # of a request: size, steps and guidance that suit the model
examples: list[str] = []  # prompts that the model knows
