"""The panel in txt2img and img2img: widgets by the options' own descriptions, of which only those needed are shown."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .. import infotext
from ..modes import MODE_NAMES, MODES, any_row
from ..options import FIELDS, LayerOptions
from ..outputs import list_outputs
from . import status
from .arguments import OUTPUT_BOXES, OUTPUT_PREFIX, PAGE_ORDER
from .extension import Extension
from .gradio_compat import QUIET, careful, switch_accordion, tool_button
from .inputs import IMAGES, OPTIONAL, PROMPTS, wanted
from .labels import ADVANCED, EDGES, EXPERT_MODES, LABELS, OUTPUT_LABELS, WHOLE_JOB, from_label, to_label

CHANGING = (*OPTIONAL, *OUTPUT_BOXES)  # what is shown only where the mode uses it
TITLE = "LayerDiffusion"
REFRESH = "Refresh status"
IMAGE_HEIGHT = 240  # pixels

# There is room for few words next to a slider.
SLIDER_HELP = {
    "weight": "0: off, 1: as trained",
    "stop_at": "1: until the last step",
    "start_at": "0: from the first step",
}


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
    shown = _list_shown(LayerOptions.mode)

    def add(name: str, component: type[Any], **settings: Any) -> None:
        visible = name in shown or name not in CHANGING
        named = {"label": FIELDS[name].metadata["label"]} if name in FIELDS else {}
        made[name] = component(**named | settings, visible=visible, elem_id=elem_id(name))

    with switch_accordion(TITLE, elem_id("enabled")) as made["enabled"]:
        with gr.Row(elem_id=elem_id("mode_row")):
            add("mode", gr.Dropdown, choices=list_modes(), **_start("mode"), info=_help("mode"))
            refresh = tool_button("\u21bb", REFRESH, elem_id("refresh"))
        report = gr.HTML(status.hint(), elem_id=elem_id("status"))
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
            add("resize_mode", gr.Radio, choices=list(LABELS["resize_mode"].values()), **_start("resize_mode"))
            add("views", gr.Radio, choices=list(LABELS["views"].values()), **_start("views"), info=_help("views"))
            about = FIELDS["outputs"].metadata
            gr.HTML(
                f'<p class="layerdiffusion-heading">{about["label"]}</p>'
                f'<p class="layerdiffusion-help">{about["help"]}</p>'
            )
            with gr.Row(elem_id=elem_id("outputs")):
                for output, label in OUTPUT_LABELS.items():
                    ticked = output in LayerOptions.outputs
                    add(OUTPUT_PREFIX + output, gr.Checkbox, label=label, value=ticked, container=False, min_width=80)
            add("preview_image", gr.Image, type="pil", image_mode="RGBA", height=IMAGE_HEIGHT)
        with gr.Accordion(WHOLE_JOB, open=False, elem_id=elem_id("whole_job")):
            _add_whole_job(add)
        add_edges(add, elem_id)
        # Nothing for a user to see or to keep among the WebUI's defaults.
        for name in ("output_origin", "pasted"):
            made[name] = gr.Checkbox(False, label=name, visible=False, elem_id=elem_id(name))
            made[name].do_not_save_to_config = True

    _connect(made, refresh, report, extension, is_img2img)
    fills = {name: _paste(name) for name in infotext.OPTIONS if name in made}
    fills |= {name: _paste_output(name.removeprefix(OUTPUT_PREFIX)) for name in OUTPUT_BOXES}
    return Panel(
        controls=[made[name] for name in PAGE_ORDER],
        infotext_fields=[
            *((made[name], PasteTarget(infotext.PREFIX + name, fill)) for name, fill in fills.items()),
            (made["pasted"], lambda params: infotext.read(params)["enabled"]),
        ],
        paste_field_names=[infotext.PREFIX + name for name in fills],
    )


def add_edges(add: Callable[..., None], elem_id: Callable[[str], str]) -> None:
    """Add the options of edges, folded; `add(name, component, **settings)` makes one of them."""
    with gr.Accordion(EDGES, open=False, elem_id=elem_id("edges")):
        add("defringe", gr.Textbox, value="", lines=1, placeholder=_help("defringe"))
        for pair in (("black_point", "white_point"), ("gamma", "threshold"), ("choke", "feather")):
            with gr.Row():
                for name in pair:
                    add(name, gr.Slider, **_range(name))


def list_modes(family: str | None = None, unavailable: Container[str] = ()) -> list[str]:
    """The modes' labels: what the checkpoint can do first, ordinary modes before expert ones.

    All are always there, and under the same labels, so that no order makes a chosen one invalid.
    """

    def rank(name: str) -> tuple[bool, bool, int]:
        elsewhere = family is not None and all(mode.family != family for mode in MODES if mode.name == name)
        return elsewhere, name in unavailable, EXPERT_MODES.index(name) if name in EXPERT_MODES else -1

    return [LABELS["mode"][name] for name in sorted(MODE_NAMES, key=rank)]


def _add_whole_job(add: Callable[..., None]) -> None:
    """The controls for what is made of all pictures: an animation, a sheet, and how the sheet is."""
    with gr.Row():
        for name in ("atlas", "animation"):
            add(name, gr.Checkbox, **_start(name), info=_help(name))
    with gr.Row():
        for name in ("animation_format", "atlas_form"):
            add(name, gr.Radio, choices=list(LABELS[name].values()), **_start(name), info=_help(name))
        add("animation_fps", gr.Slider, **_range("animation_fps"))
    with gr.Row():
        for name in ("atlas_trim", "atlas_common_canvas", "atlas_power_of_two"):
            add(name, gr.Checkbox, **_start(name), info=_help(name))
    for pair in (("atlas_padding", "atlas_extrude"), ("atlas_pivot_x", "atlas_pivot_y"), ("atlas_max_side",)):
        with gr.Row():
            for name in pair:
                add(name, gr.Slider, **_range(name))


def _connect(made: dict[str, Any], refresh: Any, report: Any, extension: Extension, is_img2img: bool) -> None:
    mode, changing = made["mode"], [made[name] for name in CHANGING]

    def follow(label: str) -> list[Any]:
        name = from_label("mode", label)
        needed = _list_shown(name)
        described = status.describe(extension, name, is_img2img)
        return [described, *(gr.update(visible=each in needed) for each in CHANGING)]

    def refresh_all(label: str) -> list[Any]:
        choices = list_modes(status.find_family(extension), status.find_unavailable(extension))
        return [*follow(label), gr.update(choices=choices, value=label)]

    def suggest(label: str) -> float:
        return any_row(from_label("mode", label)).suggested_stop_at

    def show_saved(label: str) -> None:
        """The WebUI puts a mode of the user's own defaults in before the page is shown."""
        for name in CHANGING:
            made[name].visible = name in _list_shown(from_label("mode", label))

    mode.init_field = show_saved
    outputs = [report, *changing]
    mode.change(careful(follow, len(outputs)), [mode], outputs, **QUIET)
    # Only when the user picks a mode: pasted and loaded values bring their own.
    mode.input(careful(suggest, 1), [mode], [made["stop_at"]], **QUIET)
    for event in (made["enabled"].change, refresh.click):
        event(careful(refresh_all, len(outputs) + 1), [mode], [*outputs, mode], **QUIET)


def _list_shown(mode_name: str) -> frozenset[str]:
    """The controls among `CHANGING` that a mode (by name) uses."""
    mode = any_row(mode_name)
    return wanted(mode_name) | {OUTPUT_PREFIX + output for output in list_outputs(mode, mode.inputs)}


def _paste(name: str) -> Callable[[dict[str, str]], Any]:
    """The function that finds a control's value in a parsed infotext.

    Plain values, for the WebUIs' API can't read all updates; but None would leave an image as it is.
    """
    if FIELDS[name].metadata["kind"] == "image":
        return lambda params: gr.update() if infotext.gives_image(params, name) else gr.update(value=None)
    return lambda params: to_label(name, infotext.read(params)[name])


def _paste_output(output: str) -> Callable[[dict[str, str]], bool]:
    return lambda params: output in infotext.read(params)["outputs"]


def _help(name: str) -> str:
    return FIELDS[name].metadata["help"]


def _start(name: str) -> dict[str, Any]:
    return {"value": to_label(name, FIELDS[name].default)}


def _range(name: str) -> dict[str, Any]:
    """A slider's settings."""
    about = FIELDS[name].metadata
    limits = {limit: about[limit] for limit in ("minimum", "maximum", "step")}
    return {"value": FIELDS[name].default, "info": SLIDER_HELP.get(name, _help(name)), **limits}
