"""The panel in txt2img and img2img: widgets by the options' own descriptions, of which only those needed are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from .. import infotext
from ..modes import FAMILIES, MODE_NAMES, MODES, ROLES, Family, any_row
from ..options import FIELDS, RESIZE_MODES, LayerOptions
from . import status
from .arguments import PAGE_ORDER
from .extension import Extension
from .gradio_compat import QUIET, careful, switch_accordion, tool_button, update_choices, with_labels
from .inputs import IMAGES, OPTIONAL, PROMPTS, wanted

TITLE = "LayerDiffusion"
ADVANCED = "Advanced"
REFRESH = "Refresh status"
IMAGE_HEIGHT = 240  # pixels

# Modes that are one step of several, or a variant for experts.
EXPERT_MODES = (
    "foreground_to_blend",
    "foreground_blend_to_background",
    "background_to_blend",
    "background_blend_to_foreground",
    "foreground_conv",
)
# There is room for few words next to a slider.
SLIDER_HELP = {
    "weight": "0: off, 1: as trained",
    "stop_at": "1: until the last step",
    "start_at": "0: from the first step",
}
VIEW_LABELS: tuple[tuple[str, Any], ...] = (("1 (fastest)", 1), ("2", 2), ("4", 4), ("8 (best)", 8))
RESIZE_LABELS: tuple[tuple[str, Any], ...] = tuple((title, name) for name, title in RESIZE_MODES.items())
OUTPUT_LABELS: tuple[tuple[str, Any], ...] = (
    ("Transparent image", "rgba"),
    ("Background", "background"),
    ("Blend", "blend"),
    ("Checkerboard preview", "checker"),
    ("Alpha mask", "alpha"),
    ("Recomposite", "recomposite"),
    ("Photoshop file (.psd)", "psd"),
    ("OpenRaster file (.ora)", "ora"),
)


@dataclass(frozen=True)
class Panel:
    """What a WebUI's Script object passes on."""

    controls: list[Any]  # in arguments.PAGE_ORDER; the first is the switch
    infotext_fields: list[tuple[Any, Any]]  # (component, function of the parsed infotext)
    paste_field_names: list[str]


class PasteTarget(str):
    """What fills a control, as WebUIs ask for it: by its name for "Send to", and as a function for an infotext."""

    _function: Callable[[dict[str, str]], Any]

    def __new__(cls, name: str, function: Callable[[dict[str, str]], Any]) -> PasteTarget:
        made = super().__new__(cls, name)
        made._function = function
        return made

    def __call__(self, params: dict[str, str]) -> Any:
        return self._function(params)


def build(is_img2img: bool, elem_id: Callable[[str], str], extension: Extension) -> Panel:
    """Make the panel in gradio's current block; nothing else is touched or looked up."""
    made: dict[str, Any] = {}
    shown = wanted(LayerOptions.mode)

    def add(name: str, maker: Callable[..., Any], **settings: Any) -> None:
        visible = name in shown or name not in OPTIONAL
        made[name] = maker(label=FIELDS[name].metadata["label"], visible=visible, elem_id=elem_id(name), **settings)

    with switch_accordion(TITLE, elem_id("enabled")) as made["enabled"]:
        add("mode", partial(with_labels, gr.Dropdown, list_modes()), value=LayerOptions.mode, info=_help("mode"))
        with gr.Row():
            report = gr.HTML(status.hint(), elem_id=elem_id("status"))
            refresh = tool_button("\u21bb", REFRESH, elem_id("refresh"))
        with gr.Row():
            for name in IMAGES:
                # Without the argument for sources, which gradio 3 and 4 name differently.
                add(name, gr.Image, type="pil", image_mode="RGBA", height=IMAGE_HEIGHT)
        for name in PROMPTS:
            add(name, gr.Textbox, value="", lines=1, placeholder=_help(name))
        with gr.Row():
            add("weight", gr.Slider, **_range("weight"))
            add("stop_at", gr.Slider, **_range("stop_at"))
        with gr.Accordion(ADVANCED, open=False, elem_id=elem_id("advanced")):
            add("start_at", gr.Slider, **_range("start_at"))
            add("resize_mode", partial(with_labels, gr.Radio, RESIZE_LABELS), value=LayerOptions.resize_mode)
            add("views", partial(with_labels, gr.Radio, VIEW_LABELS), value=LayerOptions.views, info=_help("views"))
            outputs = partial(with_labels, gr.CheckboxGroup, OUTPUT_LABELS)
            add("outputs", outputs, value=list(LayerOptions.outputs), info=_help("outputs"))
        made["output_origin"] = gr.Checkbox(
            False, label="Output origin", visible=False, elem_id=elem_id("output_origin")
        )

        made["pasted"] = gr.Checkbox(False, label="Pasted", visible=False, elem_id=elem_id("pasted"))

    _connect(made, refresh, report, extension, is_img2img)
    return Panel(
        controls=[made[name] for name in PAGE_ORDER],
        infotext_fields=[
            *((made[name], PasteTarget(infotext.PREFIX + name, _paste(name))) for name in infotext.OPTIONS),
            (made["pasted"], lambda params: infotext.read(params)["enabled"]),
        ],
        paste_field_names=[infotext.PREFIX + name for name in infotext.OPTIONS],
    )


def list_modes(family: str | None = None) -> list[tuple[str, str]]:
    """The modes as (label, name): what the checkpoint's family offers first, ordinary ones before expert ones.

    All are always there, and under the same labels, so that no order makes a chosen one invalid.
    """

    def rank(name: str) -> tuple[bool, int]:
        elsewhere = family is not None and family not in _families(name)
        return elsewhere, EXPERT_MODES.index(name) if name in EXPERT_MODES else -1

    return [(_label(name), name) for name in sorted(MODE_NAMES, key=rank)]


def _connect(made: dict[str, Any], refresh: Any, report: Any, extension: Extension, is_img2img: bool) -> None:
    mode, optional = made["mode"], [made[name] for name in OPTIONAL]

    def follow(name: str) -> list[Any]:
        needed = wanted(name)
        described = status.describe(extension, name, is_img2img)
        return [described, *(gr.update(visible=option in needed) for option in OPTIONAL)]

    def refresh_all(name: str) -> list[Any]:
        return [*follow(name), update_choices(list_modes(status.find_family(extension)), name)]

    def suggest(name: str) -> float:
        return any_row(name).suggested_stop_at

    outputs = [report, *optional]
    mode.change(careful(follow, len(outputs)), [mode], outputs, **QUIET)
    # Only when the user picks a mode: pasted and loaded values bring their own.
    mode.input(careful(suggest, 1), [mode], [made["stop_at"]], **QUIET)
    for event in (made["enabled"].change, refresh.click):
        event(careful(refresh_all, len(outputs) + 1), [mode], [*outputs, mode], **QUIET)


def _paste(name: str) -> Callable[[dict[str, str]], Any]:
    """The function that finds a control's value in a parsed infotext.

    Plain values, for the WebUIs' API can't read all updates; but None would leave an image as it is.
    """
    if name in IMAGES:
        role = ROLES[IMAGES.index(name)]
        return lambda params: gr.update() if infotext.gives_image(params, role) else gr.update(value=None)
    return lambda params: infotext.read(params)[name]


def _families(name: str) -> list[Family]:
    return [mode.family for mode in MODES if mode.name == name]


def _label(name: str) -> str:
    families = _families(name)
    text = any_row(name).label
    note = f" \u00b7 {', '.join(FAMILIES[family] for family in families)}" if len(families) < len(FAMILIES) else ""
    return f"{ADVANCED}: {text}{note}" if name in EXPERT_MODES else f"{text}{note}"


def _help(name: str) -> str:
    return FIELDS[name].metadata["help"]


def _range(name: str) -> dict[str, Any]:
    """A slider's settings."""
    about = FIELDS[name].metadata
    limits = {limit: about[limit] for limit in ("minimum", "maximum", "step")}
    return {"value": FIELDS[name].default, "info": SLIDER_HELP[name], **limits}
