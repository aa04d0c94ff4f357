"""Registers the extension with the WebUI: its callbacks, its HTTP routes, and what its script accepts from the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import script_callbacks

from ..refusal import Refusal
from . import api, doctor, settings, xyz
from .extension import Extension
from .generation import Refused, current
from .panel import TITLE
from .replacing import Replaced, replace_method
from .results import put_on_background
from .script import API_NAME

NAMES = (API_NAME, TITLE)  # under which `alwayson_scripts` may have the script's arguments, in any case


def register(extension: Extension) -> None:
    """Register callbacks and accept API requests; everything ends when the WebUI unloads its scripts."""
    replaced = accept_requests()
    callbacks: dict[str, Callable[..., Any]] = {
        "on_ui_settings": lambda: settings.add(lambda: doctor.report(extension)),
        "on_before_ui": xyz.add,
        "on_cfg_denoiser": lambda params: current(params.denoiser.p).follow_refiner(),
        "on_image_grid": lambda params: put_on_grid(params, extension),
        "on_app_started": lambda demo, app: api.add_routes(demo, app, extension),
        "on_script_unloaded": lambda: unregister(replaced),
    }
    for name, callback in callbacks.items():
        getattr(script_callbacks, name)(callback)


def unregister(replaced: list[Replaced]) -> None:
    """Put back every function of the WebUI that was replaced; the callbacks are dropped by the WebUI itself."""
    while replaced:
        replaced.pop().restore()


def put_on_grid(params: Any, extension: Extension) -> None:
    """Show transparent pictures on a grid over the user's background; called by the WebUI before it draws one."""
    background = extension.setting("grid_background")
    params.imgs = [put_on_background(image, background) for image in params.imgs]


def accept_requests() -> list[Replaced]:
    """Let an API request name the script in both ways, and let its `args` be one object as well as a list."""
    try:
        from modules.api.api import Api
    except ImportError:  # the WebUI runs without its API
        return []
    if not hasattr(Api, "init_script_args"):  # an unknown WebUI
        return []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def init_script_args(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            prepare_arguments(getattr(request, "alwayson_scripts", None) or {})
            return original(self, request, *args, **kwargs)

        return init_script_args

    return [replace_method(Api, "init_script_args", wrap)]


def prepare_arguments(scripts: dict[str, Any]) -> None:
    """Bring the script's entry of `alwayson_scripts` into the form that WebUIs read: its title, and a list of `args`.

    WebUIs index `args` from 0 on, so one object is put into a list.
    """
    used = [name for name in scripts if name.casefold() in {each.casefold() for each in NAMES}]
    if len(used) > 1:
        raise Refused(Refusal(f"alwayson_scripts has {' and '.join(used)}, which are the same script: send only one."))
    for name in used:
        sent = scripts[API_NAME] = scripts.pop(name)
        if isinstance(sent.get("args"), dict):
            sent["args"] = [sent["args"]]
