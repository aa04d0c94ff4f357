"""The controls of the script for scenes, by the options' own descriptions, and how an infotext fills them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from ..scene import KEY, SCENE_FIELDS, Scene, read
from .labels import SCENE_LABELS, from_label, to_label
from .panel import IMAGE_HEIGHT, add_edges


def build(elem_id: Callable[[str], str]) -> dict[str, Any]:
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
    return {name: made[name] for name in SCENE_FIELDS}


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
