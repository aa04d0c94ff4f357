"""Layers computed in strips of rows, against the same layers computed at once in double precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import measure_peak
from lib_layerdiffusion import strips
from lib_layerdiffusion.transparent_vae import TransparentDecoder, wrapping
from tests import seeded

WIDTHS = (8, 8, 8, 8, 8, 16, 16)
HEIGHTS = (1, 2, 7, 8, 9, 16, 17, 40)  # strips have eight rows here


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LARGE", 1), ("STRIP", 1), ("SUMMED", 1)):
        monkeypatch.setattr(strips, name, value)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def draw(*shape: int) -> Tensor:
    """Values far from zero in the mean, as they are before a normalisation, a pixel's channels side by side."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (3 * values + torch.arange(shape[1])[:, None, None]).to(memory_format=torch.channels_last)


def as_double(*layers: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(layer).double() for layer in layers]


def activate(x: Tensor, norm: nn.Module, convolution: nn.Module) -> Tensor:
    return convolution(F.silu(norm(x)))


def is_near(result: Tensor, exact: Tensor, error: float = 3e-6) -> bool:
    return result.shape == exact.shape and bool((result.double() - exact).abs().max() <= error * exact.abs().max())


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("widths", [(8,), (12, 8), (4, 8, 8)])
def test_a_resnet_in_strips_is_the_resnet(height: int, widths: tuple[int, ...]) -> None:
    """Groups of the normalisation reach across the parts: five channels to a group of twenty."""
    total, width = sum(widths), 8
    norms = seeded.fill(nn.GroupNorm(4, total), 1), seeded.fill(nn.GroupNorm(4, width), 2)
    convolutions = nn.Conv2d(total, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    shortcut = nn.Conv2d(total, width, 1) if total != width else None
    parts = [draw(2, part, height, 11) for part in widths]
    kept = [part.clone() for part in parts]
    result = strips.refine(parts, norms, convolutions, shortcut)
    x = torch.cat(parts, dim=1).double()
    layers = as_double(norms[0], convolutions[0], norms[1], convolutions[1])
    exact = activate(activate(x, *layers[:2]), *layers[2:])
    assert is_near(result, exact + (x if shortcut is None else as_double(shortcut)[0](x)))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))


@pytest.mark.parametrize("height", HEIGHTS)
def test_a_convolution_in_strips_is_the_convolution(height: int) -> None:
    norm, convolution, x = seeded.fill(nn.GroupNorm(2, 6), 3), nn.Conv2d(6, 4, 3, padding=1), draw(2, 6, height, 9)
    assert is_near(strips.convolve(x, norm, convolution), activate(x.double(), *as_double(norm, convolution)))


@pytest.mark.parametrize("height", HEIGHTS)
def test_an_enlarged_image_in_strips_is_the_enlarged_image(height: int) -> None:
    convolution, x = nn.Conv2d(5, 4, 3, padding=1), draw(2, 5, height, 7)
    enlarged = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    assert is_near(strips.enlarge(x, convolution), as_double(convolution)[0](enlarged))


def decode_both(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """A whole pass in strips, and the same at once in double precision."""
    decoder = seeded.fill(TransparentDecoder(WIDTHS), 7).requires_grad_(False).to(dtype)
    decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pixel, latent = torch.rand(2, 3, 128, 64).to(dtype), torch.randn(2, 4, 16, 8).to(dtype)
    calls = []
    compute = strips.refine
    monkeypatch.setattr(strips, "refine", lambda *layer: calls.append(layer) or compute(*layer))
    result = decoder(pixel, latent)
    assert len(calls) == 7 * 2 + 2 + 7 * 3  # resnets on the way down, in the middle and on the way up
    monkeypatch.setattr(strips, "LARGE", float("inf"))
    return result, decoder.double()(pixel.double(), latent.double())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_decoder_in_strips_is_the_decoder(dtype: torch.dtype, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    result, exact = decode_both(dtype, monkeypatch)
    assert result.dtype == dtype
    assert is_near(result, exact, error)


def test_strips_work_where_a_webui_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        assert is_near(*decode_both(torch.float32, monkeypatch), 1e-5)


def test_strips_are_for_large_layers_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, x = nn.Conv2d(8, 8, 3, padding=1), draw(3, 8, 16, 16)
    monkeypatch.setattr(strips, "LARGE", 2 * 8 * 16 * 16 * 4)
    assert strips.pay_off([x, x], convolution)
    assert not strips.pay_off([x], convolution)  # of a batch, each image is computed alone
    assert not strips.pay_off([x, x.contiguous()], convolution)
    assert not strips.pay_off([x.to("meta"), x.to("meta")], convolution)
    with torch.enable_grad():
        assert not strips.pay_off([x, x], convolution)
    with wrapping(convolution):  # a row would need the opposite side's
        assert not strips.pay_off([x, x], convolution)


def test_strips_take_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = TransparentDecoder((16, 16, 8, 8, 8, 16, 16)).requires_grad_(False)
    given = torch.rand(1, 3, 256, 256), torch.randn(1, 4, 32, 32)
    decoder.decode(*given, views=1)  # which lays the weights out
    peaks: list[int] = []
    for large in (float("inf"), 2**20):
        monkeypatch.setattr(strips, "LARGE", large)
        peaks.append(measure_peak(lambda: decoder.decode(*given, views=1)))
    assert peaks[1] < 0.8 * peaks[0]
