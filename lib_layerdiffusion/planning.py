"""What a request comes to on a given model: a Plan, or the Refusal that says why it can't be served; pure."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

from lib_layerdiffusion.modes import Mode, Role, any_row, find_mode
from lib_layerdiffusion.options import MAX_PIXELS, LayerOptions
from lib_layerdiffusion.refusal import Refusal

if TYPE_CHECKING:
    from lib_layerdiffusion.edges import Edges

# The VAE has 8 pixels per latent cell, the UNet halves the latent three times (64 pixels are one cell at its deepest
# level). Sizes in between are sampled at the next multiple of 8 and cropped. The upper bound catches typing errors.
SIZE_STEP = 8
MIN_SIZE = 64
MAX_SIZE = 16384
DECODE_STEP = 64
LARGEST_SEED = 2**32 - 1  # what WebUIs take
STEPS = 20  # of the sampling, where nobody asks for another number


@dataclass(frozen=True)
class Facts:
    """What the host knows about the loaded model and the request."""

    family: str  # "sd15" or "sdxl"; anything else is refused by name
    width: int  # pixels asked for
    height: int
    batch: int = 1  # layer sets, or images when the options' batch_counts is "images"
    steps: int = STEPS
    unet_channels: int = 4  # input channels of the UNet's first conv: 9 for an inpainting checkpoint
    combined_prompts: bool = False  # the host splits the prompt at AND into several conditions per image
    transparent_input: bool = False  # image to image from an RGBA image: the encoder is needed


@dataclass(frozen=True)
class Plan:
    """How a request is served."""

    mode: Mode
    files: tuple[str, ...]  # keys in weights.WEIGHTS: the mode's file, then decoder and encoder as needed
    sets: int
    images: int  # to sample: sets * frames, the frames of a set next to each other
    width: int  # to sample: a multiple of 8
    height: int
    size: tuple[int, int]  # (width, height) asked for: what the sampled images are cropped to
    decode_size: tuple[int, int]  # (width, height) that the transparent decoder runs at: a multiple of 64
    weight: float
    start_at: float
    stop_at: float
    views: int
    prompts: tuple[str, ...]  # additional prompt per frame, "" for none
    edges: Edges  # what is done to the edges of what the transparent decoder makes

    @property
    def frames(self) -> tuple[Role, ...]:
        """Role of each image in a set."""
        return self.mode.frames


def plan(options: LayerOptions, facts: Facts) -> Plan:
    """The plan for these options on this model; Refusal that names the fix when there is none."""
    from lib_layerdiffusion.edges import Edges  # here, since it needs numpy, and `--help` doesn't

    mode = find_mode(options.mode, facts.family)
    check_size(facts.width, facts.height)
    _check_inputs(mode, options, facts)
    check_options(options)
    if _whole(facts.steps, "steps") < 1:
        raise Refusal(f"{facts.steps} sampling steps make no image: ask for at least 1.")
    sets = count_sets(mode, options, facts.batch)
    width, height = (round_up(side, SIZE_STEP) for side in (facts.width, facts.height))
    wants_encoder = facts.transparent_input and mode.encoder
    return Plan(
        mode=mode,
        files=tuple(file for file in (mode.file, mode.decoder, mode.encoder if wants_encoder else None) if file),
        sets=sets,
        images=sets * len(mode.frames),
        width=width,
        height=height,
        size=(facts.width, facts.height),
        decode_size=(round_up(width, DECODE_STEP), round_up(height, DECODE_STEP)),
        weight=options.weight,
        start_at=options.start_at,
        stop_at=options.stop_at,
        views=options.views,
        prompts=tuple(options.prompt(role) for role in mode.frames),
        edges=Edges.of(options),
    )


def check_options(options: LayerOptions) -> None:
    """Refusal for options that don't go together, whatever the model is."""
    from lib_layerdiffusion.edges import Edges

    if options.start_at >= options.stop_at:
        raise Refusal(
            f"start_at {options.start_at:g} is not before stop_at {options.stop_at:g}, so the layer file would never "
            "take effect: lower start_at or raise stop_at."
        )
    makes_transparency = any_row(options.mode).transparent_frame is not None
    if makes_transparency and "over_image" in options.outputs and options.preview_image is None:
        raise Refusal("The output over_image needs an image: give preview_image, or leave over_image out of outputs.")
    Edges.of(options)


def check_size(width: int, height: int) -> None:
    """Refusal when no layers of that size, in pixels, are generated, encoded or decoded."""
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIZE <= _whole(side, name) <= MAX_SIZE:
            raise Refusal(
                f"{width}x{height} can't be generated: width and height must be {MIN_SIZE} to {MAX_SIZE} pixels each."
            )
    if width * height > MAX_PIXELS:
        raise Refusal(f"{width}x{height} has more than the {MAX_PIXELS} pixels that are generated: make it smaller.")


def _check_inputs(mode: Mode, options: LayerOptions, facts: Facts) -> None:
    missing = [role for role in mode.inputs if options.image(role) is None]
    if missing:
        raise Refusal(
            f"Layer mode {mode.name!r} starts from a given {' and '.join(mode.inputs)}: "
            f"give {' and '.join(f'{role}_image' for role in missing)}."
        )
    if mode.first_conv_channels > 4 and facts.unet_channels != 4:
        raise Refusal(
            f"Layer mode {mode.name!r} needs a UNet with 4 input channels, and the loaded one has "
            f"{facts.unet_channels} (an inpainting or editing checkpoint): load an ordinary checkpoint."
        )
    if facts.combined_prompts and (len(mode.frames) > 1 or mode.inputs):
        raise Refusal(
            f"Layer mode {mode.name!r} can't be used with AND in the prompt: join the parts by a comma instead."
        )


def count_sets(mode: Mode, options: LayerOptions, batch: int) -> int:
    """The sets of layers in a batch size, which counts them or, if the options say so, their images."""
    frames = len(mode.frames)
    if _whole(batch, "batch size") < 1:
        raise Refusal(f"A batch size of {batch} makes no image: ask for at least 1.")
    if options.batch_counts == "sets":
        return batch
    if batch % frames:
        raise Refusal(
            f"Layer mode {mode.name!r} makes {frames} images at a time ({', '.join(mode.frames)}), so a batch size "
            f"that counts images can't be {batch}: use {round_up(batch, frames)}."
        )
    return batch // frames


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise Refusal(f"The {name} must be a whole number, not {value!r}.")
    return int(value)


def round_up(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step
