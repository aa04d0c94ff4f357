"""The script for scenes: its status, its controls by the options' own descriptions, how an infotext fills them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from ..scene import KEY, SCENE_FIELDS, Scene, read
from . import status
from .extension import Extension
from .gradio_compat import QUIET, careful, tool_button
from .labels import SCENE_LABELS, from_label, to_label
from .panel import IMAGE_HEIGHT, REFRESH, add_edges

# The options that decide on a scene's passes.
DECISIVE = ("background", "foregrounds", "background_image", "foreground_image", "first", "controlnet_units")


def build(elem_id: Callable[[str], str], extension: Extension) -> dict[str, Any]:
    """Make the controls in gradio's current block, by the option that each one sets and in the options' order."""
    made: dict[str, Any] = {}

    def add(name: str, maker: Callable[..., Any], **settings: Any) -> None:
        made[name] = maker(label=SCENE_FIELDS[name].metadata["label"], elem_id=elem_id(name), **settings)

    def choose(name: str, **settings: Any) -> None:
        add(
            name,
            gr.Radio,
            choices=[*SCENE_LABELS[name].values()],
            value=show(name, SCENE_FIELDS[name].default),
            **settings,
        )

    def explain(name: str) -> str:
        return SCENE_FIELDS[name].metadata["help"]

    with gr.Row(elem_id=elem_id("status_row")):
        report = gr.HTML(status.hint(), elem_id=elem_id("status"))
        refresh = tool_button("\u21bb", REFRESH, elem_id("refresh"))
    add("background", gr.Textbox, value="", lines=1, placeholder=explain("background"))
    add("foregrounds", gr.Textbox, value="", lines=3, placeholder=explain("foregrounds"))
    with gr.Row():
        for name in ("background_image", "foreground_image"):
            # Without the argument for sources, which gradio 3 and 4 name differently.
            add(name, gr.Image, type="pil", image_mode="RGBA", height=IMAGE_HEIGHT)
    choose("first", info=explain("first"))
    add("match_blend", gr.Checkbox, value=Scene.match_blend, info=explain("match_blend"))
    weight = SCENE_FIELDS["weight"]
    limits = {limit: weight.metadata[limit] for limit in ("minimum", "maximum", "step")}
    add("weight", gr.Slider, value=weight.default, **limits)
    choose("views")
    choose("resize_mode")
    labels = [*SCENE_LABELS["outputs"].values()]
    add("outputs", gr.CheckboxGroup, choices=labels, value=show("outputs", Scene.outputs), info=explain("outputs"))
    made["outputs"].do_not_save_to_config = True  # WebUIs keep no list among their defaults
    add("controlnet_units", gr.Textbox, value="", lines=2, placeholder=explain("controlnet_units"))
    add_edges(add, elem_id)
    _connect(made, refresh, report, extension)
    return {name: made[name] for name in SCENE_FIELDS}


def _connect(made: Mapping[str, Any], refresh: Any, report: Any, extension: Extension) -> None:
    """Show the status anew when the page asks for it, and when the passes may have become others."""

    def look(*shown: Any) -> str:
        values = zip(DECISIVE, shown, strict=True)
        return status.describe_scene(extension, {name: understand(name, value) for name, value in values})

    changed = [made[name].change for name in ("first", "background_image", "foreground_image")]
    left = [made[name].blur for name in ("foregrounds", "controlnet_units")]
    for event in (refresh.click, *changed, *left):
        event(careful(look, 1), [made[name] for name in DECISIVE], [report], **QUIET)


def show(name: str, value: Any) -> Any:
    """What the page shows for an option's value: labels, and the foregrounds as one text."""
    if name == "foregrounds":
        return "\n".join(value)
    if name == "outputs":
        return [to_label(name, each, SCENE_LABELS) for each in value]
    return to_label(name, value, SCENE_LABELS)


def understand(name: str, shown: Any) -> Any:
    """The option's value for what the page shows; anything else as it is."""
    if isinstance(shown, list | tuple):
        return [from_label(name, each, SCENE_LABELS) for each in shown]
    return from_label(name, shown, SCENE_LABELS)


def paste(name: str) -> Callable[[Mapping[str, str]], Any]:
    """The function that finds a control's value in a parsed infotext; None, which changes nothing, in another's."""

    def find(params: Mapping[str, str]) -> Any:
        value = read(params)[name] if KEY in params else None
        return None if value is None else show(name, value)

    return find
