"""Runs the passes of a scene and puts their layers together; also when one ends early.

Library, command line and WebUI give `make_scene` a function that makes one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .edges import clean_edges
from .layers import Bytes, Layer, LayerStack, Size, composite
from .modes import Role
from .refusal import Refusal
from .scene import Pass, ScenePlan
from .views import Cancelled

NOTED_DIFFERENCE = 0.06  # of 1, between a blend and the recomposite, from which on the user is told
TRUSTED_ALPHA = (0.1, 0.3)  # below the first a blend says nothing about the colour, from the second on all


@dataclass(frozen=True, eq=False)
class Blend:
    """The picture in which the model itself saw layers together, RGBA uint8 [H, W, 4]."""

    name: str
    image: Bytes
    difference: float | None  # mean distance 0..1 of its colours from the layers' recomposite, if those are all there


@dataclass(frozen=True, eq=False)
class MadeScene:
    """What came of a scene: its complete layers, and why it isn't whole if something ended it."""

    stack: LayerStack
    blends: tuple[Blend, ...]
    unmade: tuple[str, ...] = ()  # names of the layers that are missing
    error: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user ended it."""
        return isinstance(self.error, Cancelled | KeyboardInterrupt)

    def pictures(self, outputs: Collection[str]) -> Iterator[tuple[str, Bytes]]:
        """The images among the outputs by name, uint8: the layers from bottom to top, the recomposite, the blends.

        Foregrounds are straight RGBA; the others are RGB where they are opaque.
        """
        if "layers" in outputs:
            for layer in self.stack.layers:
                yield layer.name, layer.image if layer.role == "foreground" else _drop_alpha(layer.image)
        if "recomposite" in outputs and len(self.stack.layers) > 1:
            yield "recomposite", _drop_alpha(composite(self.stack))
        if "blend" in outputs:
            yield from ((blend.name, _drop_alpha(blend.image)) for blend in self.blends)

    @property
    def notes(self) -> list[str]:
        """Sentences on what came out otherwise than asked for."""
        sentences: list[str] = []
        if self.error is not None:
            reason = "was interrupted" if self.interrupted else f"ended early ({str(self.error).rstrip('.')})"
            kept = ", ".join(layer.name for layer in self.stack.layers)
            sentences.append(f"The scene {reason}: {kept} kept, {', '.join(self.unmade) or 'no layer'} not made.")
        return sentences + [
            f"The {each.name} differs from the layers put together by {each.difference:.1%} on average."
            for each in self.blends
            if each.difference is not None and each.difference > NOTED_DIFFERENCE
        ]


Run = Callable[[Pass, Mapping[Role, Bytes]], Mapping[Role, Bytes]]


def make_scene(
    plan: ScenePlan, run: Run, given: Mapping[Role, Bytes], size: Size, match_blend: bool = False, infotext: str = ""
) -> MadeScene:
    """Run the passes and put their layers together.

    run: makes a pass from the images that it is given: straight RGBA uint8 of `size` (width, height) by role, like
    what comes back. given: the given layers. Cancelled or Ctrl-C in a pass, or any exception of it, ends the scene with
    the layers that are complete; it is raised if there is none.
    """
    images: dict[str, Bytes] = {name: given[role] for role, name in plan.given.items()}
    differences: dict[str, float] = {}
    ended: BaseException | None = None
    for each in plan.passes:
        try:
            made = run(each, {role: _flatten(images, names) for role, names in each.inputs.items()})
            _check_sizes(each, made, size)
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - whatever it is, what is complete is kept
            ended = error
            break
        images |= {name: made[role] for role, name in each.makes.items()}
        complete = {
            name: shown
            for name, shown in plan.blends.items()
            if name not in differences and {name, *shown} <= images.keys()
        }
        for name, shown in complete.items() if match_blend else ():
            top, beneath = shown[-1], _flatten(images, shown[:-1])
            images[top] = take_colour(images[top], beneath, images[name])
        if foreground := each.makes.get("foreground"):  # with the alpha that its blend shows until here
            images[foreground] = clean_edges(images[foreground], plan.edges)
        for name, shown in complete.items():
            differences[name] = measure_difference(images[name], _flatten(images, shown))
    layers = tuple(Layer(name, images[name], role) for name, role in plan.layers if name in images)
    if ended is not None and len(layers) == len(plan.given):
        raise ended
    return MadeScene(
        LayerStack(layers, size, infotext),
        tuple(Blend(name, images[name], differences.get(name)) for name in plan.blends if name in images),
        tuple(name for name, _ in plan.layers if name not in images),
        ended,
    )


def take_colour(foreground: Bytes, background: Bytes, blend: Bytes) -> Bytes:
    """The foreground in the colours in which a blend shows it over the background; all RGBA uint8 of one size.

    c = (blend - (1 - a) * background) / a, bounded to 0..1. Where alpha is small that says little about the colour, so
    the foreground's own is kept there, with a gradual transition; alpha is unchanged.
    """
    own, behind, seen = (image.astype(np.float32) / 255 for image in (foreground, background, blend))
    alpha = own[..., 3:]
    low, high = TRUSTED_ALPHA
    share = ((alpha - low) / (high - low)).clip(0, 1)
    solved = ((seen[..., :3] - (1 - alpha) * behind[..., :3]) / np.maximum(alpha, low)).clip(0, 1)
    colour = own[..., :3] + share * (solved - own[..., :3])
    return np.dstack([np.rint(colour * 255).astype(np.uint8), foreground[..., 3]])


def measure_difference(one: Bytes, other: Bytes) -> float:
    """Mean distance of the colours of two images [H, W, 3 or 4] uint8, 0..1."""
    return float(np.abs(one[..., :3].astype(np.int16) - other[..., :3]).mean() / 255)


def _drop_alpha(image: Bytes) -> Bytes:
    return image[..., :3] if (image[..., 3] == 255).all() else image


def _flatten(images: Mapping[str, Bytes], names: Sequence[str]) -> Bytes:
    """The composite of the images of these names, from bottom to top, RGBA uint8."""
    return composite([Layer(name, images[name], "foreground") for name in names])


def _check_sizes(each: Pass, made: Mapping[Role, Bytes], size: Size) -> None:
    for role, name in each.makes.items():
        height, width = made[role].shape[:2]
        if (width, height) != size:
            raise Refusal(
                f"The layer {name!r} came back as {width}x{height} instead of {size[0]}x{size[1]}: switch off what "
                "changes the size of pictures."
            )
