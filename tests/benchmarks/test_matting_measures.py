"""What the measures of the comparison with matting say about alphas whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.matting_measures import (
    Placements,
    compare_levels,
    find_nearest,
    find_unknown,
    measure_connectivity_error,
    measure_gradient_error,
    measure_mse,
    measure_rgba,
    measure_sad,
    overlap,
    soft_share,
)
from lib_layerdiffusion.train.dataset import place

EVERYWHERE = np.ones((32, 32), bool)


def box(value: float, top: int = 8, left: int = 8, side: int = 16) -> np.ndarray:
    alpha = np.zeros((32, 32), np.float32)
    alpha[top : top + side, left : left + side] = value
    return alpha


def leaf(size: int) -> np.ndarray:
    """A lopsided shape with a half-transparent part."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    alpha = (np.hypot(x / 0.5, y / 0.8) < 1).astype(np.float32)
    alpha[(x > 0.2) & (y > 0)] *= 0.5
    return alpha


def test_unknown_region_is_the_half_transparent_part_and_two_pixels_around_it() -> None:
    alpha = box(1.0)
    assert not find_unknown(alpha).any()
    alpha[15, 15] = 0.5
    expected = np.zeros((32, 32), bool)
    expected[13:18, 13:18] = True
    assert (find_unknown(alpha) == expected).all()
    alpha[15, 15] = 0.99
    assert not find_unknown(alpha).any()


def test_sums_and_means_are_over_the_unknown_region_only() -> None:
    true, made = box(1.0), box(0.5)
    unknown = np.zeros((32, 32), bool)
    unknown[8:10] = True
    assert measure_sad(made, true, unknown) == pytest.approx(2 * 16 * 0.5)
    assert measure_mse(made, true, unknown) == pytest.approx(0.25 * 16 / 32)
    assert measure_sad(made, true, ~unknown) == pytest.approx(14 * 16 * 0.5)
    for measure in (measure_sad, measure_mse, measure_gradient_error, measure_connectivity_error):
        assert measure(true, true, EVERYWHERE) == 0


def test_gradient_error_of_ramps_is_the_squared_difference_of_their_slopes() -> None:
    ramp = np.tile(np.linspace(0, 1, 33, dtype=np.float32)[:32], (32, 1))
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    # x * exp(-(x^2 + y^2) / 2 s^2), scaled to unit energy, answers a slope of 1 with 2 s^2 sqrt(2 pi); the filter ends
    # at four pixels, where 1.5 % of that is missing
    answer = 2 * 1.4**2 * np.sqrt(2 * np.pi)
    error = measure_gradient_error(ramp, 0 * ramp, inside)
    assert error == pytest.approx(256 * (answer / 32) ** 2, rel=0.035)
    assert measure_gradient_error(ramp.T, 0 * ramp, inside) == pytest.approx(error)
    assert measure_gradient_error(ramp, ramp / 2, inside) == pytest.approx(error / 4, rel=1e-5)
    assert measure_gradient_error(ramp, ramp.T, inside) == pytest.approx(0, abs=1e-6)  # magnitudes, not directions


def test_connectivity_error_counts_what_is_cut_off() -> None:
    true = box(1.0)
    island = true.copy()
    island[2:4, 2:4] = 1
    assert measure_connectivity_error(island, true, EVERYWHERE) == pytest.approx(4)
    island[2:4, 2:4] = 0.5
    assert measure_connectivity_error(island, true, EVERYWHERE) == pytest.approx(2)
    island[2:4, 2:4] = 0.1  # below what is free
    assert measure_connectivity_error(island, true, EVERYWHERE) == 0
    diagonal = true.copy()
    diagonal[7, 7] = 1
    assert measure_connectivity_error(diagonal, true, EVERYWHERE) == pytest.approx(1)  # corners don't connect


def test_rgba_over_solids_knows_colour_and_alpha() -> None:
    red = np.zeros((32, 32, 4), np.float32)
    red[..., [0, 3]] = 1
    assert measure_rgba(red, red) == (pytest.approx(100), pytest.approx(1))
    faint = red.copy()
    faint[..., 3] = 0.9
    # off by 0.1 in one channel over black, in two over white, none over red, in two over green and blue
    expected = [10 * np.log10(3 / (count * 0.01)) for count in (1, 2, 2, 2)] + [100]
    assert measure_rgba(faint, red)[0] == pytest.approx(np.mean(expected), rel=1e-4)
    hidden = red.copy()
    hidden[..., 3] = 0
    green = hidden.copy()
    green[..., :3] = (0, 1, 0)
    assert measure_rgba(green, hidden)[0] == pytest.approx(100)  # nobody sees that colour


def test_soft_share_is_of_what_is_visible() -> None:
    alpha = box(1.0)
    assert soft_share(alpha) == 0
    alpha[8:12, 8:24] = 0.5
    assert soft_share(alpha) == pytest.approx(0.25)
    assert soft_share(0 * alpha) == 0


def test_levels_are_blind_to_shape_and_measure_alpha() -> None:
    assert compare_levels(box(0.5), box(0.5, top=2, left=3, side=6)) == 0
    assert compare_levels(box(0.5), box(0.8)) == pytest.approx(0.3, abs=1e-6)
    half = box(1.0)
    half[8:16, 8:24] = 0.4
    assert compare_levels(half, box(1.0)) == pytest.approx(0.3, abs=0.01)
    assert compare_levels(box(0.0), box(0.7)) == pytest.approx(0.7, abs=1e-6)


def test_overlap_counts_half_transparent_pixels_by_their_alpha() -> None:
    assert overlap(box(1.0), box(1.0)) == 1
    assert overlap(box(0.5), box(1.0)) == pytest.approx(0.5)
    assert overlap(box(1.0), box(1.0, left=16)) == pytest.approx(1 / 3)
    assert overlap(box(0.0), box(1.0)) == 0


def test_nearest_view_undoes_size_turn_place_and_mirroring() -> None:
    sprite = leaf(128)
    made = place(sprite, 64, 0.78, 5, np.array([0.06, -0.1]), flip=True)
    nearest = find_nearest(made, [Placements(sprite, 64)])
    assert overlap(made, nearest) > 0.95
    assert overlap(made, place(sprite, 64, 0.78, 0, np.zeros(2), flip=False)) < 0.8
    other = np.asarray(sprite.T)
    both = [Placements(other, 64), Placements(sprite, 64)]
    assert (find_nearest(made, both) == nearest).all()
    assert overlap(made, find_nearest(made, both[:1])) < 0.9
    speck = made.copy()
    speck[:4, :4] = 1  # which would ruin a comparison of bounding boxes
    assert overlap(speck, find_nearest(speck, both)) > 0.9
