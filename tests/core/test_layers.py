"""Straight and premultiplied colour, putting layers over each other, fitting, and the continued colour.

`figures/image_helpers.npz` holds a picture, and a part of what an independent implementation makes of it: over grey
(every eighth row and column), and that fitted to sizes in each mode (every sixteenth).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lib_layerdiffusion import layers
from lib_layerdiffusion.layers import (
    Layer,
    LayerStack,
    checkerboard,
    composite,
    fit,
    pad_rgb,
    premultiply,
    put_over,
    unpremultiply,
)
from lib_layerdiffusion.options import RESIZE_MODES
from lib_layerdiffusion.refusal import Refusal

Bytes = NDArray[np.uint8]

# Nothing is timed, however busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FIGURES = np.load(Path(__file__).parents[1] / "figures" / "image_helpers.npz")
FITTED = sorted(name for name in FIGURES.files if "." in name)
RGBA = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4)))
COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


def paint(size: tuple[int, int], colour: tuple[int, ...]) -> Bytes:
    return np.full((size[1], size[0], len(colour)), colour, np.uint8)


def draw(size: tuple[int, int], channels: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels)).astype(np.uint8)


def blend(top: Bytes, bottom: Bytes) -> Bytes:
    """Straight RGBA over opaque RGB in whole numbers, rounded once; no quotient by 255 lies half way."""
    colour, alpha, behind = top[..., :3].astype(int), top[..., 3:].astype(int), bottom[..., :3].astype(int)
    return ((2 * (colour * alpha + behind * (255 - alpha)) + 255) // 510).astype(np.uint8)


class TestPremultiplied:
    @unhurried
    @given(RGBA)
    def test_is_undone_to_the_byte_where_anything_is_visible(self, image: Bytes) -> None:
        back = unpremultiply(premultiply(image))
        visible = image[..., 3] > 0
        assert np.array_equal(np.rint(back[visible] * 255), image[visible])
        assert not back[~visible].any()

    @unhurried
    @given(RGBA)
    def test_bytes_in_between_cost_half_a_level_of_the_alpha(self, image: Bytes) -> None:
        """Within 1/255 from half opaque on, exact where opaque, black where invisible."""
        image[..., 3].flat[::3] = 255
        image[..., 3].flat[1::3] = 0
        between = np.rint(premultiply(image) * 255).astype(np.uint8)
        back = np.rint(unpremultiply(between) * 255)
        error, alpha = np.abs(back - image)[..., :3].max(axis=-1), image[..., 3]
        assert error[alpha >= 128].max(initial=0) <= 1
        assert error[alpha == 255].max(initial=0) == 0
        assert not back[alpha == 0].any()
        assert np.array_equal(back[..., 3], alpha)

    @unhurried
    @given(RGBA)
    def test_colour_is_never_more_than_alpha(self, image: Bytes) -> None:
        made = premultiply(image)
        assert made.dtype == np.float32
        assert (made[..., :3] <= made[..., 3:]).all()
        assert np.array_equal(made, premultiply((image / 255).astype(np.float32)))

    @pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool])
    def test_other_whole_numbers_are_refused(self, dtype: type) -> None:
        """They could be 0..255, 0..65535 or 0..1."""
        with pytest.raises(Refusal, match=r"uint8 or float 0\.\.1"):
            premultiply(np.ones((2, 2, 4), dtype))


class TestComposite:
    @unhurried
    @given(RGBA)
    def test_layer_over_nothing_is_the_layer(self, image: Bytes) -> None:
        """Also its colour where it is invisible."""
        assert np.array_equal(composite([Layer("a", image, "foreground")]), image)

    @pytest.mark.parametrize("behind", [0, 1, 77, 128, 254, 255])
    def test_every_colour_and_alpha_over_a_colour_is_rounded_once(self, behind: int) -> None:
        image = np.empty((256, 256, 4), np.uint8)
        image[..., :3], image[..., 3] = np.arange(256)[:, None, None], np.arange(256)
        colour = (behind, behind, behind)
        wanted = blend(image, paint((256, 256), colour))
        assert np.array_equal(composite([Layer("a", image, "foreground")], colour), wanted)

    @unhurried
    @given(RGBA, st.integers(0, 2**32 - 1), st.booleans())
    def test_layer_over_an_image_is_the_formula(self, image: Bytes, seed: int, transparent: bool) -> None:
        behind = draw(image.shape[1::-1], 3, seed)
        wanted = blend(image, behind)
        if transparent:
            opaque = np.full_like(behind[..., :1], 255)
            behind, wanted = (np.concatenate([part, opaque], axis=2) for part in (behind, wanted))
        before = behind.copy()
        assert np.array_equal(composite([Layer("a", image, "foreground")], behind), wanted)
        assert np.array_equal(behind, before)

    @unhurried
    @given(RGBA, st.integers(0, 2**32 - 1))
    def test_background_and_foreground_give_the_blend(self, foreground: Bytes, seed: int) -> None:
        """A stack over nothing, over any colour, and the foreground over the background are one image."""
        size = foreground.shape[1::-1]
        background = draw(size, 4, seed)
        background[..., 3] = 255
        stack = LayerStack(
            (Layer("room", background, "background"), Layer("cat", foreground, "foreground")), (size[0], size[1])
        )
        wanted = blend(foreground, background)
        assert np.array_equal(composite(stack)[..., :3], wanted)
        assert (composite(stack)[..., 3] == 255).all()
        assert np.array_equal(composite(stack, "magenta"), wanted)

    @unhurried
    @given(RGBA, RGBA, COLOUR)
    def test_two_layers_flattened_first_are_one_level_off_at_most(
        self, a: Bytes, b: Bytes, colour: tuple[int, int, int]
    ) -> None:
        height, width = (min(sides) for sides in zip(a.shape[:2], b.shape[:2], strict=True))
        stack = [Layer("a", a[:height, :width], "background"), Layer("b", b[:height, :width], "foreground")]
        flat = composite([Layer("flat", composite(stack), "blend")], colour)
        assert np.abs(flat.astype(int) - composite(stack, colour)).max() <= 1

    @unhurried
    @given(RGBA, RGBA, RGBA)
    def test_putting_over_is_associative(self, a: Bytes, b: Bytes, c: Bytes) -> None:
        height, width = (min(sides) for sides in zip(a.shape[:2], b.shape[:2], c.shape[:2], strict=True))
        a, b, c = (image[:height, :width] for image in (a, b, c))
        left, right = put_over(put_over(a, b), c), put_over(a, put_over(b, c))
        np.testing.assert_allclose(premultiply(left), premultiply(right), atol=1e-5)

    @unhurried
    @given(RGBA, RGBA)
    def test_order_is_bottom_first(self, first: Bytes, second: Bytes) -> None:
        height, width = (min(a, b) for a, b in zip(first.shape[:2], second.shape[:2], strict=True))
        bottom, top = first[:height, :width], second[:height, :width].copy()
        top[..., 3] = 255
        stack = [Layer("b", bottom, "foreground"), Layer("t", top, "foreground")]
        assert np.array_equal(composite(stack, (1, 2, 3)), top[..., :3])

    @pytest.mark.parametrize(
        ("background", "wanted"),
        [
            ("#3366cc", (0x33, 0x66, 0xCC)),
            ("white", (255, 255, 255)),
            ((1, 2, 3), (1, 2, 3)),
            ([1, 2, 3], (1, 2, 3)),
            (np.full((16, 24, 3), 0.5, np.float32), (128, 128, 128)),
            (np.full((16, 24, 4), (9, 8, 7, 6), np.uint8), (9, 8, 7, 6)),
            (None, (0, 0, 0, 0)),
        ],
        ids=["hex", "name", "tuple", "list", "float image", "transparent image", "nothing"],
    )
    def test_background_shows_unchanged_where_no_layer_is(self, background: Any, wanted: tuple[int, ...]) -> None:
        made = composite([Layer("a", paint((24, 16), (0, 0, 0, 0)), "foreground")], background)
        assert np.array_equal(made, paint((24, 16), wanted))

    def test_a_float_background_is_not_painted_on(self) -> None:
        background = np.full((4, 5, 3), 0.25, np.float32)
        assert (composite([Layer("a", paint((5, 4), (255, 255, 255, 255)), "foreground")], background) == 255).all()
        assert (background == np.float32(0.25)).all()

    def test_background_can_be_a_checkerboard(self) -> None:
        made = composite([Layer("a", paint((24, 16), (0, 0, 0, 0)), "foreground")], "checker")
        assert np.array_equal(made, np.rint(checkerboard((24, 16), 2) * 255))
        assert [tuple(made[y, x]) for y, x in [(0, 0), (0, 2), (2, 0), (2, 2)]] == [
            (115, 115, 115),
            (140, 140, 140),
            (140, 140, 140),
            (115, 115, 115),
        ]

    @pytest.mark.parametrize(
        ("background", "sentence"),
        [
            (np.zeros((16, 23, 3), np.uint8), "is 23x16 and the layers are 24x16: fit it"),
            (np.zeros((16, 24), np.uint8), r"shape \[H, W, 3 or 4\], not \[16, 24\]"),
            (np.zeros((16, 24, 2), np.uint8), r"not \[16, 24, 2\]"),
            (np.full((16, 24, 3), 128), "uint8 or float 0..1, not int64"),
            ((1, 2, 3, 4), "three values, not 4"),
            ("no colour", "no colour 'no colour'"),
            ("#3366cc80", "like '#3366cc'"),
        ],
        ids=["size", "grey", "channels", "int64", "four values", "text", "colour with alpha"],
    )
    def test_background_that_does_not_fit_is_refused(self, background: Any, sentence: str) -> None:
        with pytest.raises(Refusal, match=sentence):
            composite([Layer("a", paint((24, 16), (0, 0, 0, 0)), "foreground")], background)

    def test_offsets_place_layers_and_the_canvas_holds_them(self) -> None:
        base, spot = paint((4, 4), (0, 0, 0, 255)), paint((2, 2), (200, 0, 0, 255))
        made = composite([Layer("b", base, "foreground"), Layer("s", spot, "foreground", offset=(3, 1))], (9, 9, 9))
        assert made.shape == (4, 5, 3)
        wanted = paint((5, 4), (0, 0, 0))
        wanted[:, 4] = 9
        wanted[1:3, 3:] = (200, 0, 0)
        assert np.array_equal(made, wanted)

    @unhurried
    @given(RGBA, st.integers(-14, 14), st.integers(-14, 14))
    def test_any_offset_cuts_off_what_stands_over(self, image: Bytes, x: int, y: int) -> None:
        """As if the layer lay on a large canvas, of which the stack's is a window."""
        stack = LayerStack((Layer("a", image, "foreground", offset=(x, y)),), (8, 6))
        large = np.zeros((60, 60, 4), np.uint8)
        large[20 + y : 20 + y + image.shape[0], 20 + x : 20 + x + image.shape[1]] = image
        assert np.array_equal(composite(stack), large[20:26, 20:28])

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (lambda: composite([]), "no layer to compose"),
            (lambda: LayerStack((), (0, 5)), "size 0x5"),
            (lambda: Layer("a", np.zeros((4, 4, 3), np.uint8), "foreground"), r"Layer 'a' has to be uint8 \[H, W, 4\]"),
            (lambda: Layer("a", np.zeros((4, 4, 4), np.float32), "foreground"), "not float32"),
            (lambda: Layer("a", np.zeros((0, 4, 4), np.uint8), "foreground"), r"not uint8 \[0, 4, 4\]"),
            (lambda: Layer("a", np.zeros((4, 4, 4), np.uint8), "forground"), "did you mean 'foreground'"),  # type: ignore[arg-type]
            (lambda: Layer("a", np.zeros((4, 4, 4), np.uint8), "blend", blend="multiply"), "use blend 'normal'"),
        ],
    )
    def test_what_is_no_stack_is_refused(self, make: Any, sentence: str) -> None:
        with pytest.raises(Refusal, match=sentence):
            make()


class TestFit:
    def test_over_grey_is_as_in_the_independent_implementation(self) -> None:
        grey = put_over(FIGURES["rgba"], np.full((90, 130, 3), 0.5, np.float32))
        np.testing.assert_allclose(grey[1::8, 2::8], FIGURES["grey"], atol=1e-6)

    @pytest.mark.parametrize("name", FITTED)
    def test_is_as_in_the_independent_implementation(self, name: str) -> None:
        mode, size = name.split(".")
        width, height = map(int, size.split("x"))
        grey = put_over(FIGURES["rgba"], np.full((90, 130, 3), 0.5, np.float32))
        made = fit(grey, (width, height), mode)
        assert made.shape == (height, width, 3)
        np.testing.assert_allclose(made[3::16, 5::16], FIGURES[name], atol=1e-5)

    @unhurried
    @given(RGBA, st.integers(1, 40), st.integers(1, 40), st.sampled_from(sorted(RESIZE_MODES)), st.booleans())
    def test_gives_the_size_and_keeps_type_and_channels(
        self, image: Bytes, width: int, height: int, mode: str, opaque: bool
    ) -> None:
        given_image = image[..., :3] if opaque else image
        made = fit(given_image, (width, height), mode)
        assert made.shape == (height, width, given_image.shape[2])
        assert made.dtype == np.uint8
        assert fit(given_image.astype(np.float64) / 255, (width, height), mode).dtype == np.float64

    @unhurried
    @given(RGBA, st.sampled_from(sorted(RESIZE_MODES)))
    def test_to_its_own_size_changes_nothing(self, image: Bytes, mode: str) -> None:
        assert np.array_equal(fit(image, (image.shape[1], image.shape[0]), mode), image)

    @unhurried
    @given(COLOUR, st.integers(1, 255), st.integers(1, 40), st.integers(1, 40), st.sampled_from(sorted(RESIZE_MODES)))
    def test_one_colour_stays_it(
        self, colour: tuple[int, int, int], alpha: int, width: int, height: int, mode: str
    ) -> None:
        made = fit(paint((9, 5), (*colour, alpha)), (width, height), mode)
        assert np.abs(made - paint((width, height), (*colour, alpha)).astype(int)).max() <= 1

    def test_colour_under_invisible_pixels_does_not_show(self) -> None:
        """Straight colour would be mixed with the green that nobody sees."""
        image = paint((8, 8), (0, 255, 0, 0))
        image[:, :3] = (255, 0, 0, 255)
        made = fit(image, (4, 4), "stretch")
        assert made[0, 1].tolist() == [255, 0, 0, 128]
        assert not made[..., 1].any()

    @pytest.mark.parametrize(("size", "window"), [((20, 40), (slice(0, 10), slice(10, 15))), ((40, 8), None)])
    def test_crop_keeps_aspect_and_centre(self, size: tuple[int, int], window: tuple[slice, slice] | None) -> None:
        """A crop is the stretched image of the window that is kept."""
        image = np.zeros((10, 25, 3), np.float32)
        image[...] = np.linspace(0, 1, 25, dtype=np.float32)[:, None]
        image[..., 1] = np.linspace(0, 1, 10, dtype=np.float32)[:, None]
        made = fit(image, size, "crop")
        rows, columns = window or (slice(3, 8), slice(0, 25))  # 25 x 5 of 25 x 10, from row 2.5
        kept = image[rows, columns]
        assert made.shape == (size[1], size[0], 3)
        np.testing.assert_allclose(made.mean(axis=(0, 1)), kept.mean(axis=(0, 1)), atol=0.06)
        for channel, axis in ((0, 1), (1, 0)):
            span = np.ptp(made[..., channel].mean(axis=1 - axis))
            assert span == pytest.approx(np.ptp(kept[..., channel].mean(axis=1 - axis)), abs=0.12)

    def test_crop_at_the_same_scale_is_the_centre_to_the_byte(self) -> None:
        image = draw((30, 10), 3)
        assert np.array_equal(fit(image, (10, 10), "crop"), image[:, 10:20])

    def test_fill_puts_the_whole_image_in_the_middle_of_its_border_s_colour(self) -> None:
        image = draw((30, 10), 3)
        image[0], image[-1], image[:, 0], image[:, -1] = [np.array((10, 200, 30), np.uint8)] * 4
        image[0, :8] = 255
        filled = fit(image, (30, 32), "fill")
        assert np.array_equal(filled[11:21], image)
        assert np.array_equal(np.concatenate([filled[:11], filled[21:]]), paint((30, 22), (10, 200, 30)))

    def test_fill_leaves_nothing_around_a_cut_out(self) -> None:
        image = paint((30, 10), (255, 255, 255, 0))
        image[3:7, 10:20] = (200, 100, 50, 255)
        filled = fit(image, (30, 30), "fill")
        assert np.array_equal(filled[13:17, 10:20], image[3:7, 10:20])
        assert np.count_nonzero(filled[..., 3]) == 40

    @pytest.mark.parametrize(("shape", "size"), [((3, 5000), (512, 512)), ((200_000, 1), (64, 96))])
    @pytest.mark.parametrize("mode", sorted(RESIZE_MODES))
    def test_strips(self, shape: tuple[int, int], size: tuple[int, int], mode: str) -> None:
        """Cropping must not enlarge a whole strip of which nearly all is cut off: that takes gigabytes."""
        image = paint(shape, (0, 0, 0, 255))
        middle = tuple(slice(side // 2 - 30, side // 2 + 30) if side > 60 else slice(None) for side in shape[::-1])
        image[middle] = (255, 255, 255, 255)
        made = fit(image, size, mode)
        assert made.shape == (size[1], size[0], 4)
        assert (made[..., 3] == 255).all()
        if mode == "crop":
            assert (made == 255).all()

    def test_what_is_cut_off_before_enlarging_does_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows, columns = np.mgrid[:6, :300].astype(np.float32)
        image = np.stack([columns / 300, rows / 6, np.sin(columns / 7) / 2 + 0.5], axis=2)
        whole = fit(image, (120, 96), "crop")
        monkeypatch.setattr(layers, "ENLARGED_AT_MOST", 0)
        shapes = []
        resize = layers._resize

        def record(picture: Any, width: int, height: int, interpolation: int) -> Any:
            shapes.append((width, height))
            return resize(picture, width, height, interpolation)

        monkeypatch.setattr(layers, "_resize", record)
        np.testing.assert_allclose(fit(image, (120, 96), "crop"), whole, atol=0.01)
        assert shapes == [(736, 96)]  # instead of 4800 x 96

    @pytest.mark.parametrize(
        ("mode", "names"),
        [
            ("stretch", ["Just Resize", "just resize", "JUST_RESIZE", "RESIZE"]),
            ("crop", ["Crop and Resize", "CROP_AND_RESIZE"]),
            ("fill", ["Resize and Fill", "RESIZE_AND_FILL"]),
        ],
    )
    def test_the_modes_of_webuis_are_known(self, mode: str, names: list[str]) -> None:
        image = draw((13, 9), 3)
        wanted = fit(image, (8, 8), mode)
        for name in names:
            assert np.array_equal(fit(image, (8, 8), name), wanted)

    @pytest.mark.parametrize(
        ("shape", "size", "mode", "sentence"),
        [
            ((4, 4, 3), (8, 8), "crpo", "no resize mode 'crpo': did you mean 'crop'"),
            ((4, 4, 3), (0, 8), "crop", "to 0x8: use a size of 1x1 or more"),
            ((4, 4), (8, 8), "crop", r"not \[4, 4\]"),
            ((4, 4, 2), (8, 8), "crop", r"not \[4, 4, 2\]"),
            ((4, 0, 3), (8, 8), "crop", r"not \[4, 0, 3\]"),
        ],
    )
    def test_what_can_not_be_fitted_is_refused(
        self, shape: tuple[int, ...], size: tuple[int, int], mode: str, sentence: str
    ) -> None:
        with pytest.raises(Refusal, match=sentence):
            fit(np.zeros(shape, np.uint8), size, mode)


class TestCheckerboard:
    @pytest.mark.parametrize(("size", "cell", "counts"), [((128, 64), 64, (2, 1)), ((100, 70), 30, (3, 2))])
    def test_has_whole_cells_from_a_dark_corner(
        self, size: tuple[int, int], cell: int, counts: tuple[int, int]
    ) -> None:
        made = checkerboard(size, cell)
        assert made.shape == (size[1], size[0], 3)
        assert made[0, 0, 0] == np.float32(0.45)
        assert made[0, -1, 0] == np.float32(0.55 if counts[0] % 2 == 0 else 0.45)
        assert np.count_nonzero(np.diff(made[0, :, 0])) == counts[0] - 1
        assert np.count_nonzero(np.diff(made[:, 0, 0])) == counts[1] - 1


class TestPaddedColour:
    @unhurried
    @given(RGBA)
    def test_opaque_pixels_are_unchanged_and_no_colour_is_made_up(self, image: Bytes) -> None:
        padded = pad_rgb(image)
        assert (padded.shape, padded.dtype) == ((*image.shape[:2], 3), np.float32)
        opaque, visible = image[..., 3] == 255, image[..., 3] > 0
        assert np.array_equal(np.rint(padded[opaque] * 255), image[opaque][:, :3])
        np.testing.assert_allclose(padded[opaque], image[opaque][:, :3] / 255, atol=1e-6)
        if visible.any():
            colours = image[visible][:, :3] / 255
            assert (padded >= colours.min(axis=0) - 1e-4).all()
            assert (padded <= colours.max(axis=0) + 1e-4).all()

    @unhurried
    @given(RGBA, COLOUR)
    def test_one_visible_colour_is_everywhere(self, image: Bytes, colour: tuple[int, int, int]) -> None:
        """However little of it is visible, and whatever lies under the invisible pixels."""
        assume(image[..., 3].any())
        image[image[..., 3] > 0, :3] = colour
        wanted = np.broadcast_to(np.array(colour) / 255, (*image.shape[:2], 3))
        np.testing.assert_allclose(pad_rgb(image), wanted, atol=1e-4)

    @unhurried
    @given(RGBA, st.integers(0, 255))
    def test_invisible_colour_has_no_effect(self, image: Bytes, other: int) -> None:
        changed = image.copy()
        changed[image[..., 3] == 0, :3] = other
        assert np.array_equal(pad_rgb(changed), pad_rgb(image))

    def test_the_nearer_colour_is_continued(self) -> None:
        image = paint((60, 40), (0, 0, 0, 0))
        image[:, :5], image[:, -5:] = (255, 0, 0, 255), (0, 0, 255, 255)
        padded = pad_rgb(image)
        assert padded[20, 10, 0] > 0.8 > 0.2 > padded[20, 10, 2]
        assert padded[20, 50, 2] > 0.8 > 0.2 > padded[20, 50, 0]

    @pytest.mark.parametrize("size", [(1, 1), (17, 9), (3, 5000), (5000, 1)])
    def test_nothing_visible_gives_black(self, size: tuple[int, int]) -> None:
        padded = pad_rgb(paint(size, (200, 100, 50, 0)))
        assert padded.shape == (size[1], size[0], 3)
        assert not padded.any()

    @pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5000), (5000, 1)])
    def test_extreme_shapes_are_padded(self, size: tuple[int, int]) -> None:
        image = paint(size, (255, 51, 0, 0))
        image[0, 0, 3] = 255
        np.testing.assert_allclose(pad_rgb(image), np.broadcast_to([1, 0.2, 0], (size[1], size[0], 3)), atol=1e-4)

    @pytest.mark.parametrize(
        "image", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.float32), np.zeros((0, 4, 4), np.uint8)]
    )
    def test_only_rgba_bytes_are_padded(self, image: Any) -> None:
        with pytest.raises(Refusal, match="The image to pad has to be uint8"):
            pad_rgb(image)
