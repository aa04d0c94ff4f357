"""Cutting a motif out of an opaque picture: colour keying, GrabCut, and closed-form matting."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pymatting import estimate_alpha_cf, estimate_foreground_ml

from benchmarks.matting_measures import CLEAR, OPAQUE, Alpha, Rgba, find_unknown
from lib_layerdiffusion.edges import unmix
from lib_layerdiffusion.layers import to_bytes, to_float
from lib_layerdiffusion.train.measures import mark_frame

Picture = NDArray[np.float32]  # [H, W, 3], 0..1
Colour = NDArray[np.float32]  # [3], 0..1
Trimap = NDArray[np.float32]  # [H, W]: 0 background, 1 foreground, 0.5 unknown

SOFTNESS = 0.25  # distance of colours over which a key goes from empty to solid
BAND = 3  # pixels on either side of GrabCut's line that are left to closed-form matting


def read_background(picture: Picture) -> tuple[Colour, float]:
    """The plain background of a picture: its frame's median colour, and the distance within which the frame varies."""
    frame = mark_frame(picture.shape)
    colour = np.median(picture[frame], axis=0).astype(np.float32)
    return colour, float(np.quantile(np.linalg.norm(picture[frame] - colour, axis=-1), 0.98))


def key_by_distance(picture: Picture, background: Colour, tolerance: float) -> Rgba:
    """A colour key: alpha grows with the distance from the background's colour, from `tolerance` on."""
    distance = np.linalg.norm(picture - background, axis=-1)
    return _take_out(picture, np.clip((distance - tolerance) / SOFTNESS, 0, 1), background)


def key_by_least_alpha(picture: Picture, background: Colour, tolerance: float) -> Rgba:
    """Colour to alpha: the least alpha with which a colour over the background gives the picture's."""
    difference = picture - background
    room = np.where(difference > 0, 1 - background, background)
    least = (np.abs(difference) / np.maximum(room, 1e-3)).max(axis=-1).clip(0, 1)
    least[np.linalg.norm(difference, axis=-1) <= tolerance] = 0
    return _take_out(picture, least, background)


def _take_out(picture: Picture, alpha: Alpha, background: Colour) -> Rgba:
    return to_float(unmix(np.dstack([to_bytes(picture), to_bytes(alpha)]), background))


def draw_start(picture: Picture, background: Colour, tolerance: float) -> NDArray[np.uint8]:
    """GrabCut's start where no trimap is given: the frame is background, what has its colour is so probably."""
    near = np.linalg.norm(picture - background, axis=-1) <= tolerance
    start = np.where(near, cv2.GC_PR_BGD, cv2.GC_PR_FGD).astype(np.uint8)
    start[mark_frame(near.shape)] = cv2.GC_BGD
    return start


def start_from_trimap(trimap: Trimap) -> NDArray[np.uint8]:
    """GrabCut's start from a trimap; its unknown pixels begin as probable foreground."""
    known = np.where(trimap <= CLEAR, cv2.GC_BGD, np.where(trimap >= OPAQUE, cv2.GC_FGD, cv2.GC_PR_FGD))
    return known.astype(np.uint8)


def cut_with_grabcut(picture: Picture, start: NDArray[np.uint8]) -> Alpha:
    """GrabCut (Rother et al., 2004), five rounds from `start` [H, W] of OpenCV's GC values; 0 or 1."""
    marks = start.copy()
    if not np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        return np.zeros(marks.shape, np.float32)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(to_bytes(picture)[..., ::-1]), marks, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    return np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)


def widen_line(cut: Alpha) -> Trimap:
    """A trimap from a hard cut: unknown on either side of its line."""
    kernel = np.ones((2 * BAND + 1,) * 2, np.uint8)
    inner, outer = cv2.erode(cut, kernel), cv2.dilate(cut, kernel)
    return np.where(inner == 1, 1, np.where(outer == 0, 0, 0.5)).astype(np.float32)


def draw_trimap(alpha: Alpha) -> Trimap:
    """The trimap of a true alpha: what is solid, what is empty, and the unknown region; nothing is forced into it."""
    return np.where(find_unknown(alpha), 0.5, alpha > 0.5).astype(np.float32)


def has_both(trimap: Trimap) -> bool:
    """Whether some foreground and some background is known, which matting by a trimap needs."""
    return bool((trimap <= CLEAR).any() and (trimap >= OPAQUE).any())


def cut_with_closed_form(picture: Picture, trimap: Trimap) -> Alpha:
    """Closed-form matting (Levin et al., 2008) of pymatting."""
    return estimate_alpha_cf(picture.astype(np.float64), trimap.astype(np.float64)).astype(np.float32)


def with_foreground(picture: Picture, alpha: Alpha) -> Rgba:
    """The cut-out with the foreground's own colours (multi-level estimation, Germer et al., 2020, of pymatting)."""
    colour = estimate_foreground_ml(picture.astype(np.float64), alpha.astype(np.float64))
    return np.dstack([np.clip(colour, 0, 1), alpha]).astype(np.float32)
