"""Loads a diffusers pipeline from a diffusers folder or a single checkpoint file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib_layerdiffusion.hosts.samplers import adapt_to_keys
from lib_layerdiffusion.refusal import Refusal, using_path

GUIDANCE = 7.0  # what ordinary checkpoints look best with
SINGLE_FILE_SUFFIXES = (".safetensors",)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def check_path(path: Path | str) -> Path:
    """The path itself, if it may be a model; Refusal otherwise."""
    with using_path(path):
        path = Path(path).expanduser()
        if not path.exists():
            raise Refusal(
                f"There is no model at {path}; --model takes 'embedded', a diffusers folder or a .safetensors file."
            )
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise Refusal(
                f"{path} isn't a diffusers folder (it has no model_index.json): name one, or a .safetensors file."
            )
        if path.is_file() and path.suffix.lower() in PICKLES:
            raise Refusal(
                f"{path} may be a pickle, which can run code when it is opened; convert it to .safetensors first."
            )
        if path.is_file() and path.suffix.lower() not in SINGLE_FILE_SUFFIXES:
            raise Refusal(
                f"{path} isn't a model file; --model takes 'embedded', a diffusers folder or a .safetensors file."
            )
        return path


def pick_device(wanted: str) -> str:
    """Turn `auto` into the best device that is available, and refuse one that isn't."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(wanted.partition(":")[0], False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise Refusal(f"The device {wanted!r} is not available here; choose one of: auto, {there}.")
    return wanted


def load_pipeline(path: Path | str, *, device: str = "auto", offline: bool = False) -> Any:
    """Load the whole text-to-image pipeline, in float16 on a GPU and float32 on the CPU."""
    import torch

    path = check_path(path)
    place = pick_device(device)
    dtype = torch.float32 if place == "cpu" else torch.float16
    pipe = (_from_file if path.is_file() else _from_folder)(path, dtype, offline).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start_from_image(pipe: Any, masked: bool) -> Any:
    """The pipeline of the same parts that starts from an image, or paints into it by a mask."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    kind = AutoPipelineForInpainting if masked else AutoPipelineForImage2Image
    made = kind.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    return made


def _from_folder(path: Path, dtype: Any, offline: bool) -> Any:
    """Open a diffusers folder; nothing in it is ever fetched."""
    with _loading(path, offline):
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True, safety_checker=None)


def _from_file(path: Path, dtype: Any, offline: bool) -> Any:
    """Open a checkpoint file; diffusers fetches a few small configuration files for it unless `offline`."""
    from safetensors import safe_open

    with _loading(path, offline):
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        with safe_open(path, framework="pt") as file:
            keys, about = {*file.keys()}, file.metadata() or {}
        is_sdxl = any(key.startswith("conditioner.embedders.1.") for key in keys)
        kind = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
        pipe = kind.from_single_file(str(path), torch_dtype=dtype, local_files_only=offline)
        is_v = "v_pred" in keys or about.get("modelspec.prediction_type") == "v"
        pipe.scheduler = adapt_to_keys(pipe.scheduler, is_v, "ztsnr" in keys)  # which diffusers doesn't read
        return pipe


@contextlib.contextmanager
def _loading(path: Path, offline: bool) -> Iterator[None]:
    """Keep the libraries quiet and off the network if asked, and turn their errors on bad models into a sentence."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    for library in (transformers_logging, diffusers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        offered = " or run once without --offline" if offline and path.is_file() else ""
        raise Refusal(
            f"Can't load the model at {path} ({reason.rstrip('.')}); check that it is complete{offered}."
        ) from error
