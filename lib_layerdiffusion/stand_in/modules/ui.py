"""The page: text to image and image to image, with the controls of all scripts below the usual ones."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from . import images, infotext_utils, scripts, sd_samplers, shared
from .script_callbacks import call
from .ui_components import Switch, ToolButton
from .ui_jobs import Shown, make_job, read_values, show_error, show_job

PAGE_TITLE = "LayerDiffusion"
HEAD = "# LayerDiffusion\nType what to paint, or choose a word, and press Generate (Ctrl+Enter)."
FOLDER = Path(__file__).parents[1]
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # from nowhere else
RESIZE_MODES = ["Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"]
FILLS = ["fill", "original", "latent noise", "latent nothing"]
AREAS = ["Whole picture", "Only masked"]
SIZE_STEP = 8  # pixels
# Small buttons: a sign, and what it does.
TOOLS = {
    "swap": ("\u21c5", "Swap width and height"),
    "size_of_image": ("\u2922", "Take the size of the image"),
    "any_seed": ("\u2684", "Another seed each time"),
    "same_seed": ("\u267b", "Take the seed of the chosen picture"),
}
QUIET = {"show_progress": "hidden", "queue": False}
NO_PARAMETERS = "This picture has no parameters: choose one that a WebUI or this page saved as PNG."


@dataclass
class Tab:
    """The components of a tab: those of the job by their attribute of `p`, and where the result is shown."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    pasted: list[Any] = field(default_factory=list)  # what an infotext fills

    def id(self, name: str) -> str:
        return f"{self.name}_{name}"


def create_ui() -> gr.Blocks:
    """The whole page."""
    call("before_ui")
    theme = gr.themes.Default(**SYSTEM_FONTS)
    style = "\n".join(read_all("style.css", (FOLDER / "page.css",)))
    about = {"title": PAGE_TITLE, "analytics_enabled": False, "css": style, "head": make_head()}
    texts, images_to_images = Tab("txt2img"), Tab("img2img")
    with gr.Blocks(theme=theme, **about) as demo:
        gr.Markdown(HEAD)
        with gr.Tabs() as tabs:
            with gr.Tab("txt2img", id="txt2img", elem_id="tab_txt2img"):
                create_tab(texts, scripts.scripts_txt2img)
            with gr.Tab("img2img", id="img2img", elem_id="tab_img2img"):
                create_tab(images_to_images, scripts.scripts_img2img)
        for tab in (texts, images_to_images):
            connect_send(tab, images_to_images, tabs)
    return demo


def make_head() -> str:
    """The page's scripts and the extensions', with the settings that they read."""
    opts = json.dumps({name: getattr(shared.opts, name) for name in shared.opts.data_labels}, default=str)
    sources = read_all("javascript/*.js", (FOLDER / "page.js",))
    tooltips = json.dumps({name: tooltip for name, (_, tooltip) in TOOLS.items()})
    text = "\n".join([f"const opts = {opts}, tooltips = {tooltips};", *sources]).replace("</", "<\\/")
    return f"<script>{text}</script>"


def read_all(pattern: str, first: tuple[Path, ...]) -> list[str]:
    """The page's own files, then the extensions' that match."""
    folders = sorted({data.basedir for data in scripts.scripts_data})
    paths = [*first, *(path for folder in folders for path in sorted(Path(folder).glob(pattern)))]
    return [path.read_text(encoding="utf-8") for path in paths]


def create_tab(tab: Tab, runner: scripts.ScriptRunner) -> None:
    """Everything of a tab, and what its buttons do."""
    with gr.Row():
        with gr.Column(scale=4):
            add_prompts(tab)
        with gr.Column(scale=1, min_width=200):
            generate = gr.Button("Generate", variant="primary", elem_id=tab.id("generate"))
            with gr.Row():
                stops = [
                    gr.Button(name, size="sm", min_width=60, visible=False, elem_id=tab.id(name.lower()))
                    for name in ("Interrupt", "Skip")
                ]
            paste = gr.Button("Read parameters from prompt", size="sm", elem_id=tab.id("paste"))
            read = gr.UploadButton(
                "Read parameters from picture", file_types=["image"], size="sm", elem_id=tab.id("read")
            )
    with gr.Row():
        with gr.Column():
            if runner.is_img2img:
                add_start(tab)
            add_settings(tab)
            if not runner.is_img2img:
                add_hires_fix(tab)
            inputs = runner.setup_ui()
        with gr.Column():
            progress = gr.HTML(elem_id=tab.id("progress"))
            gallery = gr.Gallery(label="Images", columns=4, object_fit="contain", elem_id=tab.id("gallery"))
            send = gr.Button("Send to img2img", size="sm", elem_id=tab.id("send_to_img2img"))
            files = gr.Files(label="Files", interactive=False, elem_id=tab.id("files"))
            text = gr.Textbox(label="Parameters", lines=3, interactive=False, elem_id=f"generation_info_{tab.name}")
    infotexts, pictures, chosen = gr.State([]), gr.State([]), gr.State(0)
    tab.parts |= {"progress": progress, "send": send, "infotexts": infotexts, "pictures": pictures, "chosen": chosen}
    for control in inputs:
        if isinstance(control, Switch):  # whoever opens this page came for it
            control.value = control.accordion.visible = True
    names = list(tab.fields)

    def run(*values: Any) -> Iterator[list[Any]]:
        def make() -> Any:
            named = read_values(tab.fields, dict(zip(names, values, strict=False)))
            return make_job(runner.is_img2img, runner, named, values[len(names) :])

        for shown in show_job(make):
            yield update_page(shown)

    outputs = [progress, *stops, gallery, files, text, infotexts, pictures, chosen]
    generate.click(run, [*tab.fields.values(), *inputs], outputs, show_progress="hidden")
    for button, act in zip(stops, (shared.state.interrupt, shared.state.skip), strict=True):
        button.click(act, queue=False)
    gallery.select(show_infotext, infotexts, [text, chosen], **QUIET)
    infotext_utils.add_paste_fields(tab.name, paste_fields(tab, runner))
    tab.pasted = infotext_utils.paste_fields[tab.name]["fields"]
    filled = [each[0] for each in tab.pasted]
    paste.click(lambda infotext: infotext_utils.paste(infotext, tab.pasted), tab.fields["prompt"], filled)
    read.upload(lambda path: read_picture(path, tab), read, [progress, *filled], **QUIET)
    connect_tools(tab)


def update_page(shown: Shown) -> list[Any]:
    """What a job's buttons, pictures, files and texts become."""
    stops = [gr.update(visible=shown.running)] * 2
    if shown.pictures is None:
        return [shown.message, *stops, *[gr.update()] * 6]
    texts = shown.infotexts or []
    return [shown.message, *stops, shown.pictures, shown.files, texts[0] if texts else "", texts, shown.pictures, 0]


def read_picture(path: Any, tab: Tab) -> list[Any]:
    """Fill the tab's fields from a picture's parameters."""
    try:
        with Image.open(path) as picture:
            text, _ = images.read_info_from_image(picture)
    except OSError:
        text = None
    if not text:
        return [show_error(NO_PARAMETERS), *[gr.update()] * len(tab.pasted)]
    return ["", *infotext_utils.paste(text, tab.pasted)]


def connect_send(tab: Tab, target: Tab, tabs: Any) -> None:
    """Send the chosen picture and its parameters to image to image."""

    def send(pictures: list[str], infotexts: list[str], chosen: int) -> list[Any]:
        if chosen >= len(pictures):
            empty = [gr.update()] * (2 + len(target.pasted))
            return [show_error("There is no picture yet: generate one first."), *empty]
        updates = infotext_utils.paste(infotexts[chosen], target.pasted)
        return ["", gr.update(selected=target.name), pictures[chosen], *updates]

    outputs = [tab.parts["progress"], tabs, target.fields["init_images"], *(each[0] for each in target.pasted)]
    inputs = [tab.parts[name] for name in ("pictures", "infotexts", "chosen")]
    tab.parts["send"].click(send, inputs, outputs, **QUIET)


def connect_tools(tab: Tab) -> None:
    """What the small buttons next to sizes and seed do."""
    sides = [tab.fields["width"], tab.fields["height"]]
    tab.parts["swap"].click(None, sides, sides, js="(width, height) => [height, width]")
    tab.parts["any_seed"].click(None, None, tab.fields["seed"], js="() => -1")
    inputs = [tab.parts["infotexts"], tab.parts["chosen"]]
    tab.parts["same_seed"].click(find_seed, inputs, tab.fields["seed"], **QUIET)
    if "size_of_image" in tab.parts:
        tab.parts["size_of_image"].click(measure, tab.fields["init_images"], sides, **QUIET)


def find_seed(infotexts: list[str], chosen: int) -> Any:
    """The seed of the chosen picture."""
    params = infotext_utils.parse_generation_parameters(infotexts[chosen]) if chosen < len(infotexts) else {}
    return int(params["Seed"]) if str(params.get("Seed", "")).isdigit() else gr.update()


def measure(image: Any) -> Any:
    """Width and height of an image, as multiples of what a latent's element covers; unchanged without an image."""
    if image is None:
        return gr.update(), gr.update()
    return tuple(max(round(side / SIZE_STEP), 1) * SIZE_STEP for side in image.size)


def add_prompts(tab: Tab) -> None:
    tab.fields["prompt"] = gr.Textbox(
        "",
        label="Prompt",
        lines=2,
        placeholder="A picture with parameters may be dropped here",
        elem_id=tab.id("prompt"),
    )
    tab.fields["negative_prompt"] = gr.Textbox("", label="Negative prompt", elem_id=tab.id("neg_prompt"))
    if shared.examples:
        words = [html.escape(text) for text in shared.examples]
        buttons = "".join(f'<button type="button" data-prompt="{text}">{text}</button>' for text in words)
        gr.HTML(f'<div class="words"><span>It knows</span>{buttons}</div>', elem_id=tab.id("words"))


def add_settings(tab: Tab) -> None:
    """Sampler, steps, size, batches, guidance, seed."""
    usual = shared.defaults
    of_image = ["size_of_image"] if tab.name == "img2img" else []
    names = [sampler.name for sampler in sd_samplers.all_samplers]
    tab.fields |= {
        **in_row(
            sampler_name=lambda: gr.Dropdown(names, value=names[0], label="Sampler", elem_id=tab.id("sampling")),
            steps=lambda: gr.Slider(1, 150, usual["steps"], step=1, label="Steps", elem_id=tab.id("steps")),
        ),
        **in_row(
            width=lambda: gr.Slider(64, 2048, usual["width"], step=8, label="Width", elem_id=tab.id("width")),
            height=lambda: gr.Slider(64, 2048, usual["height"], step=8, label="Height", elem_id=tab.id("height")),
            tools=lambda: add_tools(tab, "swap", *of_image),
        ),
        **in_row(
            n_iter=lambda: gr.Slider(1, 100, 1, step=1, label="Batch count", elem_id=tab.id("batch_count")),
            batch_size=lambda: gr.Slider(1, 16, 1, step=1, label="Batch size", elem_id=tab.id("batch_size")),
        ),
        **in_row(
            cfg_scale=lambda: gr.Slider(1, 30, usual["cfg_scale"], step=0.5, label="CFG scale", elem_id=tab.id("cfg")),
            seed=lambda: gr.Number(-1, precision=0, label="Seed (-1: any)", elem_id=tab.id("seed")),
            tools=lambda: add_tools(tab, "any_seed", "same_seed"),
        ),
    }


def add_tools(tab: Tab, *names: str) -> None:
    """Some of `TOOLS`."""
    with gr.Column(scale=0, min_width=44):
        for name in names:
            sign, tooltip = TOOLS[name]
            tab.parts[name] = ToolButton(sign, tooltip=tooltip, elem_id=tab.id(name))


def add_hires_fix(tab: Tab) -> None:
    upscalers = [*shared.latent_upscale_modes, *(each.name for each in shared.sd_upscalers if each.name != "None")]
    with gr.Accordion("Hires fix", open=False):
        tab.fields["enable_hr"] = gr.Checkbox(False, label="Second pass in a larger size", elem_id=tab.id("hr"))
        tab.fields |= in_row(
            hr_upscaler=lambda: gr.Dropdown(
                upscalers, value=upscalers[0], label="Upscaler", elem_id=tab.id("hr_upscaler")
            ),
            hr_scale=lambda: gr.Slider(1, 4, 2, step=0.25, label="Upscale by", elem_id=tab.id("hr_scale")),
        )
        tab.fields |= in_row(
            hr_second_pass_steps=lambda: gr.Slider(
                0, 150, 0, step=1, label="Steps (0: same)", elem_id=tab.id("hires_steps")
            ),
            denoising_strength=lambda: gr.Slider(
                0, 1, 0.6, step=0.01, label="Denoising strength", elem_id=tab.id("denoising_strength")
            ),
        )


def add_start(tab: Tab) -> None:
    """What image to image starts from."""
    tab.fields |= in_row(
        init_images=lambda: gr.Image(type="pil", image_mode="RGBA", label="Image", elem_id="img2img_image"),
        mask=lambda: gr.Image(type="pil", image_mode="RGBA", label="Mask (white is painted)", elem_id="img2img_mask"),
    )
    tab.fields["denoising_strength"] = gr.Slider(
        0, 1, 0.75, step=0.01, label="Denoising strength", elem_id=tab.id("denoising_strength")
    )
    tab.fields["resize_mode"] = gr.Radio(
        RESIZE_MODES, value=RESIZE_MODES[0], type="index", label="Resize mode", elem_id="resize_mode"
    )
    with gr.Accordion("Mask", open=False):
        tab.fields["inpaint_full_res"] = gr.Radio(
            AREAS, value=AREAS[0], type="index", label="Inpaint area", elem_id=tab.id("inpaint_full_res")
        )
        tab.fields["inpainting_fill"] = gr.Radio(
            FILLS, value=FILLS[1], type="index", label="Masked content", elem_id=tab.id("inpainting_fill")
        )
        tab.fields |= in_row(
            mask_blur=lambda: gr.Slider(0, 64, 4, step=1, label="Mask blur", elem_id=tab.id("mask_blur")),
            inpaint_full_res_padding=lambda: gr.Slider(
                0, 256, 32, step=4, label="Only masked padding", elem_id=tab.id("inpaint_full_res_padding")
            ),
        )


def in_row(**makers: Callable[[], Any]) -> dict[str, Any]:
    """Make components side by side; those that are fields of the job."""
    with gr.Row():
        made = {name: make() for name, make in makers.items()}
    return {name: component for name, component in made.items() if component is not None}


def paste_fields(tab: Tab, runner: scripts.ScriptRunner) -> list[Any]:
    """What an infotext fills: the tab's own fields, then those of scripts."""
    labels = {"prompt": "Prompt", "negative_prompt": "Negative prompt", "steps": "Steps", "sampler_name": "Sampler"}
    labels |= {"cfg_scale": "CFG scale", "seed": "Seed", "width": "Size-1", "height": "Size-2"}
    labels |= {"denoising_strength": "Denoising strength", "hr_upscaler": "Hires upscaler"}
    own = [(name, label) for name, label in labels.items() if name in tab.fields]
    return [
        infotext_utils.PasteField(tab.fields[name], label, api=name) for name, label in own
    ] + runner.infotext_fields


def show_infotext(texts: list[str], event: gr.SelectData) -> tuple[str, int]:
    """The parameters of the image that was clicked, and its place."""
    return (texts[event.index] if event.index < len(texts) else ""), event.index
