"""What the measures say about pictures whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_layerdiffusion.train.measures import count_parts, detail, edge_width, find_box, psnr


def disc(size: int, radius: float, softness: float) -> np.ndarray:
    """Alpha of a disc whose edge runs from 1 to 0 over `softness` pixels."""
    axis = np.arange(size) - (size - 1) / 2
    distance = np.hypot(*np.meshgrid(axis, axis))
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def test_psnr_is_per_picture() -> None:
    target = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert psnr(image, target).tolist() == pytest.approx([20, 40], abs=1e-3)


def test_detail_is_none_in_ramps_and_falls_with_blur() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    assert detail(ramp).item() == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 64, 64)
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert detail(blurred).item() < 0.2 * detail(noise).item()
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert detail(checks.expand(1, 3, 8, 8).float()).item() == pytest.approx(16 * 36 / 35 * 1e4, rel=1e-3)


@pytest.mark.parametrize("softness", [2.0, 5.0, 8.0])
def test_edge_width_is_that_between_a_tenth_and_nine_tenths(softness: float) -> None:
    assert edge_width(disc(96, 30, softness)) == pytest.approx(0.8 * softness, rel=0.12)


def test_parts_are_counted_without_specks() -> None:
    one = disc(64, 20, 2)
    assert count_parts(one) == 1
    two = np.concatenate([one, one], axis=1)
    assert count_parts(two) == 2
    two[0, 0] = 1
    assert count_parts(two) == 2
    assert count_parts(one * 0.3) == 1  # a faint motif is measured by its own strength
    for motif, parts in ((one, 1), (two, 2)):  # about half-transparent all over
        ripple = 0.06 * np.sin(np.arange(motif.shape[1], dtype=np.float32))
        assert count_parts(motif * (0.5 + ripple)) == parts
    assert count_parts(np.zeros((8, 8), np.float32)) == 0


def test_box_holds_every_pixel_above_the_value() -> None:
    alpha = np.zeros((10, 12), np.uint8)
    assert find_box(alpha) is None
    alpha[2:5, 3:9] = 200
    assert find_box(alpha) == (2, 3, 5, 9)
    alpha[9, 11] = 1
    assert find_box(alpha) == (2, 3, 10, 12)
    assert find_box(alpha, 1) == (2, 3, 5, 9)
