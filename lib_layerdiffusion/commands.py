"""What each command of the command line does; imported only when one runs, because it needs torch."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from tqdm import tqdm

from lib_layerdiffusion.demo.gallery import contact_sheet, read_captions
from lib_layerdiffusion.doctor import examine
from lib_layerdiffusion.export import png
from lib_layerdiffusion.hosts.diffusers import layer_diffusion
from lib_layerdiffusion.image_file import read_image
from lib_layerdiffusion.latent_file import LatentFile, read_latent
from lib_layerdiffusion.layers import Layer, LayerStack, checkerboard, composite as put_over
from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.output_folder import OutputFolder, slug
from lib_layerdiffusion.pipelines import EMBEDDED, EMBEDDED_FOLDER, load_pipeline, model_path
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WeightStore, cache_folder

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SEEDS = 2**32
DEMO_BATCH = 8  # pictures sampled together: few enough for small machines, many enough to keep the cores busy
GUIDANCE = 7.0
EMBEDDED_GUIDANCE = 3.0


def demo(arguments: argparse.Namespace) -> int:
    """Make a picture of each of the embedded model's prompts, and a contact sheet of all."""
    captions = [row.caption for row in read_captions(EMBEDDED_FOLDER)][: arguments.count]
    seed = 1 if arguments.seed is None else arguments.seed
    began = time.monotonic()
    pictures: list[tuple[str, Pixels]] = []
    with OutputFolder(arguments.out) as out:
        pipe = load_pipeline(EMBEDDED, offline=True)
        with layer_diffusion(pipe, weights=EMBEDDED_FOLDER / "layer_model", views=arguments.views) as ld:
            for first in range(0, len(captions), DEMO_BATCH):
                prompts = captions[first : first + DEMO_BATCH]
                settings = {"steps": arguments.steps, "cfg": _guidance(arguments, EMBEDDED)}
                with _progress(f"pictures {first + 1} to {first + len(prompts)} of {len(captions)}") as progress:
                    stacks = ld.batch(prompts, [seed] * len(prompts), progress=progress, **settings)
                for prompt, stack in zip(prompts, stacks, strict=True):
                    print(out.write(f"{seed}-{slug(prompt)}", ".png", partial(png.write, stack)))
                    pictures.append((prompt, _over_checker(stack)))
        print(out.write("contact-sheet", ".png", contact_sheet(pictures).save))
    seconds = time.monotonic() - began
    print(
        f"{len(pictures)} pictures in {seconds:.0f} s; look at {arguments.out / 'contact-sheet.png'}", file=sys.stderr
    )
    return 0


def generate(arguments: argparse.Namespace) -> int:
    """Make the layers of each prompt and seed, and write them as soon as they are there."""
    options = _layer_options(arguments)
    model = model_path(arguments.model)
    store = _store(arguments, model)
    first = secrets.randbelow(SEEDS) if arguments.seed is None else arguments.seed
    seeds = [(first + index) % SEEDS for index in range(arguments.batch)]
    settings = {
        "negative_prompt": arguments.negative,
        "width": arguments.width,
        "height": arguments.height,
        "steps": arguments.steps,
        "cfg": _guidance(arguments, arguments.model),
    }
    with OutputFolder(arguments.out) as out:
        pipe = load_pipeline(arguments.model, device=arguments.device, offline=arguments.offline)
        with layer_diffusion(pipe, weights=store, **options) as ld:
            for prompt in arguments.prompts:
                with _progress(prompt) as progress:
                    stacks = ld.batch([prompt] * len(seeds), seeds, progress=progress, **settings)
                for seed, stack in zip(seeds, stacks, strict=True):
                    _write_layers(out, f"{seed}-{slug(prompt)}", stack, checker=arguments.checker)
    return 0


def encode(arguments: argparse.Namespace) -> int:
    """Write the adjusted latent of each image."""
    images = [(path, read_image(path)) for path in arguments.images]
    with _codec(arguments) as (ld, out):
        for path, rgba in images:
            latent = ld.encode(rgba) / ld.host.scaling_factor
            height, width = rgba.shape[:2]
            print(out.write_new(slug(path.stem), ".safetensors", LatentFile(latent, width, height).save))
    return 0


def decode(arguments: argparse.Namespace) -> int:
    """Write the transparent image in each latent."""
    latents = [(path, read_latent(path)) for path in arguments.latents]
    with _codec(arguments, views=arguments.views) as (ld, out):
        for path, file in latents:
            rgba = ld.decode(file.latent * ld.host.scaling_factor)[: file.height, : file.width]
            _write_layers(out, slug(path.stem), _stack([("foreground", rgba)]))
    return 0


def composite(arguments: argparse.Namespace) -> int:
    """Write the layers, bottom first, over a colour, a checkerboard or an image."""
    layers = [(path.stem, read_image(path)) for path in arguments.layers]
    sizes = {rgba.shape[1::-1] for _, rgba in layers}
    if len(sizes) > 1:
        named = ", ".join(
            f"{path} is {w}x{h}" for path, (_, rgba) in zip(arguments.layers, layers) for h, w in [rgba.shape[:2]]
        )
        raise Refusal(f"Layers must have the same size, but {named}; resize them first.")
    stack = _stack(layers)
    flat = put_over(stack, _background(arguments.over, stack.size))
    with OutputFolder(arguments.out) as out:
        name = slug("-".join(name for name, _ in layers)) + "-composite"
        print(out.write_new(name, ".png", Image.fromarray(flat).save))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Print what is found, missing or damaged; 1 if anything stops a generation."""
    folders = [arguments.weights] if arguments.weights else []
    findings = list(examine(WeightStore(folders, download_to=cache_folder())))
    for finding in findings:
        print(finding)
    return int(any(finding.state == "broken" for finding in findings))


def _guidance(arguments: argparse.Namespace, model: str) -> float:
    if arguments.cfg is not None:
        return arguments.cfg
    return EMBEDDED_GUIDANCE if model == EMBEDDED else GUIDANCE


def _layer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the layer options and the given images, and refuse what is wrong before anything is loaded."""
    given = {f"{role}_image": getattr(arguments, role) for role in ("foreground", "background", "blend")}
    values = {name: getattr(arguments, name) for name in ("mode", "weight", "start_at", "stop_at", "views")}
    values |= {name: read_image(path) for name, path in given.items() if path}
    LayerOptions.from_dict(values)
    return values


def _store(arguments: argparse.Namespace, model: Path) -> WeightStore:
    """Search --weights, then what lies beside a model folder, then the cache."""
    folders = [folder for folder in (arguments.weights, model / "layer_model") if folder and folder.is_dir()]
    if arguments.weights and not arguments.weights.is_dir():
        raise Refusal(f"There is no folder {arguments.weights}; --weights takes the folder of the layer weight files.")
    return WeightStore(folders, download_to=cache_folder(), offline=arguments.offline)


@contextmanager
def _codec(arguments: argparse.Namespace, **options: Any) -> Iterator[tuple[Any, OutputFolder]]:
    """Open the model and the output folder for `encode` and `decode`."""
    model = model_path(arguments.model)
    store = _store(arguments, model)
    with OutputFolder(arguments.out) as out:
        pipe = load_pipeline(arguments.model, device=arguments.device, offline=arguments.offline)
        with layer_diffusion(pipe, weights=store, **options) as ld:
            yield ld, out


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    """Show a progress bar on stderr, where that is a terminal, and yield what moves it."""
    with tqdm(desc=title, file=sys.stderr, disable=None, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _write_layers(out: OutputFolder, stem: str, stack: LayerStack, *, checker: bool = False) -> None:
    """Write every layer of a set as a PNG of its own and print the paths."""
    for layer in stack.layers:
        name = stem if len(stack.layers) == 1 or layer.role == "foreground" else f"{stem}-{layer.role}"
        print(out.write_new(name, ".png", partial(png.write, replace(stack, layers=(layer,)))))
    if checker:
        print(out.write_new(f"{stem}-checker", ".png", Image.fromarray(_over_checker(stack)).save))


def _stack(layers: Sequence[tuple[str, Pixels]]) -> LayerStack:
    """Make a stack of images of one size."""
    height, width = layers[0][1].shape[:2]
    return LayerStack(tuple(Layer(name, rgba, "foreground") for name, rgba in layers), (width, height))
