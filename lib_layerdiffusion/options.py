"""The options of a generation: a field is a widget, a flag, an API key, an infotext key and a library argument."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from lib_layerdiffusion.modes import MODE_NAMES, Role, name_mode
from lib_layerdiffusion.refusal import Refusal, list_choices

if TYPE_CHECKING:  # numpy and Pillow are imported where an image is given, so that `--help` needs neither
    import numpy as np
    from PIL import Image
    from typing_extensions import Self

    LayerImage = np.ndarray[Any, Any] | Image.Image | str | os.PathLike[str] | None

# By name: what WebUIs call it.
RESIZE_MODES: dict[str, str] = {
    "crop": "Crop and Resize",
    "stretch": "Just Resize",
    "fill": "Resize and Fill",
}
OUTPUTS: tuple[str, ...] = (
    "rgba",
    "background",
    "blend",
    "checker",
    "over_black",
    "over_white",
    "over_image",
    "alpha",
    "recomposite",
    "psd",
    "ora",
)
# The options that say what is done to the edges of a transparent image, in this order.
EDGES: tuple[str, ...] = ("defringe", "black_point", "white_point", "gamma", "choke", "feather", "threshold")
MAX_PIXELS = 2**26  # of an image that is read or made and of a canvas, at every door: 8192 x 8192
AS_NEEDED = 0  # views: two, and the others where these don't agree
VIEW_COUNTS: tuple[int, ...] = (AS_NEEDED, 1, 2, 4, 8)

# The reference extension's positional arguments, in its order. `output_origin` never did anything there.
POSITIONAL: tuple[str, ...] = (
    "enabled",
    "mode",
    "weight",
    "stop_at",
    "foreground_image",
    "background_image",
    "blend_image",
    "resize_mode",
    "output_origin",
    "foreground_prompt",
    "background_prompt",
    "blend_prompt",
)


def option(default: Any, kind: str, label: str, help: str, **limits: Any) -> Any:
    """A field of a class of options."""
    return field(default=default, metadata={"kind": kind, "label": label, "help": help, **limits})


class Checked:
    """A frozen dataclass of options. Any value that isn't allowed is a Refusal at construction: an instance is valid.

    Each field's metadata has `kind` (switch, number, choice, choices, text, texts, image), `label`, `help` and, as they
    apply, `minimum`, `maximum`, `step` and `choices`. Images are carried, not read: an array, a Pillow image, a path or
    an encoded string, which the caller, who knows where it comes from, turns into pixels.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, check(each, getattr(self, each.name)))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))

    __hash__ = None  # pyright: ignore[reportAssignmentType] - arrays have no hash

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Options by name; what is absent or None keeps its default. Refusal on an unknown name or a bad value."""
        names = [each.name for each in fields(cls)]
        for name in values:
            if name not in names:
                raise Refusal(f"There is no option {name!r}: {list_choices(name, names)}.")
        return cls(**{name: value for name, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """All options by name, tuples as lists; `from_dict` reads it back."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class LayerOptions(Checked):
    """What a user can choose for a generation."""

    enabled: bool = option(True, "switch", "Enable", "Generate transparent layers.")
    mode: str = option(
        "foreground",
        "choice",
        "Layer mode",
        "What is generated from what; the base-model family is read from the loaded checkpoint.",
        choices=MODE_NAMES,
    )
    weight: float = option(
        1.0,
        "number",
        "Weight",
        "Strength of the layer file: 0 is the unmodified model, 1 the file as trained.",
        minimum=0.0,
        maximum=2.0,
        step=0.05,
    )
    start_at: float = option(
        0.0,
        "number",
        "Start at",
        "Fraction of the sampling from which the layer file takes effect.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    stop_at: float = option(
        1.0,
        "number",
        "Stop at",
        "Fraction of the sampling after which the unmodified model continues.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    views: int = option(
        8,
        "choice",
        "Decode quality",
        "Turned and mirrored views whose median is the transparent image: 8 is best, 1 fastest; as needed (0) takes "
        "2, and all 8 where these don't agree.",
        choices=VIEW_COUNTS,
    )
    # `option` returns a dataclass field, so nothing mutable is shared.
    foreground_image: LayerImage = option(None, "image", "Foreground image", "RGBA, for modes that start from one.")  # noqa: RUF009
    background_image: LayerImage = option(None, "image", "Background image", "For modes that start from one.")  # noqa: RUF009
    blend_image: LayerImage = option(None, "image", "Blend image", "Foreground over background, where needed.")  # noqa: RUF009
    resize_mode: str = option(
        "crop",
        "choice",
        "Resize mode",
        "How given images are brought to the generated size: crop (crop and resize), stretch (just resize), "
        "fill (resize and fill).",
        choices=tuple(RESIZE_MODES),
    )
    foreground_prompt: str = option("", "text", "Foreground prompt", "Put before the prompt for the foreground only.")
    background_prompt: str = option("", "text", "Background prompt", "Put before the prompt for the background only.")
    blend_prompt: str = option("", "text", "Blend prompt", "Put before the prompt for the blend only.")
    outputs: tuple[str, ...] = option(
        ("rgba", "background", "blend"),
        "choices",
        "Outputs",
        "What is returned, if the mode makes it: layers, previews (checker, over_black, over_white, over_image, alpha, "
        "recomposite), files (psd, ora).",
        choices=OUTPUTS,
    )
    preview_image: LayerImage = option(  # noqa: RUF009
        None, "image", "Image for the preview", "What the output over_image shows the transparent image over."
    )
    batch_counts: str = option(
        "sets",
        "choice",
        "Batch size counts",
        "sets: a batch of 1 gives all layers of a set; images: the batch must be a multiple of the layers in a set.",
        choices=("sets", "images"),
    )
    defringe: str = option(
        "",
        "text",
        "Defringe",
        "Colour to take out of half-transparent pixels: grey, a name, or #rrggbb; empty: none.",
    )
    black_point: float = option(
        0.0,
        "number",
        "Black point",
        "Alpha up to which a pixel becomes invisible.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    white_point: float = option(
        1.0, "number", "White point", "Alpha from which a pixel becomes opaque.", minimum=0.0, maximum=1.0, step=0.01
    )
    gamma: float = option(
        1.0,
        "number",
        "Gamma of alpha",
        "Above 1, what is half-transparent becomes more opaque.",
        minimum=0.1,
        maximum=10.0,
        step=0.1,
    )
    choke: float = option(
        0.0,
        "number",
        "Choke",
        "Pixels by which the shape shrinks; below 0, it grows.",
        minimum=-64.0,
        maximum=64.0,
        step=0.5,
    )
    feather: float = option(
        0.0, "number", "Feather", "Pixels over which the edge is softened.", minimum=0.0, maximum=64.0, step=0.5
    )
    threshold: float = option(
        0.0,
        "number",
        "Threshold",
        "For pixel art: alpha from which a pixel becomes opaque, while the others become invisible; 0: off.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    atlas: bool = option(
        False,
        "switch",
        "Sheet with JSON",
        "All transparent pictures of the job on one sheet (atlas), with the JSON that game engines read.",
    )
    atlas_form: str = option(
        "hash",
        "choice",
        "Form of the JSON",
        "TexturePacker's: hash has the frames by their names, array in their order.",
        choices=("hash", "array"),
    )
    atlas_trim: bool = option(True, "switch", "Trim", "Cut off invisible borders; the JSON says where they were.")
    atlas_common_canvas: bool = option(
        False, "switch", "Common canvas", "First bring all to the largest width and height, each in the middle."
    )
    atlas_power_of_two: bool = option(
        False, "switch", "Power of two", "Sides of the sheet are 256, 512, 1024 ... pixels."
    )
    atlas_padding: int = option(
        2, "number", "Padding", "Empty pixels between two pictures of the sheet.", minimum=0, maximum=64, step=1
    )
    atlas_extrude: int = option(
        0,
        "number",
        "Extrusion",
        "Pixels by which each picture's outermost ones are repeated, for opaque tiles.",
        minimum=0,
        maximum=64,
        step=1,
    )
    atlas_pivot_x: float = option(
        0.5,
        "number",
        "Pivot x",
        "Where a sprite's origin is: 0 at its left edge, 1 at its right.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    atlas_pivot_y: float = option(
        0.5,
        "number",
        "Pivot y",
        "Where a sprite's origin is: 0 at its top, 1 at its bottom.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    atlas_max_side: int = option(
        4096,
        "number",
        "Largest side",
        "Of a sheet, in pixels; what doesn't fit goes to further sheets.",
        minimum=16,
        maximum=16384,
        step=16,
    )
    animation: bool = option(
        False, "switch", "Animation", "All transparent pictures of the job, one after the other, repeated for ever."
    )
    animation_format: str = option(
        "png",
        "choice",
        "Format of the animation",
        "png (APNG), or webp, which is smaller and drops the colour of invisible pixels.",
        choices=("png", "webp"),
    )
    animation_fps: float = option(
        12.0,
        "number",
        "Pictures in a second",
        "How fast the animation runs.",
        minimum=0.1,
        maximum=100.0,
        step=0.1,
    )

    @classmethod
    def from_positional(cls, values: Sequence[Any] | None) -> LayerOptions:
        """Options from the reference extension's positional list: short lists and None entries take its defaults.

        As there, nothing is enabled unless the first entry says so, a checker preview comes after the layers, and the
        batch size counts images.
        """
        values = values or ()
        if len(values) > len(POSITIONAL):
            raise Refusal(
                f"Got {len(values)} positional arguments: send at most {len(POSITIONAL)} "
                f"({', '.join(POSITIONAL)}), or one object with named options."
            )
        named = {name: value for name, value in zip(POSITIONAL, values, strict=False) if value is not None}
        named.pop("output_origin", None)
        layers = cls.outputs  # the class attribute is the field's default
        return cls.from_dict({"enabled": False, "outputs": (*layers, "checker"), "batch_counts": "images"} | named)

    def image(self, role: Role) -> LayerImage:
        """The image given for a role."""
        return getattr(self, f"{role}_image")

    def prompt(self, role: Role) -> str:
        """The additional prompt for a role, "" if there is none."""
        return getattr(self, f"{role}_prompt")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of what `from_dict` takes."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "LayerDiffusion options",
            "type": "object",
            "additionalProperties": False,
            "properties": {each.name: _describe(each) for each in fields(cls)},
        }


FIELDS: Mapping[str, Field[Any]] = {each.name: each for each in fields(LayerOptions)}


def as_in_a_generation(name: str) -> Any:
    """A field of another class of options with the default and the description that it has in `LayerOptions`."""
    return field(default=FIELDS[name].default, metadata=FIELDS[name].metadata)


def parse(name: str, text: str) -> Any:
    """The value of one of `FIELDS` from its text, as flags and infotexts have it; Refusal when it isn't allowed.

    Several choices are joined by "+".
    """
    return parse_field(FIELDS[name], text)


def parse_field(option: Field[Any], text: str) -> Any:
    """As `parse`, for a field of any class of options."""
    readers: dict[str, Any] = {"number": float, "choice": type(option.default), "choices": lambda text: text.split("+")}
    value = text
    with contextlib.suppress(ValueError):  # text that isn't a number is refused as it is
        value = readers.get(option.metadata["kind"], str)(text)
    return check(option, value)


def check_text(name: str, value: Any) -> str:
    """The value itself, if it is a text that every encoder takes; Refusal otherwise."""
    if not isinstance(value, str):
        raise Refusal(f"{name} must be text, not {_show(value)}.")
    if half := re.search("[\ud800-\udfff]", value):
        raise Refusal(
            f"{name} has half of a character at position {half.start() + 1} (a lone surrogate, U+{ord(half[0]):04X}), "
            "which no encoding takes: send the text as UTF-8."
        )
    return value


def name_resize_mode(text: str) -> str:
    """The name of a resize mode, whether `text` is that or what WebUIs call it, in any case; Refusal otherwise.

    In their code "Just Resize" is RESIZE.
    """
    wanted = text.strip().casefold().replace("_", " ")
    for name, title in RESIZE_MODES.items():
        if wanted in (name, title.casefold(), title.casefold().removeprefix("just ")):
            return name
    raise Refusal(f"There is no resize mode {_show(text)}: {list_choices(text, RESIZE_MODES)}.")


def _describe(option: Field[Any]) -> dict[str, Any]:
    """One option's JSON schema."""
    about = option.metadata
    entry: dict[str, Any] = {"title": about["label"], "description": about["help"]}
    match about["kind"]:
        case "switch":
            entry |= {"type": "boolean"}
        case "number":
            kind = "integer" if _is_whole(option) else "number"
            entry |= {"type": kind, "minimum": about["minimum"], "maximum": about["maximum"]}
        case "choice":
            entry |= {"enum": list(about["choices"])}
        case "choices":
            entry |= {"type": "array", "minItems": 1, "items": {"enum": list(about["choices"])}}
        case "image":
            entry |= {"type": ["string", "null"], "contentEncoding": "base64"}
        case _:
            entry |= {"type": "string"}
    default = option.default
    return entry | {"default": list(default) if isinstance(default, tuple) else default}


def check(option: Field[Any], value: Any) -> Any:
    """The value in its canonical form; Refusal when it isn't allowed."""
    match option.metadata["kind"]:
        case "switch":
            if isinstance(value, bool):
                return value
            raise _wrong(option, value, "true or false")
        case "number":
            return _check_number(option, value)
        case "choice":
            return _check_choice(option, value)
        case "choices":
            if not isinstance(value, list | tuple) or not value:
                raise _wrong(option, value, f"a list with one or more of {', '.join(option.metadata['choices'])}")
            return tuple(dict.fromkeys(_check_choice(option, each) for each in value))
        case "image":
            return _check_image(option, value)
        case "texts":
            return _check_texts(option, value)
        case _:
            return check_text(option.name, value)


def _check_number(option: Field[Any], value: Any) -> float:
    low, high = option.metadata["minimum"], option.metadata["maximum"]
    whole = _is_whole(option)
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high or (whole and value % 1):
        raise _wrong(option, value, f"a {'whole ' if whole else ''}number from {low:g} to {high:g}")
    return int(float(value)) if whole else float(value)


def _is_whole(option: Field[Any]) -> bool:
    return isinstance(option.default, int)


def _check_image(option: Field[Any], value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str | os.PathLike):
        return value
    import numpy as np
    from PIL import Image

    if isinstance(value, np.ndarray) and value.ndim not in (2, 3):
        raise Refusal(f"{option.name} must have the shape [H, W] or [H, W, C], not {list(value.shape)}.")
    if not isinstance(value, np.ndarray | Image.Image):
        raise _wrong(option, value, "an array, a Pillow image, a path, an encoded string or nothing")
    return value


def _check_texts(option: Field[Any], value: Any) -> tuple[str, ...]:
    """Texts without the empty ones: a list of them, or one text with one on each line."""
    lines = value.splitlines() if isinstance(value, str) else value
    if not isinstance(lines, list | tuple):
        raise _wrong(option, value, "a list of texts, or a text with one on each line")
    return tuple(filter(None, (check_text(option.name, line).strip() for line in lines)))


def _check_choice(option: Field[Any], value: Any) -> Any:
    choices: tuple[Any, ...] = option.metadata["choices"]
    if isinstance(value, str):
        name = {"mode": name_mode, "resize_mode": name_resize_mode}.get(
            option.name, lambda text: text.strip().casefold()
        )
        value = name(value)
    if not isinstance(value, bool) and isinstance(value, str | Real) and value in choices:
        return choices[choices.index(value)]
    if isinstance(value, str) and not isinstance(choices[0], str):
        raise Refusal(
            f"{option.name} can't be the text {_show(value)}: send one of the numbers {', '.join(map(str, choices))}."
        )
    asked = value if isinstance(value, str) else ""
    raise Refusal(f"{option.name} can't be {_show(value)}: {list_choices(asked, choices)}.")


def _wrong(option: Field[Any], value: Any, allowed: str) -> Refusal:
    return Refusal(f"{option.name} must be {allowed}, not {_show(value)}.")


def _show(value: Any) -> str:
    """A value as a refusal names it: short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; lists in thousands of lists
        return f"a value that is too long to show (of the kind {type(value).__name__})"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if not hasattr(one, "dtype"):
        return bool(one == other)
    return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())
