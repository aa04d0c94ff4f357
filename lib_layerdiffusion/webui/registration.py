"""Registers the extension with the WebUI: its callbacks, its HTTP routes, and what its script accepts from the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules import script_callbacks

from ..options import check_text
from ..refusal import Refusal
from ..scene import TITLE as TITLE_OF_SCENES
from . import api, doctor, settings, xyz
from .arguments import PAGE_ORDER
from .extension import Extension
from .generation import Refused, current
from .panel import TITLE
from .replacing import Replaced, replace_method
from .results import keep_alpha_in_file, put_on_background
from .scene_script import complete_arguments
from .script import API_NAME

NAMES = (API_NAME, TITLE)  # under which `alwayson_scripts` may have the script's arguments, in any case

CURE = 'send {"LayerDiffuse": {"args": {"mode": "foreground"}}}'


def register(extension: Extension) -> None:
    """Register callbacks and accept API requests; everything ends when the WebUI unloads its scripts."""
    replaced = accept_requests()
    callbacks: dict[str, Callable[..., Any]] = {
        "on_ui_settings": lambda: settings.add(lambda: doctor.report(extension)),
        "on_before_ui": lambda: replaced.extend(xyz.add()),
        "on_cfg_denoiser": lambda params: current(params.denoiser.p).follow_refiner(),
        "on_before_image_saved": keep_alpha_in_file,
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
            try:
                prepare_request(request)
                prepare_scene(request, *args, **kwargs)
            except Refusal as refusal:
                raise Refused(refusal) from None
            return original(self, request, *args, **kwargs)

        return init_script_args

    return [replace_method(Api, "init_script_args", wrap)]


def prepare_request(request: Any) -> None:
    """Check what a request sends for layers, and bring it into the form that WebUIs read; Refusal when it is wrong."""
    scripts = getattr(request, "alwayson_scripts", None) or {}
    if not isinstance(scripts, dict):
        raise Refusal(f"alwayson_scripts must be an object, not {_name_kind(scripts)}: {CURE}.")
    if prepare_arguments(scripts):
        for name in ("prompt", "negative_prompt"):
            check_text(name, getattr(request, name, None) or "")


def prepare_scene(
    request: Any,
    defaults: Sequence[Any],
    chosen: Any = None,
    *_: Any,
    input_script_args: Mapping[int, Any] | None = None,
    **__: Any,
) -> None:
    """Complete the arguments of a request that chose the script for scenes; Refusal when they are wrong.

    input_script_args: what the request's infotext says, by place among all scripts' arguments.
    """
    if chosen is None or chosen.title() != TITLE_OF_SCENES:
        return
    places = range(chosen.args_from, chosen.args_to)
    values = [(input_script_args or {}).get(place, defaults[place]) for place in places]
    request.script_args = complete_arguments(request.script_args or [], values)


def prepare_arguments(scripts: dict[str, Any]) -> bool:
    """Bring the script's entry of `alwayson_scripts` into the form that WebUIs read: its title, and a list of `args`.

    WebUIs index `args` from 0 on, so one object is put into a list. False if there is no such entry.
    """
    used = [name for name in scripts if name.casefold() in {each.casefold() for each in NAMES}]
    if len(used) > 1:
        raise Refusal(f"alwayson_scripts has {' and '.join(used)}, which are the same script: send only one.")
    for name in used:
        scripts[API_NAME] = {"args": _read_args(name, scripts.pop(name))}
    return bool(used)


def _read_args(name: str, sent: Any) -> list[Any]:
    """The `args` of the script's entry as a list; Refusal when WebUIs would fail at it or leave a part of it out."""
    if not isinstance(sent, Mapping):
        raise Refusal(f"{name} must be an object with args, not {_name_kind(sent)}: {CURE}.")
    if others := [each for each in sent if each != "args"]:
        names = ", ".join(map(repr, others))
        raise Refusal(
            f"{name} has {names[:60]} outside args, where nothing reads it: put every option into args, {CURE}."
        )
    match sent.get("args"):
        case dict() as options:
            return [options]
        case list() as args if len(args) > len(PAGE_ORDER):
            raise Refusal(f"args has {len(args)} entries, and {len(PAGE_ORDER)} are read: {CURE}.")
        case list() as args if len(args) > 1 and any(isinstance(each, Mapping) for each in (args[0], args[1])):
            raise Refusal(f"args has {len(args)} entries and an object among them, and one object is read: {CURE}.")
        case list() as args:
            return args
        case other:
            raise Refusal(f"The args of {name} must be an object or a list, not {_name_kind(other)}: {CURE}.")


def _name_kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
