"""What an eye sees in a picture, as numbers: likeness, detail, the width of alpha's edges, connected parts, boxes."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GREY = (0.299, 0.587, 0.114)
FAINT = 0.05  # alpha below which a pixel isn't a part of the motif
FRAME = 4  # pixels of the outer frame
EDGE = (0.1, 0.9)  # alpha between these belongs to an edge


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures [B, C, H, W] with values in 0..1, one per picture."""
    return -10 * torch.log10((image - target).pow(2).mean(dim=(1, 2, 3)).clamp_min(1e-10))


def detail(image: Tensor) -> Tensor:
    """Variance of the Laplacian of the grey picture, times 10,000; pictures [B, 3, H, W], 0..1, one value each."""
    grey = (image * image.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
    kernel = image.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(grey, kernel).var(dim=(1, 2, 3)) * 1e4


def edge_width(alpha: NDArray[np.float32]) -> float:
    """Mean width in pixels of the edge of an opaque motif, alpha [H, W], 0..1.

    The number of pixels in the edge, over the length of the line where alpha passes one half.
    """
    inside = (alpha > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    length = sum(cv2.arcLength(contour, closed=True) for contour in contours)
    return float(((alpha > EDGE[0]) & (alpha < EDGE[1])).sum() / max(length, 1.0))


def count_parts(alpha: NDArray[np.float32], smallest: float = 0.002) -> int:
    """Number of connected parts of a motif, alpha [H, W]; specks below that share of the area don't count."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mark_body(alpha), connectivity=8)
    return sum(int(stats[i, cv2.CC_STAT_AREA]) >= smallest * alpha.size for i in range(1, count))


def mark_body(alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """1 where alpha [H, W] is above half of the motif's median, at most above one half; 0 elsewhere.

    So a ghost whose alpha is about one half all over is whole, and so is a faint one.
    """
    seen = alpha[alpha > FAINT]
    return (alpha > (min(0.5, float(np.median(seen)) / 2) if seen.size else 0.5)).astype(np.uint8)


def mark_frame(size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The outer frame of a picture of this height and width: [H, W]."""
    frame = np.ones(size[:2], bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    return frame


def find_box(alpha: NDArray[np.generic], above: float = 0.0) -> tuple[int, int, int, int] | None:
    """Smallest box (top, left, bottom, right) around all alpha [H, W] above a value; None where there isn't any."""
    visible = alpha > above
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not rows.size:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
