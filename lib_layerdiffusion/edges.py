"""Edges of a transparent image: a background's colour taken out of them, alpha's levels, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .layers import Bytes, Floats, check_rgba, pad_rgb, read_colour, to_bytes, to_float
from .options import EDGES, Checked, as_in_a_generation
from .refusal import Refusal

NEUTRAL_GREY = "#808080"  # what LayerDiffusion composites a picture on before its VAE sees it


@dataclass(frozen=True, eq=False)
class Edges(Checked):
    """What is done to the edges, in this order; as constructed without arguments, nothing.

    The fields are those of LayerOptions. A value that isn't allowed is a Refusal at construction.
    """

    defringe: str = as_in_a_generation("defringe")
    black_point: float = as_in_a_generation("black_point")
    white_point: float = as_in_a_generation("white_point")
    gamma: float = as_in_a_generation("gamma")
    choke: float = as_in_a_generation("choke")
    feather: float = as_in_a_generation("feather")
    threshold: float = as_in_a_generation("threshold")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.black_point >= self.white_point:
            raise Refusal(
                f"black_point {self.black_point:g} must be below white_point {self.white_point:g}: lower the one or "
                "raise the other."
            )
        self.background()

    @classmethod
    def of(cls, options: Checked) -> Edges:
        """The part of a generation's or a scene's options that is about edges."""
        return cls(**{name: getattr(options, name) for name in EDGES})

    @property
    def off(self) -> bool:
        """Whether nothing is done."""
        return self == Edges()

    def background(self) -> Floats:
        """The colour to unmix [3], 0..1; neutral grey where there is none."""
        chosen = NEUTRAL_GREY if self.defringe.strip().casefold() in ("", "grey", "gray") else self.defringe
        return to_float(np.array(read_colour(chosen), np.uint8))


def clean_edges(image: Bytes, edges: Edges) -> Bytes:
    """Apply `edges` to straight RGBA [H, W, 4] uint8; the very same array when they are off.

    Colour is touched by `defringe` alone, except where alpha was 0: what becomes visible there gets the colour of the
    visible pixels around it.
    """
    check_rgba(image, "The image whose edges are to be cleaned")
    if edges.off:
        return image
    colour, alpha = image[..., :3], to_float(image[..., 3])
    if edges.defringe:
        colour = unmix(image, edges.background())[..., :3]
    alpha = _set_levels(alpha, edges)
    alpha = _choke(alpha, edges.choke)
    if edges.feather:
        blurred = cv2.GaussianBlur(alpha, (0, 0), edges.feather / 2, borderType=cv2.BORDER_REPLICATE)
        alpha = np.asarray(blurred, np.float32)
    if edges.threshold:
        alpha = (alpha >= np.float32(edges.threshold)).astype(np.float32)
    cleaned = np.dstack([colour, to_bytes(alpha)])
    new = (image[..., 3] == 0) & (cleaned[..., 3] > 0)
    if new.any():
        known = np.dstack([colour, image[..., 3]])
        cleaned[new, :3] = to_bytes(pad_rgb(known))[new]
    return cleaned


def unmix(image: Bytes, background: Floats) -> Bytes:
    """Take a background's colour [3], 0..1, out of the half-transparent pixels of an image that was cut from it.

    Such an image [H, W, 4] uint8 has the colour c = a * f + (1 - a) * b, of which f is wanted:
    f = (c - (1 - a) * b) / a, clipped to what a colour can be. Invisible pixels get the colour around them, so that no
    scaling brings b back.
    """
    mixed, alpha = to_float(image[..., :3]), to_float(image[..., 3:])
    colour = np.divide(mixed - (1 - alpha) * background, alpha, out=np.zeros_like(mixed), where=alpha > 0)
    pure = np.dstack([to_bytes(colour), image[..., 3]])
    hidden = image[..., 3] == 0
    if hidden.any():
        pure[hidden, :3] = to_bytes(pad_rgb(pure))[hidden]
    return pure


def _set_levels(alpha: Floats, edges: Edges) -> Floats:
    black, white = np.float32(edges.black_point), np.float32(edges.white_point)
    if (black, white) != (0, 1):
        alpha = ((alpha - black) / (white - black)).clip(0, 1)
    return alpha if edges.gamma == 1 else np.asarray(alpha ** np.float32(1 / edges.gamma), np.float32)


def _choke(alpha: Floats, pixels: float) -> Floats:
    """Erode alpha by a disc of so many pixels, or dilate it; between whole numbers, the mean of both by their distance.

    What the border of the image cuts stays whole there.
    """
    change = cv2.erode if pixels > 0 else cv2.dilate
    whole, part = divmod(abs(pixels), 1)

    def by(radius: int) -> Floats:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        return np.asarray(change(alpha, disc), np.float32) if radius else alpha

    near = by(int(whole))
    return near + np.float32(part) * (by(int(whole) + 1) - near) if part else near
