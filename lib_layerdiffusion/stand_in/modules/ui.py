"""The page: text to image and image to image, with the controls of all scripts below the usual ones."""

from __future__ import annotations

import html
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.PngImagePlugin import PngInfo

from . import infotext_utils, scripts, sd_samplers, shared
from .call_queue import queue_lock
from .processing import (
    StableDiffusionProcessing,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)
from .script_callbacks import call

logger = logging.getLogger(__name__)

PAGE_TITLE = "LayerDiffusion"
HEAD = "# LayerDiffusion\nType what to paint, tick **LayerDiffusion** below, press Generate."
# Transparent images on a checkerboard, and nothing about gradio.
STYLE = """
.grid-wrap img, .preview img, .thumbnail-item img {
    background: repeating-conic-gradient(#ccc 0% 25%, #fff 0% 50%) 50% / 16px 16px;
}
footer { display: none !important; }
"""
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # from nowhere else
RESIZE_MODES = ["Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"]
FILLS = ["fill", "original", "latent noise", "latent nothing"]
AREAS = ["Whole picture", "Only masked"]
WAIT = 0.3  # seconds between two looks at a job's progress


@dataclass
class Tab:
    """The components of a tab: those of the job by their attribute of `p`, and where the result is shown."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def id(self, name: str) -> str:
        return f"{self.name}_{name}"


def create_ui() -> gr.Blocks:
    """The whole page."""
    call("before_ui")
    theme = gr.themes.Default(**SYSTEM_FONTS)
    with gr.Blocks(theme=theme, title=PAGE_TITLE, analytics_enabled=False, css=STYLE + style_sheets()) as demo:
        gr.Markdown(HEAD)
        with gr.Tab("txt2img", elem_id="tab_txt2img"):
            create_tab(Tab("txt2img"), scripts.scripts_txt2img)
        with gr.Tab("img2img", elem_id="tab_img2img"):
            create_tab(Tab("img2img"), scripts.scripts_img2img)
    return demo


def style_sheets() -> str:
    """The extensions' style sheets, one after the other."""
    folders = {data.basedir for data in scripts.scripts_data}
    paths = [Path(folder) / "style.css" for folder in sorted(folders)]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def create_tab(tab: Tab, runner: scripts.ScriptRunner) -> None:
    """Everything of a tab, and what its buttons do."""
    with gr.Row():
        with gr.Column(scale=4):
            add_prompts(tab)
        with gr.Column(scale=1, min_width=120):
            generate = gr.Button("Generate", variant="primary", elem_id=tab.id("generate"))
            with gr.Row():
                interrupt = gr.Button("Interrupt", size="sm", min_width=60, elem_id=tab.id("interrupt"))
                skip = gr.Button("Skip", size="sm", min_width=60, elem_id=tab.id("skip"))
            paste = gr.Button("Read parameters from prompt", size="sm", elem_id=tab.id("paste"))
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
            files = gr.Files(label="Files", interactive=False, elem_id=tab.id("files"))
            text = gr.Textbox(label="Parameters", lines=3, interactive=False, elem_id=f"generation_info_{tab.name}")
    names = list(tab.fields)
    infotexts = gr.State([])

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        yield from show_job(lambda: make_job(tab, runner, dict(zip(names, values, strict=False)), values[len(names) :]))

    outputs = [progress, gallery, files, text, infotexts]
    generate.click(run, [*tab.fields.values(), *inputs], outputs, show_progress="hidden")
    interrupt.click(shared.state.interrupt, queue=False)
    skip.click(shared.state.skip, queue=False)
    gallery.select(show_infotext, infotexts, text, show_progress="hidden", queue=False)
    pasted = paste_fields(tab, runner)
    infotext_utils.add_paste_fields(tab.name, pasted)
    pasted = infotext_utils.paste_fields[tab.name]["fields"]
    paste.click(
        lambda infotext: infotext_utils.paste(infotext, pasted), tab.fields["prompt"], [each[0] for each in pasted]
    )


def add_prompts(tab: Tab) -> None:
    tab.fields["prompt"] = gr.Textbox(label="Prompt", lines=2, elem_id=tab.id("prompt"))
    tab.fields["negative_prompt"] = gr.Textbox(label="Negative prompt", elem_id=tab.id("neg_prompt"))
    if shared.examples:
        gr.Examples([[text] for text in shared.examples], tab.fields["prompt"], examples_per_page=50, label="It knows")


def add_settings(tab: Tab) -> None:
    """Sampler, steps, size, batches, guidance, seed."""
    usual = shared.defaults
    names = [sampler.name for sampler in sd_samplers.all_samplers]
    tab.fields |= {
        **in_row(
            sampler_name=lambda: gr.Dropdown(names, value=names[0], label="Sampler", elem_id=tab.id("sampling")),
            steps=lambda: gr.Slider(1, 150, usual["steps"], step=1, label="Steps", elem_id=tab.id("steps")),
        ),
        **in_row(
            width=lambda: gr.Slider(64, 2048, usual["width"], step=8, label="Width", elem_id=tab.id("width")),
            height=lambda: gr.Slider(64, 2048, usual["height"], step=8, label="Height", elem_id=tab.id("height")),
        ),
        **in_row(
            n_iter=lambda: gr.Slider(1, 100, 1, step=1, label="Batch count", elem_id=tab.id("batch_count")),
            batch_size=lambda: gr.Slider(1, 16, 1, step=1, label="Batch size", elem_id=tab.id("batch_size")),
        ),
        **in_row(
            cfg_scale=lambda: gr.Slider(1, 30, usual["cfg_scale"], step=0.5, label="CFG scale", elem_id=tab.id("cfg")),
            seed=lambda: gr.Number(-1, precision=0, label="Seed (-1: any)", elem_id=tab.id("seed")),
        ),
    }


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
    """Make components side by side."""
    with gr.Row():
        return {name: make() for name, make in makers.items()}


def paste_fields(tab: Tab, runner: scripts.ScriptRunner) -> list[Any]:
    """What an infotext fills: the tab's own fields, then those of scripts."""
    labels = {"prompt": "Prompt", "negative_prompt": "Negative prompt", "steps": "Steps", "sampler_name": "Sampler"}
    labels |= {"cfg_scale": "CFG scale", "seed": "Seed", "width": "Size-1", "height": "Size-2"}
    labels |= {"denoising_strength": "Denoising strength", "hr_upscaler": "Hires upscaler"}
    own = [(name, label) for name, label in labels.items() if name in tab.fields]
    return [
        infotext_utils.PasteField(tab.fields[name], label, api=name) for name, label in own
    ] + runner.infotext_fields


def make_job(
    tab: Tab, runner: scripts.ScriptRunner, values: dict[str, Any], args: tuple[Any, ...]
) -> StableDiffusionProcessing:
    """The job that the page's values ask for."""
    opts = shared.opts
    for name in ("samples", "grids"):
        values[f"outpath_{name}"] = getattr(opts, f"outdir_{tab.name}_{name}")
    values |= {name: int(values[name]) for name in ("width", "height", "steps", "batch_size", "n_iter", "seed")}
    if runner.is_img2img:
        if values["init_images"] is None:
            raise ValueError("Choose an image to start from")
        values |= {"init_images": [values["init_images"]], "inpaint_full_res": bool(values["inpaint_full_res"])}
        p: StableDiffusionProcessing = StableDiffusionProcessingImg2Img(**values)
    else:
        p = StableDiffusionProcessingTxt2Img(**values)
    p.scripts = runner
    p.script_args = args
    return p


def show_job(make: Callable[[], StableDiffusionProcessing]) -> Iterator[tuple[Any, ...]]:
    """Run a job in another thread, show its progress, and then what it made."""
    result: dict[str, Any] = {}
    worker = threading.Thread(target=run_job, args=(make, result), daemon=True)
    worker.start()
    while worker.is_alive():
        yield (progress_bar(), *[gr.update()] * 4)
        worker.join(WAIT)
    error = result.get("error")
    if error is not None:
        yield f"<div class='error'>{html.escape(str(error))}</div>", [], None, "", []
        return
    processed = result["processed"]
    texts = [image.info.get("parameters", "") for image in processed.images]
    paths = [image_file(image) for image in processed.images]
    comments = "".join(f"<p class='comments'>{html.escape(line)}</p>" for line in processed.comments.splitlines())
    yield comments, paths, paths, texts[0] if texts else processed.info, texts


def run_job(make: Callable[[], StableDiffusionProcessing], result: dict[str, Any]) -> None:
    """Make all images; the result or the exception is put into `result`."""
    with queue_lock:
        shared.state.begin(job="page")
        try:
            p = make()
            processed = p.scripts.run(p, *p.script_args)
            result["processed"] = process_images(p) if processed is None else processed
            p.close()
        except Exception as error:
            logger.exception("The job failed")
            result["error"] = error
        finally:
            shared.state.end()


def progress_bar() -> str:
    """How far the current job is."""
    state = shared.state
    jobs, steps = max(state.job_count, 1), max(state.sampling_steps, 1)
    share = min((state.job_no + state.sampling_step / steps) / jobs, 1)
    step = f"Step {state.sampling_step} of {state.sampling_steps}" if state.sampling_steps else "Starting"
    text = state.textinfo or step
    return f"<progress max='100' value='{100 * share:.0f}' style='width: 100%'></progress><p>{html.escape(text)}</p>"


def image_file(image: Any) -> str:
    """The file of an image that was saved, else a temporary PNG."""
    saved = getattr(image, "already_saved_as", None)
    if saved:
        return saved
    info = PngInfo()
    if text := image.info.get("parameters"):
        info.add_text("parameters", text)
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        image.save(file, format="PNG", pnginfo=info)
    return file.name


def show_infotext(texts: list[str], event: gr.SelectData) -> str:
    """The parameters of the image that was clicked."""
    return texts[event.index] if event.index < len(texts) else ""
