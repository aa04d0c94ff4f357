"""A job of the page: its values, checked, to a `p`; how far that is; and what it made, with files to download."""

from __future__ import annotations

import html
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import HTTPException
from PIL.PngImagePlugin import PngInfo

from . import scripts, shared
from .call_queue import queue_lock
from .inputs import LIMITS, read_number
from .processing import (
    StableDiffusionProcessing,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)

logger = logging.getLogger(__name__)

WAIT = 0.3  # seconds between two looks at a job's progress
FILE_ENDINGS = (".psd", ".ora", ".json")  # of files that an extension may write next to a saved picture


@dataclass(frozen=True)
class Shown:
    """What the page shows of a job; None is what stays as it is."""

    message: str = ""
    running: bool = False
    pictures: list[str] | None = None
    files: list[str] | None = None
    infotexts: list[str] | None = None


def make_job(
    is_img2img: bool, runner: scripts.ScriptRunner, values: dict[str, Any], args: tuple[Any, ...]
) -> StableDiffusionProcessing:
    """The job that the page's values ask for."""
    opts, tab = shared.opts, "img2img" if is_img2img else "txt2img"
    for name in ("samples", "grids"):
        values[f"outpath_{name}"] = getattr(opts, f"outdir_{tab}_{name}")
    if is_img2img:
        if values["init_images"] is None:
            raise ValueError("Choose an image to start from: drop one on the left, or send one from txt2img.")
        values |= {"init_images": [values["init_images"]], "inpaint_full_res": bool(values["inpaint_full_res"])}
        p: StableDiffusionProcessing = StableDiffusionProcessingImg2Img(**values)
    else:
        p = StableDiffusionProcessingTxt2Img(**values)
    p.scripts = runner
    p.script_args = args
    return p


def read_values(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The page's values, numbers within the limits of their sliders; HTTPException for one that isn't.

    fields: the components by name. An empty seed is any.
    """
    checked = dict(values)
    for name, component in fields.items():
        match component:
            case gr.Slider():
                limits = component.minimum, component.maximum
                checked[name] = read_number(component.label, values[name], (component.step or 0) >= 1, limits)
            case gr.Number():
                given = -1 if values[name] in (None, "") else values[name]
                checked[name] = read_number("Seed", given, True, LIMITS["seed"])
            case _:
                pass
    return checked


def show_job(make: Callable[[], StableDiffusionProcessing]) -> Iterator[Shown]:
    """Run a job in another thread, show its progress, and then what it made."""
    result: dict[str, Any] = {}
    worker = threading.Thread(target=run_job, args=(make, result), daemon=True)
    worker.start()
    while worker.is_alive():
        yield Shown(progress_bar(), running=True)
        worker.join(WAIT)
    error = result.get("error")
    if error is not None:
        text = error.detail if isinstance(error, HTTPException) else str(error) or type(error).__name__
        yield Shown(show_error(text), pictures=[], files=[], infotexts=[])
        return
    processed = result["processed"]
    texts = [image.info.get("parameters", "") for image in processed.images]
    paths = name_files(processed.images)
    comments = "".join(f"<p class='comments'>{html.escape(line)}</p>" for line in processed.comments.splitlines())
    yield Shown(comments, pictures=paths, files=[*paths, *find_files(paths)], infotexts=texts)


def show_error(text: str) -> str:
    return f"<div class='error' role='alert'>{html.escape(text)}</div>"


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


def name_files(images: list[Any]) -> list[str]:
    """The file of each image: where it was saved, else a temporary PNG under a name that tells what it is."""
    folder = Path(tempfile.mkdtemp(prefix="stand-in-"))
    paths: list[str] = []
    for number, image in enumerate(images):
        path = getattr(image, "already_saved_as", None)
        if not path:
            info = PngInfo()
            if text := image.info.get("parameters"):
                info.add_text("parameters", text)
            path = str(folder / f"picture-{number:02}.png")
            image.save(path, format="PNG", pnginfo=info)
        paths.append(path)
    return paths


def find_files(paths: list[str]) -> list[str]:
    """What was written next to saved pictures, under their names."""
    near = (Path(path).with_suffix(ending) for path in paths for ending in FILE_ENDINGS)
    return [str(path) for path in near if path.is_file()]
