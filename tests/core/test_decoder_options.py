"""The transparent decoder's options on a narrow network: views, sizes, tiles, progress and what it refuses.

The median, the padding and the loop over the views are written here a second time, in plain torch and numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.transparent_vae import Cancelled, TransparentDecoder, TransparentEncoder
from tests import seeded

pytestmark = pytest.mark.slow

WIDTHS = (8, 8, 8, 8, 8, 16, 16)  # wider where a level has one pixel, whose group norm would only keep signs
ORDER = [(False, 0), (False, 2), (True, 0), (True, 2), (False, 1), (False, 3), (True, 1), (True, 3)]
"""Mirrored left to right, then quarter turns."""


@pytest.fixture(scope="module")
def decoder() -> TransparentDecoder:
    decoder = TransparentDecoder(WIDTHS)
    seeded.fill(decoder, 7)
    with torch.no_grad():  # so that few numbers are clipped
        decoder.conv_out.weight.mul_(0.3)
        decoder.conv_out.bias.add_(0.5)
    return decoder.eval().requires_grad_(False)


def draw(rows: int, columns: int, batch: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    """An image of this size and a latent for it."""
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.rand(batch, 3, rows, columns, generator=generator)
    return pixel, torch.randn(batch, 4, math.ceil(rows / 8), math.ceil(columns / 8), generator=generator)


@torch.no_grad()
def decode_plainly(decoder: TransparentDecoder, pixel: Tensor, latent: Tensor, views: int) -> Tensor:
    """One forward call per view, turned back, and torch.median, or the mean of two; sides are multiples of 64."""
    outputs: list[Tensor] = []
    for mirrored, quarters in ORDER[:views]:
        seen = [torch.rot90(x.flip(3) if mirrored else x, quarters, (2, 3)) for x in (pixel, latent)]
        output = torch.rot90(decoder(*seen).clamp(0, 1), 4 - quarters, (2, 3))
        outputs.append(output.flip(3) if mirrored else output)
    return torch.stack(outputs).mean(dim=0) if views == 2 else torch.stack(outputs).median(dim=0).values


def mirror(x: Tensor, rows: int, columns: int) -> Tensor:
    """Continue x to the bottom and right by numpy's symmetric padding."""
    padding = [(0, 0), (0, 0), (0, rows - x.shape[2]), (0, columns - x.shape[3])]
    return torch.from_numpy(np.pad(x.numpy(), padding, mode="symmetric"))


def assert_one_sentence(refusal: pytest.ExceptionInfo[Refusal]) -> None:
    said = str(refusal.value)
    assert said.endswith(".")
    assert ". " not in said
    assert "\n" not in said


class Echo(TransparentDecoder):
    """A network that gives the mean and the colour of its image, and remembers the shapes that it was called with."""

    def __init__(self) -> None:
        super().__init__(WIDTHS)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
        assert [8 * side for side in latent.shape[2:]] == list(pixel.shape[2:])
        assert not any(side % 64 for side in pixel.shape[2:])
        self.shapes.append(tuple(pixel.shape))
        return torch.cat([pixel.mean(1, keepdim=True), pixel], dim=1)


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_median_equals_a_plain_loop_over_the_views(decoder: TransparentDecoder, views: int) -> None:
    pixel, latent = draw(64, 128, batch=2)
    output = decoder.decode(pixel, latent, views=views)
    assert output.shape == (2, 4, 64, 128)
    assert output.min() >= 0
    assert output.max() <= 1
    assert (output - decode_plainly(decoder, pixel, latent, views)).abs().max() <= 1e-5


@pytest.mark.parametrize("views", ["4", True, 3, None])
def test_views_are_one_of_five_numbers(decoder: TransparentDecoder, views: Any) -> None:
    pixel, latent = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    with pytest.raises(Refusal, match=f"takes one of the numbers 0, 1, 2, 4 and 8 as views, not {views!r}"):
        decoder.decode(pixel, latent, views=views)


class Uneasy(Echo):
    """A network that sees bright images otherwise when they are turned: their alpha rises from left to right."""

    def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
        output = super().forward(pixel, latent)
        ramp = torch.linspace(0, 1, pixel.shape[3])
        output[:, 0] = torch.where(output[:, 0] > 0.5, ramp, output[:, 0])
        return output


def test_as_many_views_as_an_image_needs() -> None:
    """An image of whose alpha two views say the same is done with these, beside one that gets all eight."""
    network, shades = Uneasy(), torch.tensor([0.2, 0.9, 0.3])
    pixel, latent = shades[:, None, None, None].expand(3, 3, 64, 128), torch.randn(3, 4, 8, 16)
    reports: list[tuple[int, int]] = []
    output = network.decode(pixel, latent, views=0, progress=lambda *report: reports.append(report))
    assert [shape[0] for shape in network.shapes] == [3, 3, 1, 1, 1, 1, 1, 1]
    assert reports == [(done, 8) for done in range(1, 9)]
    assert torch.equal(output[1:2], network.decode(pixel[1:2], latent[1:2], views=8))
    for calm in (slice(0, 1), slice(2, 3)):
        network.shapes.clear()
        reports.clear()
        alone = network.decode(pixel[calm], latent[calm], views=0, progress=lambda *report: reports.append(report))
        assert len(network.shapes) == 2
        assert reports == [(1, 8), (2, 8), (8, 8)]
        assert torch.equal(output[calm], alone)
        assert torch.equal(alone, network.decode(pixel[calm], latent[calm], views=2))


def test_as_many_views_as_a_tile_needs() -> None:
    """Of an image in tiles, those are decoded in all views in which two don't agree."""
    network, pixel = Uneasy(), torch.full((1, 3, 128, 512), 0.2)
    pixel[..., 384:] = 0.9
    latent = torch.randn(1, 4, 16, 64)
    output = network.decode(pixel, latent, views=0, max_pixels=128 * 128)
    passes = len(network.shapes)
    assert torch.equal(output, network.decode(pixel, latent, views=8, max_pixels=128 * 128))
    tiles = (len(network.shapes) - passes) // 8
    assert divmod(passes - 2 * tiles, 6) == (2, 0)  # two of the tiles reach into the bright part
    assert tiles > 4


def test_two_views_agree_up_to_one_step_of_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over the image; the difference may be large in few of its pixels."""
    pixel, latent = torch.zeros(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    for share, calls in ((0.003, 2), (0.005, 8)):  # 1 / 255 is 0.0039
        network = Echo()
        views = iter(range(8))

        def see(network: Echo, pixel: Tensor, latent: Tensor, views: Any = views, share: float = share) -> Tensor:
            network.shapes.append(tuple(pixel.shape))
            output = torch.zeros(1, 4, 64, 64)
            if next(views):
                output[:, 0].view(-1)[: round(share * 64 * 64)] = 1
            return output

        monkeypatch.setattr(Echo, "forward", see)
        network.decode(pixel, latent, views=0)
        assert len(network.shapes) == calls


def test_views_differ_and_the_default_is_eight(decoder: TransparentDecoder) -> None:
    pixel, latent = draw(64, 64)
    outputs = [decoder.decode(pixel, latent, views=views) for views in (1, 2, 4, 8)]
    for fewer, more in pairwise(outputs):
        assert (fewer - more).abs().mean() > 1e-4
    assert torch.equal(decoder.decode(pixel, latent), outputs[-1])


def test_mirrored_image_gives_the_mirrored_result(decoder: TransparentDecoder) -> None:
    """Eight views are closed under mirroring and turning, so the median follows the image."""
    pixel, latent = draw(64, 128)
    output = decoder.decode(pixel, latent)
    mirrored = decoder.decode(pixel.flip(3), latent.flip(3))
    turned = decoder.decode(torch.rot90(pixel, 1, (2, 3)), torch.rot90(latent, 1, (2, 3)))
    assert (mirrored - output.flip(3)).abs().max() <= 1e-5
    assert (turned - torch.rot90(output, 1, (2, 3))).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
@pytest.mark.parametrize("view_batch", [2, 3, 8, 100])
def test_views_together_equal_views_one_by_one(
    decoder: TransparentDecoder, size: tuple[int, int], view_batch: int
) -> None:
    pixel, latent = draw(*size, batch=2)
    output = decoder.decode(pixel, latent, view_batch=view_batch)
    assert (output - decoder.decode(pixel, latent, view_batch=1)).abs().max() <= 1e-5


def test_view_batch_limits_the_images_in_one_call() -> None:
    """Turned views of an image that isn't square have another shape, so they start a batch of their own."""
    for size, view_batch, wanted in (((64, 64), 8, [8]), ((64, 64), 3, [3, 3, 2]), ((64, 128), 8, [4, 4])):
        echo = Echo()
        echo.decode(*draw(*size), view_batch=view_batch)
        assert [shape[0] for shape in echo.shapes] == wanted


@pytest.mark.parametrize("size", [(100, 72), (8, 8), (1, 1), (65, 64), (3, 5000)])
def test_any_size_is_mirrored_to_multiples_of_64_and_cropped_back(
    decoder: TransparentDecoder, size: tuple[int, int]
) -> None:
    pixel, latent = draw(*size)
    rows, columns = (math.ceil(side / 64) * 64 for side in size)
    # first to whole latent pixels, then image and latent alike
    grown = mirror(mirror(pixel, 8 * latent.shape[2], 8 * latent.shape[3]), rows, columns)
    wanted = decode_plainly(decoder, grown, mirror(latent, rows // 8, columns // 8), 1)
    output = decoder.decode(pixel, latent, views=1)
    assert output.shape == (1, 4, *size)
    assert (output - wanted[..., : size[0], : size[1]]).abs().max() <= 1e-5


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 700),
    columns=st.integers(1, 700),
    tile=st.sampled_from([1, 64 * 64, 128 * 128, 192 * 192, 256 * 320]),
)
def test_tiles_cover_the_image_without_a_seam(rows: int, columns: int, tile: int) -> None:
    """With a network that gives its input back, tiles of any layout give the image, however they overlap."""
    pixel, latent = draw(rows, columns)
    echo = Echo()
    output = echo.decode(pixel, latent, views=1, max_pixels=tile)
    assert output.shape == (1, 4, rows, columns)
    assert (output[:, 1:] - pixel).abs().max() <= 1e-6
    assert all(shape[2] * shape[3] <= max(tile, 128 * 128) for shape in echo.shapes)


def test_tiles_are_close_to_the_whole_and_deterministic(decoder: TransparentDecoder) -> None:
    pixel, latent = draw(192, 256)
    whole = decoder.decode(pixel, latent, views=2)
    tiled = decoder.decode(pixel, latent, views=2, max_pixels=128 * 192)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() <= 0.1 * whole.std()
    assert torch.equal(tiled, decoder.decode(pixel, latent, views=2, max_pixels=128 * 192))


def test_neighbouring_tiles_fade_into_each_other() -> None:
    """With tiles that disagree by 1, no step between two neighbouring pixels is larger than 1 / 65."""

    class Counting(Echo):
        def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
            return torch.full_like(super().forward(pixel, latent), float(len(self.shapes) % 2))

    network = Counting()
    output = network.decode(*draw(64, 320), views=1, max_pixels=64 * 128)
    assert len(network.shapes) == 4
    assert output.min() == 0
    assert output.max() == 1
    assert output.diff(dim=3).abs().max() <= 1 / 65 + 1e-6
    assert output.diff(dim=2).abs().max() <= 1e-6


def test_max_pixels_of_the_whole_image_makes_no_tiles(decoder: TransparentDecoder) -> None:
    pixel, latent = draw(128, 192)
    whole = decoder.decode(pixel, latent, views=1)
    assert torch.equal(decoder.decode(pixel, latent, views=1, max_pixels=128 * 192), whole)


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"views": 1}, 1),
        ({"views": 4}, 4),
        ({"view_batch": 4}, 8),
        ({"views": 4, "view_batch": 2, "max_pixels": 128 * 128}, 12),
    ],
)
def test_progress_counts_up_to_the_total(options: dict[str, int], total: int) -> None:
    seen: list[tuple[int, int]] = []
    Echo().decode(*draw(128, 256), progress=lambda done, total: seen.append((done, total)), **options)
    counts = [done for done, _ in seen]
    step = options.get("view_batch", 1)
    assert {whole for _, whole in seen} == {total}
    assert counts == list(range(step, total + 1, step))


@pytest.mark.parametrize("options", [{}, {"max_pixels": 128 * 128}])
def test_returning_false_cancels_between_views(options: dict[str, int]) -> None:
    echo = Echo()
    with pytest.raises(Cancelled, match="3 of"):
        echo.decode(*draw(128, 256), progress=lambda done, _total: done < 3, **options)
    assert len(echo.shapes) == 3


def test_returning_none_goes_on_and_raising_stops() -> None:
    echo = Echo()
    assert echo.decode(*draw(64, 64), progress=lambda _done, _total: None).shape == (1, 4, 64, 64)

    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    echo = Echo()
    with pytest.raises(KeyboardInterrupt):
        echo.decode(*draw(64, 64), progress=interrupt)
    assert len(echo.shapes) == 2


def test_an_image_of_integers_is_refused(decoder: TransparentDecoder) -> None:
    pixel, latent = draw(64, 64)
    with pytest.raises(Refusal, match="divide by 255") as refusal:
        decoder.decode((pixel * 255).to(torch.uint8), latent)
    assert_one_sentence(refusal)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 1])
def test_values_that_are_not_finite_are_refused(decoder: TransparentDecoder, index: int, value: float) -> None:
    inputs = draw(64, 64)
    inputs[index][0, 2, 3, 4] = value
    with pytest.raises(Refusal, match=("image", "latent")[index]) as refusal:
        decoder.decode(*inputs)
    assert_one_sentence(refusal)


@pytest.mark.parametrize(
    ("pixel", "latent"),
    [
        ((1, 3, 64, 64), (1, 4, 8, 9)),
        ((1, 3, 64, 64), (2, 4, 8, 8)),
        ((1, 3, 64, 64), (1, 3, 8, 8)),
        ((1, 4, 64, 64), (1, 4, 8, 8)),
        ((3, 64, 64), (4, 8, 8)),
        ((1, 3, 100, 72), (1, 4, 12, 9)),
        ((1, 3, 0, 64), (1, 4, 0, 8)),
        ((0, 3, 64, 64), (0, 4, 8, 8)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    decoder: TransparentDecoder, pixel: tuple[int, ...], latent: tuple[int, ...]
) -> None:
    for call in (decoder, decoder.decode):
        with pytest.raises(Refusal, match="this very image") as refusal:
            call(torch.zeros(pixel), torch.zeros(latent))
        assert_one_sentence(refusal)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *(({"views": views}, f"not {views}") for views in (3, 5, 7, 16, -1)),
        ({"view_batch": 0}, "view_batch"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_options_out_of_range_are_refused(decoder: TransparentDecoder, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence) as refusal:
        decoder.decode(*draw(64, 64), **options)
    assert_one_sentence(refusal)


def test_one_pass_refuses_sides_that_are_no_multiples_of_64(decoder: TransparentDecoder) -> None:
    with pytest.raises(Refusal, match="72x64") as refusal:
        decoder(*draw(64, 72))
    assert_one_sentence(refusal)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_of_any_float_type_is_decoded_in_the_network_s(decoder: TransparentDecoder, dtype: torch.dtype) -> None:
    """The result is float32, and it is what the rounded numbers give."""
    pixel, latent = (x.to(dtype) for x in draw(64, 64))
    output = decoder.decode(pixel, latent, views=1)
    assert output.dtype == torch.float32
    assert torch.equal(output, decoder.decode(pixel.float(), latent.float(), views=1))


def test_bfloat16_network_gives_float32_close_to_its_own() -> None:
    pixel, latent = draw(64, 64)
    network = seeded.fill(TransparentDecoder(WIDTHS), 7).eval()
    assert isinstance(network, TransparentDecoder)
    exact = network.decode(pixel, latent, views=2)
    rough = network.bfloat16().decode(pixel, latent, views=2)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().mean() <= 0.03


def test_image_beyond_its_range_is_clipped_before_the_network_sees_it() -> None:
    class Halving(Echo):
        def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
            return super().forward(pixel, latent) / 2 + 0.25

    pixel, latent = draw(64, 64)
    output = Halving().decode(pixel * 3 - 1, latent, views=1)
    assert torch.equal(output[:, 1:], (pixel * 3 - 1).clamp(0, 1) / 2 + 0.25)


def test_no_gradient_is_kept_and_the_input_stays_as_it_is() -> None:
    network = seeded.fill(TransparentDecoder(WIDTHS), 7)
    assert isinstance(network, TransparentDecoder)
    inputs = draw(64, 64)
    before = [x.clone() for x in inputs]
    pixel, latent = (x.requires_grad_() for x in inputs)
    output = network.decode(pixel, latent, views=2)
    assert not output.requires_grad
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_one_pass_gives_the_same_with_and_without_gradients() -> None:
    """Without them it computes in place; with them every parameter gets one."""
    network = seeded.fill(TransparentDecoder(WIDTHS), 7)
    pixel, latent = draw(64, 64)
    with_gradients = network(pixel, latent)
    with torch.no_grad():
        assert torch.allclose(network(pixel, latent), with_gradients, atol=1e-6)
    with_gradients.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def rename(state: dict[str, Tensor], key: str) -> None:
    state[f"{key}_"] = state.pop(key)


def shorten(state: dict[str, Tensor], key: str) -> None:
    state[key] = state[key][:-1]


def flatten(state: dict[str, Tensor], key: str) -> None:
    state[key] = torch.tensor(1.0)


def remove(state: dict[str, Tensor], key: str) -> None:
    del state[key]


def add(state: dict[str, Tensor], key: str) -> None:
    state[f"{key}.more"] = torch.zeros(1)


CHANGES = [rename, shorten, flatten, remove, add]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "key",
    ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "down_blocks.6.resnets.0.conv1.weight", "conv_out.bias"],
)
def test_decoder_loads_strictly(
    decoder: TransparentDecoder, key: str, change: Callable[[dict[str, Tensor], str], None]
) -> None:
    state = dict(decoder.state_dict())
    change(state, key)
    with pytest.raises(Refusal, match="aren't a transparent decoder's") as refusal:
        TransparentDecoder.from_state_dict(state)
    assert_one_sentence(refusal)


def test_decoder_is_built_from_its_file(decoder: TransparentDecoder) -> None:
    """Widths are the file's, numbers become float32, and the file's tensors aren't shared."""
    state = {key: value.half() for key, value in decoder.state_dict().items()}
    loaded = TransparentDecoder.from_state_dict(state)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    assert all(torch.equal(value, state[key].float()) for key, value in loaded.state_dict().items())
    pixel, latent = draw(64, 64)
    # rounding the weights to half changes little
    assert (loaded.decode(pixel, latent, 1) - decoder.decode(pixel, latent, 1)).abs().mean() <= 1e-2


def test_decoder_takes_seven_widths() -> None:
    with pytest.raises(ValueError, match="7 levels"):
        TransparentDecoder(WIDTHS[:-1])


@pytest.fixture(scope="module")
def encoder() -> TransparentEncoder:
    encoder = TransparentEncoder((4, 6, 6, 8))
    seeded.fill(encoder, 8, 1.7)
    return encoder.eval()


@pytest.mark.parametrize("size", [(8, 8), (40, 128)])
def test_encoder_gives_an_eighth_of_the_size(encoder: TransparentEncoder, size: tuple[int, int]) -> None:
    x = torch.rand(3, 4, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        offset = encoder(x)
        alone = encoder(x[1:2])
    assert offset.shape == (3, 4, size[0] // 8, size[1] // 8)
    assert (offset[1:2] - alone).abs().max() <= 1e-5
    assert offset.std() > 0.01


def test_encoder_leaves_the_factor_out(encoder: TransparentEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        offset = encoder(x)
        monkeypatch.setattr(TransparentEncoder, "factor", 1.0)
        assert torch.equal(encoder(x), offset)
    monkeypatch.undo()
    assert TransparentEncoder.factor == 300


def test_fresh_encoder_offsets_nothing() -> None:
    with torch.no_grad():
        assert not TransparentEncoder((4, 4, 4, 4))(torch.rand(1, 4, 16, 16)).any()


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (4, 64, 64), (1, 4, 60, 64), (1, 4, 64, 4)])
def test_encoder_refuses_other_shapes(encoder: TransparentEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(Refusal, match="multiples of 8") as refusal:
        encoder(torch.zeros(shape))
    assert_one_sentence(refusal)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("key", ["blocks.0.weight", "blocks.4.weight", "blocks.16.bias"])
def test_encoder_loads_strictly(
    encoder: TransparentEncoder, key: str, change: Callable[[dict[str, Tensor], str], None]
) -> None:
    state = dict(encoder.state_dict())
    assert torch.equal(TransparentEncoder.from_state_dict(state).blocks[0].weight, state["blocks.0.weight"])
    change(state, key)
    with pytest.raises(Refusal, match="aren't a transparent encoder's") as refusal:
        TransparentEncoder.from_state_dict(state)
    assert_one_sentence(refusal)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_the_network_can_not_compute_is_refused(decoder: TransparentDecoder, value: float) -> None:
    broken = deepcopy(decoder)
    with torch.no_grad():
        broken.conv_out.bias[2] = value
    with pytest.raises(Refusal, match="decoder produced NaN or infinite values"):
        broken.decode(*draw(64, 64), views=2)
