"""In which precision transparency is decoded, sized to what memory, and what is done where it fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.machine import measure_peak
from lib_layerdiffusion import strips
from lib_layerdiffusion.decoding import (
    AMPLE,
    SHARE,
    TILE,
    WHOLE,
    Way,
    choose_way,
    decode_as_fits,
    find_free,
    pick_half,
    pick_precision,
)
from lib_layerdiffusion.transparent_vae import TransparentDecoder
from lib_layerdiffusion.views import NotFiniteError
from tests import seeded

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WIDTHS = (8, 8, 8, 8, 8, 16, 16)
PUBLISHED = (32, 32, 64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    decoder = seeded.fill(TransparentDecoder(WIDTHS), 7)
    with torch.no_grad():  # so that few numbers are clipped
        decoder.conv_out.weight.mul_(0.3)
        decoder.conv_out.bias.add_(0.5)
    return decoder.state_dict()


class GpuHost:
    """A host that says that it has a GPU, whose work the processor does."""

    device, vae = GPU, nn.Conv2d(4, 4, 1)

    def __init__(self, precision: torch.dtype = torch.float16, free: int | None = None) -> None:
        self.precision, self.rooms = precision, []
        if free is not None:
            self.free_memory = lambda: free

    @contextmanager
    def on_device(self, network: nn.Module, room: int = 0) -> Iterator[torch.device]:
        self.rooms.append(room)
        yield CPU


@pytest.fixture(autouse=True)
def quiet_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that doesn't tell what is free."""

    def fail(device: torch.device) -> None:
        raise RuntimeError("The device doesn't support querying the available free memory.")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)


@pytest.fixture
def load(state: dict[str, Tensor]) -> Any:
    """Makes the decoder in a precision; `load.asked` has which."""
    asked: list[torch.dtype] = []

    def make(precision: torch.dtype) -> TransparentDecoder:
        asked.append(precision)
        return TransparentDecoder.from_state_dict(state, precision).requires_grad_(False)

    make.asked = asked
    return make


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """How the decoder is called."""
    decode, seen = TransparentDecoder.decode, []

    def run(self: TransparentDecoder, *args: Any, view_batch: int, max_pixels: int | None, **named: Any) -> Tensor:
        seen.append(Way(view_batch, max_pixels))
        return decode(self, *args, view_batch=view_batch, max_pixels=max_pixels, **named)

    monkeypatch.setattr(TransparentDecoder, "decode", run)
    return seen


def draw(rows: int = 64, columns: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, rows, columns, generator=generator)
    return pixels, torch.randn(1, 4, rows // 8, columns // 8, generator=generator)


@pytest.mark.parametrize(
    ("device", "precision", "kept", "decoded"),
    [
        (GPU, torch.float16, torch.float16, torch.float16),
        (GPU, torch.bfloat16, torch.bfloat16, torch.float16),
        (GPU, torch.float32, None, torch.float32),
        (GPU, torch.float8_e4m3fn, None, torch.float32),
        (CPU, torch.bfloat16, torch.bfloat16, torch.float32),
        (CPU, torch.float32, None, torch.float32),
    ],
)
def test_precision_is_the_hosts_and_float16_for_decoding_on_a_gpu(
    device: torch.device, precision: torch.dtype, kept: torch.dtype | None, decoded: torch.dtype
) -> None:
    host: Any = SimpleNamespace(device=device, precision=precision)
    assert (pick_half(host), pick_precision(host)) == (kept, decoded)


def test_free_memory_is_the_hosts_count_or_the_devices_with_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = SimpleNamespace(device=GPU)
    assert find_free(host) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert find_free(host) == 1200
    assert find_free(SimpleNamespace(device=GPU, free_memory=lambda: 7)) == 7  # pyright: ignore[reportArgumentType]
    assert find_free(SimpleNamespace(device=CPU, free_memory=lambda: 7)) is None  # pyright: ignore[reportArgumentType]
    for device in ("cpu", "mps"):
        assert find_free(SimpleNamespace(device=torch.device(device))) is None  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "dtype", "size", "views", "batch"),
    [
        (WIDTHS, torch.float32, (128, 128), 1, 1),
        (WIDTHS, torch.float32, (192, 128), 4, 2),
        (WIDTHS, torch.bfloat16, (128, 192), 1, 1),
        (WIDTHS, torch.bfloat16, (128, 128), 8, 4),
        ((16, 24, 24, 32, 32, 32, 32), torch.float32, (128, 128), 2, 1),
        (PUBLISHED, torch.float32, (256, 256), 1, 1),
    ],
)
def test_memory_is_estimated_a_little_above_what_torch_takes(
    monkeypatch: pytest.MonkeyPatch,
    widths: tuple[int, ...],
    dtype: torch.dtype,
    size: tuple[int, int],
    views: int,
    batch: int,
) -> None:
    monkeypatch.setattr(strips, "LARGE", math.inf)  # layers as a whole, as GPUs compute them
    decoder = TransparentDecoder(widths).requires_grad_(False).to(dtype)
    given = draw(size[1], size[0])
    decoder.decode(*draw(), views=1)  # which lays the weights out
    taken = measure_peak(lambda: decoder.decode(*given, views=views, view_batch=batch))
    assert 1 <= decoder.estimate_memory(*size, views, batch) / taken <= 1.6


def test_the_estimate_counts_what_is_decoded() -> None:
    """Sides are continued to multiples of 64; half precision halves the activations of 224 channels."""
    with torch.device("meta"):
        decoder = TransparentDecoder(PUBLISHED)
    single, half = 1024 * 1024 * (4 * 224 + 80 + 8 * 24), 1024 * 1024 * (2 * 224 + 80 + 8 * 24)
    assert decoder.estimate_memory(1000, 970) == decoder.estimate_memory(1024, 1024) == single
    assert decoder.half().estimate_memory(1024, 1024) == half
    assert decoder.estimate_memory(1024, 1024, 8, 4) - half == 1024 * 1024 * 3 * (2 * 224 + 80)


def test_a_picture_is_whole_where_it_fits_and_else_in_the_largest_tiles(state: dict[str, Tensor]) -> None:
    decoder = TransparentDecoder.from_state_dict(state)
    needed = decoder.estimate_memory(2048, 1024, 8) / SHARE
    assert choose_way(decoder, (2048, 1024), 8, int(needed) + 1) == WHOLE
    assert choose_way(decoder, (2048, 1024), 8, None) == WHOLE
    way = choose_way(decoder, (2048, 1024), 8, int(needed) - 1)
    assert way.view_batch == 1
    assert way.max_pixels is not None
    assert 0.9 * 2048 * 1024 < way.max_pixels < 2048 * 1024
    half = choose_way(decoder, (2048, 1024), 8, int(needed / 2)).max_pixels
    assert half is not None
    beside = 24 * 2048 * 1024  # the whole picture that the tiles become
    assert half / way.max_pixels == pytest.approx((needed / 2 * SHARE - beside) / (needed * SHARE - beside), rel=1e-3)
    assert choose_way(decoder, (2048, 1024), 8, 1000) == Way(max_pixels=TILE)


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_several_views_at_once_take_a_quarter_of_what_is_free_at_most_and_in_half_precision_only(
    state: dict[str, Tensor], views: int
) -> None:
    single = TransparentDecoder.from_state_dict(state)
    half = TransparentDecoder.from_state_dict(state, torch.float16)
    assert choose_way(single, (512, 512), views, 1 << 50) == WHOLE
    assert choose_way(half, (512, 512), views, 1 << 50) == Way(view_batch=views)
    for batch in (2, 4, 8):
        free = int(half.estimate_memory(512, 512, views, batch) / AMPLE)
        assert choose_way(half, (512, 512), views, free + 4).view_batch == min(batch, views)
        assert choose_way(half, (512, 512), views, free - 4).view_batch == min(batch // 2, views)


def test_the_same_picture_whatever_is_free(load: Any, ways: list[Way]) -> None:
    pixels, latents = draw(64, 128)
    unknown, known, plenty = (
        decode_as_fits(GpuHost(precision, free), load, pixels, latents, 8)
        for precision, free in ((torch.float32, None), (torch.float32, 1 << 40), (torch.float16, 1 << 40))
    )
    assert ways == [WHOLE, WHOLE, Way(view_batch=8)]
    assert load.asked == [torch.float32, torch.float32, torch.float16]
    assert torch.equal(known, unknown)
    assert 0 < (plenty - unknown).abs().max() < 1 / 255


def test_room_is_asked_for_and_tiles_are_chosen_from_the_start(load: Any, ways: list[Way]) -> None:
    host = GpuHost(torch.float32, free=1)
    decode_as_fits(host, load, *draw(64, 128), views=2)
    decoder = load(torch.float32)
    assert host.rooms == [int(decoder.estimate_memory(128, 64, 2) / SHARE)]
    assert ways == [Way(max_pixels=TILE)]


def test_what_overflows_in_half_precision_is_decoded_in_float32(
    state: dict[str, Tensor], load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state = dict(state, **{"conv_in.weight": state["conv_in.weight"] * 1e6})
    asked: list[torch.dtype] = []

    def load_large(precision: torch.dtype) -> TransparentDecoder:
        asked.append(precision)
        return TransparentDecoder.from_state_dict(state, precision).requires_grad_(False)

    given = draw()
    with caplog.at_level(logging.WARNING):
        decoded = decode_as_fits(GpuHost(), load_large, *given, views=2)
    assert asked == [torch.float16, torch.float32]
    assert torch.equal(decoded, load_large(torch.float32).decode(*given, views=2))
    assert [record.message for record in caplog.records] == [
        "Half precision doesn't suffice to decode the transparency, so it is done in float32."
    ]


def test_what_is_not_finite_in_float32_either_is_refused(state: dict[str, Tensor]) -> None:
    state = dict(state, **{"conv_out.bias": state["conv_out.bias"] * float("nan")})
    asked: list[torch.dtype] = []

    def load_damaged(precision: torch.dtype) -> TransparentDecoder:
        asked.append(precision)
        return TransparentDecoder.from_state_dict(state, precision)

    for precision, tried in ((torch.float16, [torch.float16, torch.float32]), (torch.float32, [torch.float32])):
        asked.clear()
        with pytest.raises(NotFiniteError, match="download its weight file again"):
            decode_as_fits(GpuHost(precision), load_damaged, *draw(), views=1)
        assert asked == tried


def test_the_processor_decodes_in_float32(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decode = TransparentDecoder.decode

    def run(self: TransparentDecoder, *args: Any, **named: Any) -> Tensor:
        if self.conv_in.weight.dtype == torch.float16:
            raise RuntimeError("CUDA out of memory.")
        return decode(self, *args, **named)

    monkeypatch.setattr(TransparentDecoder, "decode", run)
    given = draw()
    decoded = decode_as_fits(GpuHost(), load, *given, views=1)
    assert torch.equal(decoded, load(torch.float32).decode(*given, views=1))
