"""Functions of extensions that the WebUI calls at certain moments, apart from the hooks of their scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import errors

Callback = Callable[..., Any]
callback_map: dict[str, list[Callback]] = {}


@dataclass
class ImageSaveParams:
    """An image that is about to be saved; callbacks may change it."""

    image: Any
    p: Any
    filename: str
    pnginfo: dict[str, Any]


@dataclass
class ImageGridLoopParams:
    """The images of a grid that is about to be drawn; callbacks may replace them."""

    imgs: Any
    cols: int
    rows: int


@dataclass
class CFGDenoiserParams:
    """What the UNet is about to be given."""

    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


def call(moment: str, *args: Any) -> None:
    """Call all callbacks for a moment; what one raises is logged."""
    for callback in callback_map.get(moment, []):
        errors.attempt(f"executing callback {moment}", callback, *args)


def clear_callbacks() -> None:
    callback_map.clear()


def register(moment: str) -> Callable[..., None]:
    def on(callback: Callback, *, name: str | None = None) -> None:
        callback_map.setdefault(moment, []).append(callback)

    return on


on_app_started = register("app_started")  # (demo, app)
on_model_loaded = register("model_loaded")  # (sd_model)
on_ui_tabs = register("ui_tabs")
on_ui_settings = register("ui_settings")
on_before_ui = register("before_ui")
on_before_image_saved = register("before_image_saved")  # (ImageSaveParams)
on_image_saved = register("image_saved")  # (ImageSaveParams)
on_cfg_denoiser = register("cfg_denoiser")  # (CFGDenoiserParams)
on_image_grid = register("image_grid")  # (ImageGridLoopParams)
on_infotext_pasted = register("infotext_pasted")  # (infotext, params)
on_script_unloaded = register("script_unloaded")
