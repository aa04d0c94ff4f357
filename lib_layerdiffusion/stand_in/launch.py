"""Starts and stops the stand-in WebUI: makes `modules` importable, loads model and script, builds page and API."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_layerdiffusion.embedded import EMBEDDED, EMBEDDED_FOLDER, usual_guidance
from lib_layerdiffusion.embedded.gallery import read_captions
from lib_layerdiffusion.planning import STEPS
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.stand_in.model import LoadedModel
from lib_layerdiffusion.stand_in.traits import FORGE, Traits
from lib_layerdiffusion.weights import cache_folder

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[2]  # the extension's own, with `scripts/`
LARGEST_PREVIEW = 512  # pixels: no page should begin with a size that takes minutes on a small machine


@dataclass(frozen=True)
class StandIn:
    """A running stand-in."""

    app: Any  # FastAPI: the page at "/", the API at "/sdapi/v1"

    @property
    def shared(self) -> Any:
        return sys.modules["modules.shared"]


def start(
    pipe: Any,
    model: str = EMBEDDED,
    *,
    traits: Traits = FORGE,
    outputs: Path = Path("outputs"),
    weights: Path | None = None,
    offline: bool = False,
    extension: Path = FOLDER,
    words: Sequence[str] = (),
) -> StandIn:
    """Start with a diffusers pipeline; only one can run in a process.

    `weights`: folder of the layer files. `words`: further flags of the command line, for `preload.py`.
    """
    script = extension / "scripts" / "layerdiffusion.py"
    if not script.is_file():
        raise Refusal(f"There is no {script}: run this command from a clone of the repository (pip install -e .).")
    install_modules()
    try:
        return _assemble(pipe, model, traits, outputs, weights, offline, script, words)
    except BaseException:
        stop()
        raise


def stop() -> None:
    """Let scripts clean up, and forget all modules, so that another stand-in can start."""
    if "modules.script_callbacks" in sys.modules:
        sys.modules["modules.script_callbacks"].call("script_unloaded")
    for name in [name for name in sys.modules if _is_bound(name)]:
        del sys.modules[name]


@contextmanager
def running(pipe: Any, model: str = EMBEDDED, **settings: Any) -> Iterator[StandIn]:
    """`start`, and `stop` at the end of the block."""
    try:
        yield start(pipe, model, **settings)
    finally:
        stop()


def install_modules() -> None:
    """Make the package in `modules/`, and nothing else of this folder, importable as `modules`."""
    if "modules" in sys.modules:
        raise RuntimeError("a WebUI is already running in this process")
    folder = Path(__file__).parent / "modules"
    spec = importlib.util.spec_from_file_location(
        "modules", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(str(folder))
    package = importlib.util.module_from_spec(spec)
    sys.modules["modules"] = package
    spec.loader.exec_module(package)


def _assemble(
    pipe: Any,
    model: str,
    traits: Traits,
    outputs: Path,
    weights: Path | None,
    offline: bool,
    script: Path,
    words: Sequence[str],
) -> StandIn:
    """Do everything in the order in which WebUIs start."""
    shared, paths = (importlib.import_module(f"modules.{name}") for name in ("shared", "paths"))
    paths.script_path = paths.data_path = str(outputs)
    paths.models_path = str(EMBEDDED_FOLDER if model == EMBEDDED else cache_folder().parent)
    _set_flags(shared.cmd_opts, script.parent.parent, words)
    shared.cmd_opts.layerdiffusion_offline = offline or getattr(shared.cmd_opts, "layerdiffusion_offline", False)
    shared.cmd_opts.layerdiffusion_dir = str(weights or _find_weights(model) or "") or None
    shared.traits = traits
    shared.opts = importlib.import_module("modules.options").make_options(str(outputs))
    shared.opts.data["layerdiffusion_save_previews"] = True  # so that the page offers them under good names
    if traits.stealth_infotext:
        shared.opts.data_labels["stealth_pnginfo_option"] = shared.OptionInfo("Alpha", "Stealth infotext")
    shared.sd_model = LoadedModel(pipe, model)
    shared.device = shared.sd_model.device
    shared.defaults = find_defaults(pipe, model)
    shared.examples = read_captions(EMBEDDED_FOLDER) if model == EMBEDDED else []
    importlib.import_module("modules.scripts").load_script(script)
    return make_page(outputs)


def make_page(outputs: Path) -> StandIn:
    """Build page and app with the loaded scripts; again after those have changed, as a WebUI's "Reload UI" does."""
    shared, scripts, callbacks = (
        importlib.import_module(f"modules.{name}") for name in ("shared", "scripts", "script_callbacks")
    )
    for runner in (scripts.scripts_txt2img, scripts.scripts_img2img):
        runner.initialize_scripts(runner.is_img2img)
    callbacks.call("ui_settings")
    shared.demo = importlib.import_module("modules.ui").create_ui()
    callbacks.call("model_loaded", shared.sd_model)
    return StandIn(_serve(shared.demo, callbacks, outputs))


@contextmanager
def _event_loop() -> Iterator[None]:
    """Give this thread an event loop: without one gradio leaves out its queue's locks and then never answers."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _serve(demo: Any, callbacks: Any, outputs: Path) -> Any:
    """The app with the API's routes, those of extensions, and the page for everything else."""
    import gradio as gr
    from fastapi import FastAPI

    api = importlib.import_module("modules.api.api")
    app = FastAPI(exception_handlers={Exception: api.handle_exception})
    api.Api(app, importlib.import_module("modules.call_queue").queue_lock)
    callbacks.call("app_started", demo, app)
    with _event_loop():
        demo.queue()
        mounted = gr.mount_gradio_app(app, demo, path="/")
    demo.allowed_paths = [str(outputs.resolve())]  # what the gallery may show; mounting forgets it
    return mounted


def _set_flags(cmd_opts: argparse.Namespace, extension: Path, words: Sequence[str]) -> None:
    """Add the extension's flags from its `preload.py`."""
    preload = extension / "preload.py"
    if not preload.is_file():
        return
    spec = importlib.util.spec_from_file_location("layerdiffusion_preload", preload)
    if spec is None or spec.loader is None:
        raise ImportError(str(preload))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    module.preload(parser)
    parser.parse_args(list(words), namespace=cmd_opts)


def _find_weights(model: str) -> Path | None:
    """The layer files in a model's own folder, else the user's; None for the embedded model, in `models_path`."""
    if model == EMBEDDED:
        return None
    folder = Path(model).expanduser() / "layer_model"
    return folder if folder.is_dir() else cache_folder()


def find_defaults(pipe: Any, model: str) -> dict[str, Any]:
    """Size, steps and guidance that suit a model."""
    config = pipe.unet.config
    side = min(int(config.sample_size) * 8, LARGEST_PREVIEW) if model != EMBEDDED else int(config.sample_size) * 8
    return {"width": side, "height": side, "steps": STEPS, "cfg_scale": usual_guidance(model)}


def _is_bound(name: str) -> bool:
    """Whether it is one of `modules`, or was imported with their names in it."""
    return name.partition(".")[0] == "modules" or (name + ".").startswith("lib_layerdiffusion.webui.")
