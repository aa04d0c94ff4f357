"""Layers as straight-alpha images: their colour where they are invisible, fitting to a size, and composing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .modes import ROLES, Role
from .options import MAX_PIXELS, name_resize_mode
from .refusal import Refusal, list_choices

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Image = NDArray[Any]  # [H, W, 3 or 4], uint8 or float 0..1
Size = tuple[int, int]  # width, height

PYRAMID_STEP = 1.2
ENLARGED_AT_MOST = 2**24  # pixels; of an image that a crop would enlarge beyond that, less is enlarged
CHECKER = (0.45, 0.55)

# What a stack may come to, at every door: the work of putting it together and the memory that it takes.
MAX_LAYERS = 64
MAX_TOGETHER = 2**28  # pixels of all layers


@dataclass(frozen=True, eq=False)
class Layer:
    """One image of a stack: straight RGBA [H, W, 4] uint8, its left top corner at `offset` (x, y) on the canvas."""

    name: str
    image: Bytes
    role: Role
    offset: tuple[int, int] = (0, 0)
    blend: str = "normal"

    def __post_init__(self) -> None:
        check_rgba(self.image, f"Layer {self.name!r}")
        if self.role not in ROLES:
            raise Refusal(f"Layer {self.name!r} has no role {self.role!r}: {list_choices(self.role, ROLES)}.")
        if self.blend != "normal":
            raise Refusal(f"Layer {self.name!r} can't be blended as {self.blend!r}: use blend 'normal'.")


@dataclass(frozen=True, eq=False)
class LayerStack:
    """Layers from bottom to top on a canvas of `size` (width, height), and the text that says how they were made."""

    layers: tuple[Layer, ...]
    size: Size
    infotext: str = ""

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise Refusal(f"A stack of layers can't have the size {self.size[0]}x{self.size[1]}: use 1x1 or more.")
        check_work(self.size, [layer.image.shape[1::-1] for layer in self.layers])


def check_work(canvas: Size, sizes: Sequence[Sequence[int]]) -> None:
    """Refusal when layers of these sizes, or their canvas, are more than is put together."""
    if len(sizes) > MAX_LAYERS:
        raise Refusal(f"There are {len(sizes)} layers, and up to {MAX_LAYERS} are put together: merge some before.")
    for what, most, pixels in (
        (f"The {canvas[0]}x{canvas[1]} of the canvas", MAX_PIXELS, canvas[0] * canvas[1]),
        ("The layers together", MAX_TOGETHER, sum(math.prod(size) for size in sizes)),
    ):
        if pixels > most:
            raise Refusal(f"{what} are {pixels} pixels, and up to {most} are put together: scale the layers down.")


def premultiply(image: Image) -> Floats:
    """Straight RGBA [H, W, 4], uint8 or float 0..1 -> premultiplied float32 0..1."""
    image = to_float(image)
    return np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=-1)


def unpremultiply(image: Image) -> Floats:
    """Premultiplied RGBA [H, W, 4] -> straight float32 0..1; black where alpha is 0."""
    image = to_float(image)
    colour, alpha = image[..., :3], image[..., 3:]
    straight = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
    return np.concatenate([straight, alpha], axis=-1)


def pad_rgb(image: Bytes) -> Floats:
    """Continue the visible colour smoothly into the invisible pixels: straight RGBA [H, W, 4] uint8 -> [H, W, 3] 0..1.

    A pyramid of premultiplied colour, each level 1/1.2 of the last, whose top is one colour that is spread down under
    the visible pixels of every level ("padded RGB": LayerDiffusion, arXiv 2402.17113). An empty image gives black.
    """
    check_rgba(image, "The image to pad")
    level = premultiply(image)
    levels = [level]
    while min(level.shape[:2]) > 1:
        height, width = (int(side / PYRAMID_STEP) for side in level.shape[:2])
        level = _resize(level, width, height, cv2.INTER_AREA)
        levels.append(level)
    total = level.sum(axis=(0, 1), keepdims=True)
    colour: Floats = np.asarray(total[..., :3] / np.maximum(total[..., 3:], np.float32(1e-8)), np.float32)
    for level in reversed(levels):
        colour = _resize(colour, level.shape[1], level.shape[0], cv2.INTER_LINEAR)
        colour = np.asarray(level[..., :3] + colour * (1 - level[..., 3:]), np.float32)
    return colour


def fit(image: Image, size: Size, mode: str = "crop") -> Image:
    """Bring an image [H, W, 3 or 4] to `size` (width, height); what comes back has its type and channels.

    `stretch` scales each side by itself; `crop` fills the size and cuts the excess off evenly; `fill` fits the
    image into the size and fills the rest with the median colour of its border. Four channels are straight RGBA and
    are scaled premultiplied. Floats are neither clipped nor rounded: Lanczos overshoots at edges.
    """
    mode = name_resize_mode(mode)
    if min(size) < 1:
        raise Refusal(f"An image can't be fitted to {size[0]}x{size[1]}: use a size of 1x1 or more.")
    if image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
        raise Refusal(f"An image to fit has the shape [H, W, 3 or 4], not {list(image.shape)}: give RGB or RGBA.")
    if image.shape[1::-1] == tuple(size):
        return image
    transparent = image.shape[2] == 4
    pixels = premultiply(image) if transparent else to_float(image)
    fitted = _fit_pixels(pixels, size, mode)
    if transparent:
        fitted[..., 3] = fitted[..., 3].clip(0, 1)
        fitted = unpremultiply(fitted)
    return to_bytes(fitted) if image.dtype == np.uint8 else fitted.astype(image.dtype, copy=False)


def checkerboard(size: Size, cell: int = 64) -> Floats:
    """Grey squares of about `cell` pixels, 0.45 and 0.55, the darker one in the left top corner: [H, W, 3] float32."""
    rows, columns = (np.arange(side) * max(1, side // cell) // side for side in size[::-1])
    light = (rows[:, None] + columns) % 2
    return np.repeat(np.array(CHECKER, np.float32)[light][..., None], 3, axis=2)


def put_over(top: Image, bottom: Image) -> Floats:
    """Straight RGBA [H, W, 4] over opaque [H, W, 3] or straight RGBA [H, W, 4] -> the same kind as `bottom`, float32.

    Colour that no alpha shows is kept from `top`, so that an image over nothing is that image.
    """
    top, bottom = to_float(top), to_float(bottom)
    colour, alpha = top[..., :3], top[..., 3:]
    if bottom.shape[2] == 3:
        return colour * alpha + bottom * (1 - alpha)
    behind = bottom[..., 3:] * (1 - alpha)
    total = alpha + behind
    share = np.divide(behind, total, out=np.zeros_like(total), where=total > 0)
    return np.concatenate([colour + (bottom[..., :3] - colour) * share, total], axis=-1)


def paint(start: Bytes, layer: Bytes, share: Floats) -> Bytes:
    """A layer painted into the image that it started from, by the share [H, W, 1], 0..1, that a mask gives it.

    Straight RGBA [H, W, 4] uint8. Where the share is 0, the bytes are those of `start`; where it is 1, the layer's.
    """
    mixed = premultiply(layer) * share + premultiply(start) * (1 - share)
    painted = np.round(unpremultiply(mixed) * 255).astype(np.uint8)
    return np.where(share == 0, start, np.where(share == 1, layer, painted))


def composite(layers: LayerStack | Sequence[Layer], background: Image | str | Sequence[int] | None = None) -> Bytes:
    """Put the layers over each other, bottom first, and over a background.

    background: an image [H, W, 3 or 4] of the stack's size, "checker", a colour as (r, g, b) 0..255 or as text
    ("white", "#3366cc"), or None for none. Returns uint8 [H, W, 3], or straight RGBA [H, W, 4] where the background is
    None or has four channels. Computed in float32 and rounded once at the end: exact for one layer over an opaque
    background, and unchanged bytes where a layer is opaque or absent.
    """
    stack = layers if isinstance(layers, LayerStack) else LayerStack(tuple(layers), measure(layers))
    canvas = _paint_background(background, stack.size)
    for layer in stack.layers:
        rows, columns, visible = _cut(layer, stack.size)
        canvas[rows, columns] = put_over(visible, canvas[rows, columns])
    return to_bytes(canvas)


def spread(layer: Layer, size: Size) -> Bytes:
    """A layer alone on a canvas of `size`, transparent around it: straight RGBA [H, W, 4] uint8."""
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    rows, columns, visible = _cut(layer, size)
    canvas[rows, columns] = visible
    return canvas


def _cut(layer: Layer, size: Size) -> tuple[slice, slice, Bytes]:
    """The rows and columns of a canvas of `size` that a layer covers, maybe none, and its pixels there."""
    (x, y), (width, height) = layer.offset, size
    top, left = (min(max(0, start), side) for start, side in ((y, height), (x, width)))
    bottom, right = max(top, min(height, y + layer.image.shape[0])), max(left, min(width, x + layer.image.shape[1]))
    visible = layer.image[max(0, top - y) : max(0, bottom - y), max(0, left - x) : max(0, right - x)]
    return slice(top, bottom), slice(left, right), visible


def check_rgba(image: Image, name: str) -> None:
    """Refuse what isn't uint8 [H, W, 4]; `name` says what it is in the sentence."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 4 or not image.size:
        raise Refusal(f"{name} has to be uint8 [H, W, 4], not {image.dtype} {list(image.shape)}: convert it to RGBA.")


def to_float(image: Image) -> Floats:
    """uint8 to float32 0..1; floats as they are, as float32."""
    if image.dtype == np.uint8:
        return np.asarray(image.astype(np.float32) / np.float32(255), np.float32)
    if image.dtype.kind != "f":
        raise Refusal(f"An image has to be uint8 or float 0..1, not {image.dtype}: convert it.")
    return image.astype(np.float32, copy=False)


def to_bytes(image: Floats) -> Bytes:
    """0..1 to 0..255, rounded and clipped."""
    return np.rint(image * 255).clip(0, 255).astype(np.uint8)


def _resize(image: Floats, width: int, height: int, interpolation: int) -> Floats:
    resized = np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.float32)
    return resized.reshape(height, width, image.shape[2])  # OpenCV drops a last axis of length 1


def _scale(image: Floats, width: int, height: int) -> Floats:
    """Area interpolation when the image gets smaller, Lanczos when it doesn't."""
    shrinks = width * height < image.shape[0] * image.shape[1]
    return _resize(image, width, height, cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


def _fit_pixels(image: Floats, size: Size, mode: str) -> Floats:
    width, height = size
    if mode == "stretch":
        return _scale(image, width, height)
    ratios = width / image.shape[1], height / image.shape[0]
    ratio = max(ratios) if mode == "crop" else min(ratios)
    if mode == "crop" and image.shape[0] * image.shape[1] * ratio**2 > ENLARGED_AT_MOST:
        image = _cut_excess(image, width / ratio, height / ratio)
    wide, high = (max(1, round(side * ratio)) for side in image.shape[1::-1])
    scaled = _scale(image, wide, high)
    if mode == "crop":
        top, left = (high - height) // 2, (wide - width) // 2
        return np.ascontiguousarray(scaled[top : top + height, left : left + width])
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    canvas = np.empty((height, width, image.shape[2]), np.float32)
    canvas[:] = np.median(border, axis=0)
    top, left = (height - high) // 2, (width - wide) // 2
    canvas[top : top + high, left : left + wide] = scaled
    return canvas


def _cut_excess(image: Floats, width: float, height: float) -> Floats:
    """Cut off evenly what lies far outside the window to crop, so that a strip of 3x5000 isn't enlarged as a whole."""
    top, left = (
        max(0, int(side - 4 * window - 16) // 2) for side, window in zip(image.shape[:2], (height, width), strict=True)
    )
    return image[top : image.shape[0] - top, left : image.shape[1] - left]


def measure(layers: Sequence[Layer]) -> Size:
    """The canvas that holds all layers from its left top corner on."""
    if not layers:
        raise Refusal("There is no layer to compose: give one or more.")
    return (
        max(1, *(layer.offset[0] + layer.image.shape[1] for layer in layers)),
        max(1, *(layer.offset[1] + layer.image.shape[0] for layer in layers)),
    )


def _paint_background(background: Image | str | Sequence[int] | None, size: Size) -> Floats:
    """A canvas [H, W, 3 or 4] that may be written to."""
    width, height = size
    match background:
        case None:
            return np.zeros((height, width, 4), np.float32)
        case np.ndarray():  # before the texts, to which an array can't be compared
            return _copy_background(background, size)
        case "checker":
            return checkerboard(size, cell=max(1, min(64, min(size) // 8)))
        case _:
            colour = read_colour(background)
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = np.array(colour, np.float32) / 255
    return canvas


def _copy_background(background: Image, size: Size) -> Floats:
    width, height = size
    if background.ndim != 3 or background.shape[2] not in (3, 4):
        raise Refusal(
            f"A background has the shape [H, W, 3 or 4], not {list(background.shape)}: give an RGB or RGBA image."
        )
    if background.shape[1::-1] != (width, height):
        raise Refusal(
            f"The background is {background.shape[1]}x{background.shape[0]} and the layers are {width}x{height}: "
            "fit it to their size."
        )
    return to_float(background).copy()


def read_colour(colour: str | Sequence[int]) -> tuple[int, ...]:
    """Red, green and blue, 0..255, of a colour's name, "#rrggbb" or three numbers; Refusal otherwise."""
    if not isinstance(colour, str):
        if len(colour) != 3:
            raise Refusal(f"A colour has three values, not {len(colour)}: give red, green and blue, 0 to 255.")
        return tuple(colour)
    from PIL import ImageColor

    try:
        values: tuple[int, ...] = ImageColor.getrgb(colour)
    except ValueError:
        values = ()
    if len(values) != 3:  # or 4, with alpha
        raise Refusal(f"There is no colour {colour[:60]!r}: use a name like 'white', or #rrggbb like '#3366cc'.")
    return values
