"""Straight and premultiplied colour, putting layers over each other, fitting, and the continued colour."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lib_layerdiffusion.layers import Layer, composite, fit, pad_rgb, premultiply, put_over, unpremultiply
from lib_layerdiffusion.refusal import Refusal

RGBA = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4)))


@given(RGBA)
def test_premultiplying_is_undone_where_anything_is_visible(image: NDArray[np.uint8]) -> None:
    back = unpremultiply(premultiply(image))
    visible = image[..., 3] > 0
    np.testing.assert_allclose(back[visible], image[visible] / 255, atol=1e-5)
    assert not back[~visible].any()


@given(RGBA)
def test_layer_over_nothing_is_the_layer(image: NDArray[np.uint8]) -> None:
    assert np.array_equal(composite([Layer("a", image, "foreground")])[image[..., 3] > 0], image[image[..., 3] > 0])


@given(RGBA, st.integers(0, 255))
def test_one_layer_over_a_colour_is_the_formula_rounded_once(image: NDArray[np.uint8], grey: int) -> None:
    alpha = image[..., 3:].astype(np.float64) / 255
    wanted = image[..., :3] * alpha + grey * (1 - alpha)
    made = composite([Layer("a", image, "foreground")], (grey, grey, grey))
    assert made.shape[2] == 3
    assert np.abs(made - wanted).max() <= 0.5 + 1e-4


def test_background_can_be_an_image_a_colour_or_a_checkerboard() -> None:
    empty = np.zeros((16, 24, 4), np.uint8)
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    assert np.array_equal(composite([Layer("a", empty, "foreground")], picture), picture)
    assert np.array_equal(
        composite([Layer("a", empty, "foreground")], "#3366cc"), np.full((16, 24, 3), (0x33, 0x66, 0xCC), np.uint8)
    )
    assert set(np.unique(composite([Layer("a", empty, "foreground")], "checker"))) == {115, 140}


@pytest.mark.parametrize("background", [np.zeros((3, 3, 3), np.uint8), "no colour"])
def test_background_that_does_not_fit_is_refused(background: Any) -> None:
    with pytest.raises(Refusal):
        composite([Layer("a", np.zeros((4, 4, 4), np.uint8), "foreground")], background)


def test_offsets_place_layers_and_cut_off_what_stands_over() -> None:
    base = np.full((4, 4, 4), (0, 0, 0, 255), np.uint8)
    spot = np.full((2, 2, 4), (200, 0, 0, 255), np.uint8)
    made = composite([Layer("base", base, "foreground"), Layer("spot", spot, "foreground", offset=(3, 1))], (9, 9, 9))
    assert [tuple(made[y, 3]) for y in range(4)] == [(0, 0, 0), (200, 0, 0), (200, 0, 0), (0, 0, 0)]
    assert not made[:, :3].any()


@given(RGBA, RGBA)
def test_order_is_bottom_first(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
    height, width = (min(a, b) for a, b in zip(first.shape[:2], second.shape[:2], strict=True))
    bottom, top = first[:height, :width], second[:height, :width].copy()
    top[..., 3] = 255
    assert np.array_equal(
        composite([Layer("b", bottom, "foreground"), Layer("t", top, "foreground")], (1, 2, 3)), top[..., :3]
    )


@given(RGBA, RGBA, RGBA)
def test_putting_over_is_associative(a: NDArray[np.uint8], b: NDArray[np.uint8], c: NDArray[np.uint8]) -> None:
    height, width = (min(sides) for sides in zip(a.shape[:2], b.shape[:2], c.shape[:2], strict=True))
    a, b, c = (image[:height, :width] for image in (a, b, c))
    left, right = put_over(put_over(a, b), c), put_over(a, put_over(b, c))
    np.testing.assert_allclose(premultiply(left), premultiply(right), atol=1e-5)


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
@pytest.mark.parametrize("size", [(8, 30), (64, 16), (5, 5), (1, 1)])
def test_fit_gives_the_size_and_keeps_type_and_channels(mode: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (20, 33, 4)).astype(np.uint8)
    for given_image in (image, image[..., :3]):
        made = fit(given_image, size, mode)
        assert made.shape == (size[1], size[0], given_image.shape[2])
        assert made.dtype == np.uint8


def test_fit_crops_the_centre_or_fills_with_the_border_s_colour() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (fit(image, (10, 10), "crop") == 255).all()
    filled = fit(image, (30, 30), "fill")
    assert np.array_equal(filled[10:20], image)
    assert not filled[:10].any()
    assert not filled[20:].any()


def test_unknown_fit_mode_and_empty_size_are_refused() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(Refusal, match="resize mode"):
        fit(image, (8, 8), "squeeze")
    with pytest.raises(Refusal, match="1x1 or more"):
        fit(image, (0, 8))


@given(RGBA)
def test_padded_colour_keeps_what_is_opaque_and_stays_in_range(image: NDArray[np.uint8]) -> None:
    padded = pad_rgb(image)
    assert padded.shape == (*image.shape[:2], 3)
    opaque = image[..., 3] == 255
    np.testing.assert_allclose(padded[opaque], image[opaque][:, :3] / 255, atol=1e-6)
    assert padded.min() >= 0
    assert padded.max() <= 1 + 1e-5


def test_padded_colour_of_one_visible_pixel_is_everywhere() -> None:
    image = np.zeros((9, 17, 4), np.uint8)
    image[4, 5] = (255, 51, 0, 255)
    np.testing.assert_allclose(pad_rgb(image), np.broadcast_to([1, 0.2, 0], (9, 17, 3)), atol=1e-4)
    assert not pad_rgb(np.zeros((9, 17, 4), np.uint8)).any()
