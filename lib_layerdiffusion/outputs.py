"""What the outputs that a user can choose are: layers of a set, previews of it, and files that hold all of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from .export import ora, png, psd
from .infotext import mark_preview
from .layers import Bytes, Layer, LayerStack, Size, composite
from .modes import Mode, Role
from .options import OUTPUTS
from .refusal import Refusal

logger = logging.getLogger(__name__)

WRITERS: Mapping[str, Callable[[LayerStack, str | os.PathLike[str]], None]] = {"psd": psd.write, "ora": ora.write}
# Previews of the transparent layer, with the background that `composite` takes for each.
BACKDROPS: Mapping[str, str] = {"checker": "checker", "over_black": "black", "over_white": "white"}


def name_layer(role: Role) -> str:
    """The output that is the layer of this role."""
    return "rgba" if role == "foreground" else role


def list_outputs(mode: Mode, given: Collection[Role] = ()) -> tuple[str, ...]:
    """The outputs that a mode makes, with images given for some roles."""
    there = {name_layer(role) for role in mode.frames} | WRITERS.keys()
    if mode.transparent_frame is not None:
        there |= {*BACKDROPS, "over_image", "alpha"}
    if {"foreground", "background"} <= {*mode.frames, *given}:
        there.add("recomposite")
    return tuple(output for output in OUTPUTS if output in there)


def arrange(made: Mapping[Role, Bytes], given: Mapping[Role, Bytes], size: Size, infotext: str = "") -> LayerStack:
    """The stack that files and the recomposite hold, of straight RGBA images by role.

    The background, whether made or given, below the foreground; where there is neither, the blend.
    """
    images = {**given, **made}
    order: tuple[Role, ...] = (
        ("background", "foreground") if {"background", "foreground"} & images.keys() else ("blend",)
    )
    layers = (Layer(role, images[role], role) for role in order if role in images)
    return LayerStack(tuple(layers), size, infotext)


def make_previews(
    stack: LayerStack, transparent: Bytes | None, outputs: Sequence[str], behind: Bytes | None = None
) -> Iterator[tuple[str, Bytes]]:
    """The previews among the outputs, opaque uint8 [H, W, 3], by name.

    stack: what `arrange` made. transparent: the transparent layer that was made, straight RGBA, if there is one.
    behind: the image for "over_image", RGBA of the layer's size; where it is transparent, it lies on a checkerboard.
    """
    if transparent is not None:
        layer = Layer("foreground", transparent, "foreground")
        for name, background in BACKDROPS.items():
            if name in outputs:
                yield name, composite([layer], background)
        if behind is not None and "over_image" in outputs:
            yield "over_image", composite([Layer("image", behind, "background"), layer], "checker")
        if "alpha" in outputs:
            yield "alpha", np.repeat(transparent[..., 3:], 3, axis=2)
    if len(stack.layers) > 1 and "recomposite" in outputs:
        yield "recomposite", composite(stack)[..., :3]


def list_files(
    stack: LayerStack,
    outputs: Sequence[str],
    given: Mapping[Role, Bytes] | None = None,
    behind: Bytes | None = None,
) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    """The wanted outputs of a set of layers as files: what their names add to the set's, the ending, what writes them.

    given: images that belong to the set without being made, of its size. behind: as for `make_previews`.
    """
    made: dict[Role, Bytes] = {layer.role: layer.image for layer in stack.layers}
    for layer in stack.layers:
        if name_layer(layer.role) in outputs:
            alone = layer.role == "foreground" or len(stack.layers) == 1
            yield "" if alone else f"-{layer.role}", ".png", partial(png.write, replace(stack, layers=(layer,)))
    arranged = arrange(made, given or {}, stack.size, stack.infotext)
    for name, preview in make_previews(arranged, made.get("foreground"), outputs, behind):
        yield f"-{name}", ".png", partial(png.write, preview, infotext=mark_preview(stack.infotext, name))
    for name, write in WRITERS.items():
        if name in outputs:
            yield "", f".{name}", partial(write, arranged)


def name_files(mode: Mode, outputs: Collection[str]) -> list[str]:
    """What `list_files` adds to a set's name, with the endings, when no images are given; in no order."""
    layers = {
        name_layer(role): "" if role == "foreground" or len(mode.frames) == 1 else f"-{role}" for role in mode.frames
    }
    return [
        f".{output}" if output in WRITERS else f"{layers.get(output, f'-{output}')}.png"
        for output in list_outputs(mode)
        if output in outputs and output != "over_image"
    ]


def write_files(stack: LayerStack, outputs: Collection[str], path: Path) -> list[str]:
    """Write the files among the outputs as `path` with their own endings; a sentence for each that failed.

    None keeps the others from being written, since the images that they hold are made already.
    """
    failed: list[str] = []
    for name, write in WRITERS.items():
        if name not in outputs:
            continue
        target = path.with_suffix(f".{name}")
        try:
            write(stack, target)
        except Refusal as refusal:
            failed.append(str(refusal))
        except Exception as error:  # what a writer doesn't foresee is told like the rest
            logger.exception("%s can't be written", target)
            text = " ".join(str(error).split())[:200]
            failed.append(f"{target.name} can't be written ({type(error).__name__}: {text}): please report it.")
    return failed
