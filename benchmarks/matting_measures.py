"""The measures of the comparison with matting: alpha against the truth or a class of sprites, and RGBA over solids."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from lib_layerdiffusion.train.dataset import place
from lib_layerdiffusion.train.measures import psnr

Alpha = NDArray[np.float32]  # [H, W], 0..1
Rgba = NDArray[np.float32]  # [H, W, 4], straight, 0..1
Mask = NDArray[np.bool_]  # [H, W]

CLEAR, OPAQUE = 0.02, 0.98  # alpha up to here counts as empty, from here on as solid
SOFT = (0.1, 0.9)  # alpha between these is half-transparent, above the first visible
GRADIENT_SIGMA = 1.4
CONNECTED_STEP, CONNECTED_FREE = 0.1, 0.15
SOLIDS = {"black": (0, 0, 0), "white": (1, 1, 1), "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
# where a generated motif may lie, compared with a sprite that fills its canvas
ZOOMS = np.arange(0.60, 0.961, 0.03)
ANGLES = np.arange(-10, 10.1, 5)  # degrees
REACH = 20  # pixels at most off the centre, both ways


def find_unknown(alpha: Alpha, reach: int = 2) -> Mask:
    """The unknown region of a true alpha: its half-transparent pixels, dilated by `reach` pixels."""
    soft = ((alpha > CLEAR) & (alpha < OPAQUE)).astype(np.uint8)
    return cv2.dilate(soft, np.ones((2 * reach + 1,) * 2, np.uint8)) > 0


def measure_sad(made: Alpha, true: Alpha, unknown: Mask) -> float:
    """Sum of absolute differences over the unknown region."""
    return float(np.abs(made - true)[unknown].sum())


def measure_mse(made: Alpha, true: Alpha, unknown: Mask) -> float:
    """Mean squared difference over the unknown region."""
    return float(np.square(made - true)[unknown].mean())


def measure_gradient_error(made: Alpha, true: Alpha, unknown: Mask) -> float:
    """Sum of squared differences of the gradients' magnitudes (Rhemann et al., CVPR 2009), over the unknown region.

    Gradients are those of Gaussian derivative filters with a deviation of 1.4 pixels and unit energy.
    """
    return float(np.square(_gradient(made) - _gradient(true))[unknown].sum())


def _gradient(alpha: Alpha) -> NDArray[np.float64]:
    half = int(np.ceil(GRADIENT_SIGMA * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * GRADIENT_SIGMA * 0.01))))
    x = np.arange(-half, half + 1)
    bell = np.exp(-(x**2) / (2 * GRADIENT_SIGMA**2))
    kernel = np.outer(bell, x * bell)
    kernel /= np.sqrt(np.square(kernel).sum())
    across, down = (
        cv2.filter2D(alpha.astype(np.float64), -1, each, borderType=cv2.BORDER_REPLICATE) for each in (kernel, kernel.T)
    )
    return np.hypot(across, down)


def measure_connectivity_error(made: Alpha, true: Alpha, unknown: Mask) -> float:
    """Sum of differences of the pixels' connectedness (Rhemann et al., CVPR 2009), over the unknown region.

    A pixel is as connected as the alpha by which it exceeds the highest threshold, in steps of 0.1, at which it still
    belongs to the largest region that both images have in common; up to 0.15 of excess is free.
    """
    level = np.full(true.shape, -1.0)
    for step in range(1, 11):
        both = ((made >= step * CONNECTED_STEP - 1e-6) & (true >= step * CONNECTED_STEP - 1e-6)).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(both, connectivity=4)
        largest = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else np.zeros_like(both, bool)
        level[(level < 0) & ~largest] = (step - 1) * CONNECTED_STEP
    level[level < 0] = 1
    excess = [alpha - level for alpha in (made, true)]
    connected = [1 - each * (each >= CONNECTED_FREE) for each in excess]
    return float(np.abs(connected[0] - connected[1])[unknown].sum())


def measure_rgba(made: Rgba, true: Rgba) -> tuple[float, float]:
    """PSNR in dB and SSIM (Gaussian window, deviation 1.5) over solid backgrounds, means over these."""
    values: list[tuple[float, float]] = []
    for colour in SOLIDS.values():
        shown, wanted = (
            rgba[..., :3] * rgba[..., 3:] + np.array(colour, np.float32) * (1 - rgba[..., 3:]) for rgba in (made, true)
        )
        db = psnr(*(torch.from_numpy(each.transpose(2, 0, 1).copy())[None] for each in (shown, wanted)))
        ssim = structural_similarity(
            shown, wanted, channel_axis=2, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
        )
        values.append((float(db), float(ssim)))
    mean = np.mean(values, axis=0)
    return float(mean[0]), float(mean[1])


def soft_share(alpha: Alpha) -> float:
    """Share of the visible pixels that are half-transparent; 0 where nothing is visible."""
    visible = alpha > SOFT[0]
    return float((alpha[visible] < SOFT[1]).mean()) if visible.any() else 0.0


def compare_levels(made: Alpha, sprite: Alpha) -> float:
    """Earth mover's distance between the alphas of two images' visible pixels: blind to shape, size and place."""
    ranks = (np.arange(256) + 0.5) / 256
    levels = [
        np.quantile(alpha[alpha > SOFT[0]], ranks) if (alpha > SOFT[0]).any() else 0 * ranks for alpha in (made, sprite)
    ]
    return float(np.abs(levels[0] - levels[1]).mean())


def overlap(made: Alpha, sprite: Alpha) -> float:
    """Intersection over union of two alphas of one size, in which half-transparent pixels count by their alpha."""
    return float(np.minimum(made, sprite).sum() / max(float(np.maximum(made, sprite).sum()), 1e-6))


class Placements:
    """A sprite's alpha [S, S] in all sizes, small turns and mirror images in which a motif may have been generated."""

    def __init__(self, sprite: Alpha, size: int) -> None:
        views = [
            place(sprite, size, zoom, angle, np.zeros(2), flip)
            for flip in (False, True)
            for zoom in ZOOMS
            for angle in ANGLES
        ]
        self._views = np.stack(views)
        self._spectra = np.conj(np.fft.rfft2(self._views))
        self._energies = np.square(self._views).sum(axis=(1, 2))

    def find_nearest(self, made: Alpha) -> Alpha:
        """The view, shifted by up to `REACH` pixels, nearest to `made` [size, size] by Tanimoto's coefficient."""
        common = np.fft.irfft2(np.fft.rfft2(made) * self._spectra, s=made.shape)
        likeness = common / (np.square(made).sum() + self._energies[:, None, None] - common + 1e-6)
        shifts = np.arange(-REACH, REACH + 1)
        near = likeness[:, shifts[:, None], shifts]
        view, down, across = np.unravel_index(int(near.argmax()), near.shape)
        return np.roll(self._views[view], (int(shifts[down]), int(shifts[across])), axis=(0, 1))


def find_nearest(made: Alpha, placements: Sequence[Placements]) -> Alpha:
    """The sprite of a class, in the pose, that overlaps most with a generated alpha [H, W]."""
    return max((each.find_nearest(made) for each in placements), key=lambda view: overlap(made, view))
