"""The script "LayerDiffusion scene" in the WebUI's list of scripts: its controls, and what API clients send instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from modules import scripts

from ..refusal import Refusal
from ..scene import KEY, SCENE_FIELDS, TITLE, Scene, read
from . import scene_job
from .extension import Extension
from .generation import Refused
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
CURE = 'send one object, such as {"background": "a table", "foregrounds": ["a red apple", "a glass"]}'


def make_scene_script(extension: Extension) -> type[scripts.Script]:
    """The Script class for the WebUI to find, bound to the extension."""

    class SceneScript(scripts.Script):
        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> bool:
            return not is_img2img

        def ui(self, is_img2img: bool) -> list[Any]:
            made = build(self.elem_id)
            self.infotext_fields = [(control, _paste(name)) for name, control in made.items()]
            return [*made.values()]

        def run(self, p: Any, *args: Any) -> Any:
            try:
                scene = read_scene(args)
            except Refusal as refusal:
                raise Refused(refusal) from None
            return scene_job.run(extension, p, scene)

    return SceneScript


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


def read_scene(args: Sequence[Any]) -> Scene:
    """A scene from the page's values in their order, or from the one object that an API client sent."""
    if args and isinstance(args[0], Mapping):
        return Scene.from_dict(args[0])
    return Scene.from_dict(dict(zip(SCENE_FIELDS, args, strict=False)))


def complete_arguments(sent: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """What an API client sent as `script_args`, as long as the page's `values`, which hold where it is silent.

    WebUIs put a short list into the place of the whole one, and then the next script's values follow it.
    """
    if len(sent) > len(values):
        raise Refusal(f"script_args has {len(sent)} entries, and {len(values)} are read: {CURE}.")
    if any(isinstance(each, Mapping) for each in sent[:1]) and len(sent) > 1:
        raise Refusal(f"script_args has an object and other entries, and one object is read: {CURE}.")
    return [*sent, *values[len(sent) :]]


def _paste(name: str) -> Callable[[Mapping[str, str]], Any]:
    """The function that finds a control's value in a parsed infotext; None, which changes nothing, in another's."""

    def find(params: Mapping[str, str]) -> Any:
        value = read(params)[name] if KEY in params else None
        return "\n".join(value) if name == "foregrounds" and value is not None else value

    return find
