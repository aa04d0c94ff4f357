"""A wider decoder starts where the narrower one was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train import widening
from lib_layerdiffusion.train.widening import let_through, widen
from lib_layerdiffusion.transparent_vae import TransparentDecoder

pytestmark = pytest.mark.slow

NARROW = (8, 8, 16, 16, 16, 16, 16)
WIDE = (16, 8, 16, 16, 16, 16, 16)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    decoder = TransparentDecoder(NARROW)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return decoder.state_dict()


def test_same_widths_change_nothing(state: dict[str, Tensor]) -> None:
    same = widen(state, NARROW)
    assert all(value.equal(same[name]) for name, value in state.items())


@torch.no_grad()
def test_copies_give_what_the_channels_gave(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widening, "UNLIKE", 0.0)
    narrow, wide = (TransparentDecoder.from_state_dict(s) for s in (state, widen(state, WIDE)))
    pixel, latent = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    before, after = (network.conv_in(pixel) for network in (narrow, wide))
    for row in range(2):
        before, after = narrow.down_blocks[0].refine(row, before), wide.down_blocks[0].refine(row, after)
        assert torch.allclose(after, before.repeat_interleave(2, dim=1), atol=1e-5)
    outputs = [network(pixel, latent) for network in (narrow, wide)]
    assert (outputs[0] - outputs[1]).abs().mean() < 0.2 * outputs[0].std()


def test_copies_may_part(state: dict[str, Tensor]) -> None:
    first = widen(state, WIDE)["conv_in.weight"]
    assert first.shape == (16, 3, 3, 3)
    assert not first[0].equal(first[1])
    assert torch.allclose(first[0], first[1], rtol=0.5, atol=0.02)


@pytest.mark.parametrize(
    ("widths", "sentence"),
    [
        ((12, 8, 16, 16, 16, 16, 16), "give multiples"),
        ((8, 8, 16, 32, 16, 16, 16), "finer than the latent"),
        ((8, 16, 16, 16, 16, 16, 16), "has no shortcut"),
    ],
)
def test_widths_that_cannot_be_reached_are_refused(
    state: dict[str, Tensor], widths: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(Refusal, match=sentence):
        widen(state, widths)


@torch.no_grad()
@pytest.mark.parametrize(("brightness", "width"), [(0.05, 32), (0.5, 64), (1.0, 32)])
def test_the_pictures_colour_passes_where_it_is_let_through(brightness: float, width: int) -> None:
    torch.manual_seed(0)
    before = TransparentDecoder((width, 16, 16, 16, 16, 16, 16))
    after = TransparentDecoder.from_state_dict(let_through(before.state_dict()))
    pixel, latent = torch.rand(1, 3, 64, 64) * brightness, torch.randn(1, 4, 8, 8)
    assert (after(pixel, latent)[:, 1:] - pixel).abs().max() < 0.01
    assert (before(pixel, latent)[:, 1:] - pixel).abs().mean() > 0.1 * brightness


def test_groups_too_small_for_the_pictures_path_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(Refusal, match="begin with 32"):
        let_through(state)
