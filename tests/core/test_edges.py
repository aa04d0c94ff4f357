"""Defringe, levels, choke, feather and threshold of a transparent image's edges."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lib_layerdiffusion.edges import Edges, clean_edges, unmix
from lib_layerdiffusion.layers import Layer, composite
from lib_layerdiffusion.options import EDGES, LayerOptions
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.scene import Scene

Bytes = NDArray[np.uint8]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

RGBA = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4)))
COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


def draw_disc(side: int = 33, radius: float = 10, soft: float = 1) -> Bytes:
    """An orange disc whose alpha falls from 1 to 0 within `soft` pixels about its radius; blue where it is 0."""
    y, x = np.mgrid[:side, :side] - side // 2
    alpha = ((radius - np.hypot(x, y)) / soft + 0.5).clip(0, 1)
    colour = np.where(alpha[..., None] > 0, (230, 120, 10), (0, 0, 255))
    return np.dstack([colour, np.rint(alpha * 255)]).astype(np.uint8)


def measure_radius(image: Bytes) -> float:
    return float(np.sqrt((image[..., 3] / 255).sum() / np.pi))


class TestOff:
    @unhurried
    @given(RGBA)
    def test_is_the_same_array(self, image: Bytes) -> None:
        assert clean_edges(image, Edges()) is image

    @pytest.mark.parametrize("edges", [Edges(gamma=1.0), Edges(choke=0), Edges(black_point=0, white_point=1)])
    def test_values_that_change_nothing_are_off(self, edges: Edges) -> None:
        assert edges.off


def test_every_class_of_options_has_the_same_ones() -> None:
    assert tuple(each.name for each in fields(Edges)) == EDGES
    chosen = {"defringe": "white", "black_point": 0.1, "white_point": 0.9, "gamma": 2.0}
    chosen |= {"choke": -1.5, "feather": 3.0, "threshold": 0.5}
    for options in (LayerOptions(**chosen), Scene(foregrounds=("a cat",), **chosen)):
        assert Edges.of(options) == Edges(**chosen)
        for each in fields(Edges):
            assert type(options).__dataclass_fields__[each.name].metadata == each.metadata


class TestDefringe:
    @unhurried
    @given(RGBA, COLOUR)
    def test_finds_the_colour_that_was_mixed_with_a_background(self, image: Bytes, background: Any) -> None:
        alpha = image[..., 3:].astype(float) / 255
        mixed = image[..., :3] * alpha + np.array(background) * (1 - alpha)
        cut = np.dstack([np.rint(mixed), image[..., 3]]).astype(np.uint8)

        cleaned = clean_edges(cut, Edges(defringe="#{:02x}{:02x}{:02x}".format(*background)))

        assert (cleaned[..., 3] == image[..., 3]).all()
        visible = image[..., 3] > 0
        error = np.abs(cleaned[..., :3].astype(float) - image[..., :3]) * alpha
        assert (error[visible] <= 1.0 + 1e-6).all()  # half a level from each rounding, by as much as is visible

    @unhurried
    @given(RGBA)
    def test_leaves_opaque_pixels_alone(self, image: Bytes) -> None:
        cleaned = clean_edges(image, Edges(defringe="grey"))

        opaque = image[..., 3] == 255
        assert (cleaned[opaque] == image[opaque]).all()

    def test_background_is_gone_from_invisible_pixels(self) -> None:
        disc = draw_disc()

        cleaned = unmix(disc, np.array([0, 0, 1], np.float32))

        hidden = disc[..., 3] == 0
        assert cleaned[hidden][:, 0].min() > 200
        assert cleaned[hidden][:, 2].max() < 30

    def test_grey_is_the_colour_that_transparency_is_trained_on(self) -> None:
        assert Edges(defringe="grey").background() == pytest.approx(np.full(3, 128 / 255), abs=1e-6)


class TestLevels:
    def test_points_and_gamma_are_the_formula(self) -> None:
        ramp = np.full((1, 256, 4), 90, np.uint8)
        ramp[0, :, 3] = np.arange(256)

        cleaned = clean_edges(ramp, Edges(black_point=0.2, white_point=0.8, gamma=2.0))

        wanted = ((np.arange(256) / 255 - 0.2) / 0.6).clip(0, 1) ** 0.5 * 255
        assert np.abs(cleaned[0, :, 3] - wanted).max() <= 0.5 + 1e-3
        assert (cleaned[..., :3] == 90).all()

    @unhurried
    @given(RGBA, st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.2, 5))
    def test_order_of_alphas_is_kept(self, image: Bytes, black: float, white: float, gamma: float) -> None:
        cleaned = clean_edges(image, Edges(black_point=black, white_point=white, gamma=gamma))

        by_alpha = np.argsort(image[..., 3], axis=None, kind="stable")
        assert (np.diff(cleaned[..., 3].reshape(-1)[by_alpha].astype(int)) >= 0).all()


class TestChokeAndFeather:
    @pytest.mark.parametrize("pixels", [1, 2.5, 4, -1, -2.5, -4])
    def test_disc_shrinks_or_grows_by_so_many_pixels(self, pixels: float) -> None:
        disc = draw_disc()

        cleaned = clean_edges(disc, Edges(choke=pixels))

        assert measure_radius(cleaned) == pytest.approx(measure_radius(disc) - pixels, abs=0.35)

    def test_what_grows_has_the_colour_of_the_shape(self) -> None:
        disc = draw_disc()

        cleaned = clean_edges(disc, Edges(choke=-3))

        new = (disc[..., 3] == 0) & (cleaned[..., 3] > 0)
        assert new.sum() > 100
        assert np.abs(cleaned[new][:, :3].astype(int) - (230, 120, 10)).max() <= 2

    def test_what_the_border_cuts_stays_whole_there(self) -> None:
        full = np.full((9, 9, 4), 255, np.uint8)

        assert (clean_edges(full, Edges(choke=3, feather=3)) == full).all()

    def test_feather_widens_the_edge_to_both_sides(self) -> None:
        disc = draw_disc()

        cleaned = clean_edges(disc, Edges(feather=4))

        row = cleaned[16, 16:, 3].astype(float) / 255
        assert 2.5 < ((row > 0.1) & (row < 0.9)).sum() <= 6
        assert measure_radius(cleaned) == pytest.approx(measure_radius(disc), abs=0.2)


class TestThreshold:
    @unhurried
    @given(RGBA, st.floats(0.01, 1))
    def test_every_alpha_is_none_or_all(self, image: Bytes, threshold: float) -> None:
        cleaned = clean_edges(image, Edges(threshold=threshold))

        assert (cleaned[..., 3] == np.where(image[..., 3] / np.float32(255) >= np.float32(threshold), 255, 0)).all()
        assert (cleaned[..., :3] == image[..., :3]).all()


class TestWhatUsersSee:
    @pytest.mark.parametrize("background", ["black", "white"])
    def test_a_cut_out_from_grey_loses_its_halo(self, background: str) -> None:
        disc = draw_disc(soft=6)
        on_grey = composite([Layer("disc", disc, "foreground")], (128, 128, 128))
        cut = np.dstack([on_grey, disc[..., 3]])

        def error(image: Bytes) -> float:
            shown, wanted = (composite([Layer("disc", each, "foreground")], background) for each in (image, disc))
            return float(np.abs(shown.astype(float) - wanted).max())

        assert error(cut) > 20
        assert error(clean_edges(cut, Edges(defringe="grey"))) <= 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"gamma": 0}, "gamma must be a number from 0.1 to 10, not 0"),
        ({"choke": float("nan")}, "choke must be a number from -64 to 64, not nan"),
        ({"feather": -1}, "feather must be a number from 0 to 64"),
        ({"black_point": 0.5, "white_point": 0.5}, "black_point 0.5 must be below white_point 0.5"),
        ({"defringe": "greyish"}, "There is no colour 'greyish'"),
        ({"defringe": (1, 2)}, "defringe must be text"),
    ],
)
def test_what_can_not_be_done_is_refused(values: Any, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        Edges(**values)
