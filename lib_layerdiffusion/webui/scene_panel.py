"""The controls of the script for scenes, by the options' own descriptions, and how an infotext fills them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gradio as gr

from ..scene import KEY, SCENE_FIELDS, Scene, read
from .gradio_compat import with_labels
from .panel import IMAGE_HEIGHT, RESIZE_LABELS, VIEW_LABELS

FIRST_LABELS = (("Automatic", "auto"), ("Background", "background"), ("Foreground", "foreground"))
OUTPUT_LABELS = (
    ("Layers", "layers"),
    ("Recomposite", "recomposite"),
    ("Blends", "blend"),
    ("Photoshop file (.psd)", "psd"),
    ("OpenRaster file (.ora)", "ora"),
)


def build(elem_id: Callable[[str], str]) -> dict[str, Any]:
    """Make the controls in gradio's current block, by the option that each one sets and in the options' order."""
    made: dict[str, Any] = {}

    def add(name: str, maker: Callable[..., Any], **settings: Any) -> None:
        made[name] = maker(label=SCENE_FIELDS[name].metadata["label"], elem_id=elem_id(name), **settings)

    def explain(name: str) -> str:
        return SCENE_FIELDS[name].metadata["help"]

    add("background", gr.Textbox, value="", lines=1, placeholder=explain("background"))
    add("foregrounds", gr.Textbox, value="", lines=3, placeholder=explain("foregrounds"))
    with gr.Row():
        for name in ("background_image", "foreground_image"):
            # Without the argument for sources, which gradio 3 and 4 name differently.
            add(name, gr.Image, type="pil", image_mode="RGBA", height=IMAGE_HEIGHT)
    add("first", partial(with_labels, gr.Radio, FIRST_LABELS), value=Scene.first, info=explain("first"))
    add("match_blend", gr.Checkbox, value=Scene.match_blend, info=explain("match_blend"))
    weight = SCENE_FIELDS["weight"]
    limits = {limit: weight.metadata[limit] for limit in ("minimum", "maximum", "step")}
    add("weight", gr.Slider, value=weight.default, **limits)
    add("views", partial(with_labels, gr.Radio, VIEW_LABELS), value=SCENE_FIELDS["views"].default)
    add("resize_mode", partial(with_labels, gr.Radio, RESIZE_LABELS), value=SCENE_FIELDS["resize_mode"].default)
    outputs = partial(with_labels, gr.CheckboxGroup, OUTPUT_LABELS)
    add("outputs", outputs, value=list(Scene.outputs), info=explain("outputs"))
    return {name: made[name] for name in SCENE_FIELDS}


def paste(name: str) -> Callable[[Mapping[str, str]], Any]:
    """The function that finds a control's value in a parsed infotext; None, which changes nothing, in another's."""

    def find(params: Mapping[str, str]) -> Any:
        value = read(params)[name] if KEY in params else None
        return "\n".join(value) if name == "foregrounds" and value is not None else value

    return find
