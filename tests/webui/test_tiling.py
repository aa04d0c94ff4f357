"""Seamless textures: where the model continues at the opposite side, the transparency does, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder, is_seamless, wrapping

pytestmark = pytest.mark.slow


def make_decoder() -> TransparentDecoder:
    torch.manual_seed(0)
    return TransparentDecoder(widths=(8, 8, 8, 8, 8, 8, 8)).eval().requires_grad_(False)


def draw(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(1, 3, height, width), torch.randn(1, 4, height // 8, width // 8)


def shifted(decoder: TransparentDecoder, height: int, width: int, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An image decoded, and the same one decoded when it is moved by 64 pixels across its side and moved back."""
    pixel, latent = draw(height, width)
    whole = decoder.decode(pixel, latent, **settings)
    moved = decoder.decode(pixel.roll(64, 3), latent.roll(8, 3), **settings)
    return whole, moved.roll(-64, 3)


@pytest.mark.parametrize("views", [1, 8])
def test_a_seamless_image_is_the_same_wherever_it_is_cut(views):
    decoder = make_decoder()
    whole, moved = shifted(decoder, 64, 128, views=views, seamless=True)
    assert (whole - moved).abs().max() < 1e-4
    whole, moved = shifted(decoder, 64, 128, views=views)
    assert (whole - moved).abs().max() > 1e-2, "an ordinary image has sides"
    assert not is_seamless(decoder), "nothing is left behind"


@pytest.mark.parametrize("settings", [{}, {"max_pixels": 128 * 128}])
def test_sizes_and_tiles_that_are_continued_around(settings):
    """Approximately: what is decoded at once sees the opposite side as its surroundings."""
    decoder = make_decoder()
    size = (72, 136) if not settings else (128, 256)
    plain, seamless = (shifted(decoder, *size, views=1, seamless=each, **settings) for each in (False, True))
    assert plain[0].shape == seamless[0].shape == (1, 4, *size)
    seams = [(whole - moved)[..., :8].abs().mean() for whole, moved in (plain, seamless)]
    assert seams[1] < seams[0]


def test_an_encoder_that_wraps_is_as_before_afterwards():
    torch.manual_seed(0)
    encoder = TransparentEncoder().eval()
    torch.nn.init.normal_(encoder.blocks[-1].weight)
    image = torch.rand(1, 4, 64, 64)
    before = encoder(image)
    with wrapping(encoder):
        assert torch.allclose(encoder(image.roll(32, 3)), encoder(image).roll(4, 3), atol=1e-4)
    assert torch.equal(encoder(image), before)


def test_the_webuis_tiling_makes_a_transparency_without_a_seam(webui, monkeypatch):
    """The same latent, moved across the side by 64 pixels."""
    seen: list[tuple[Any, ...]] = []
    own = TransparentDecoder.decode

    def decode(self: TransparentDecoder, pixel: Any, latent: Any, *args: Any, **settings: Any) -> Any:
        seen.append((self, pixel, latent, settings["seamless"]))
        return own(self, pixel, latent, *args, **settings)

    monkeypatch.setattr(TransparentDecoder, "decode", decode)
    settings: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
    processed = webui.txt2img({"views": 1}, tiling=True, **settings)
    assert "Tiling: True" in processed.infotexts[0]
    webui.txt2img({"views": 1}, **settings)
    assert [each[3] for each in seen] == [True, False]
    decoder, pixel, latent, _ = seen[0]
    plain, seamless = [], []
    for made, is_whole in ((plain, False), (seamless, True)):
        for step in (0, 64):
            given = pixel.roll(step, 3), latent.roll(step // 8, 3)
            made.append(own(decoder, *given, 8, seamless=is_whole)[0, 0].numpy().astype(float) * 255)
    seams = [np.abs(np.roll(one, 64, 1) - other)[:, 56:72].mean() for one, other in (plain, seamless)]
    assert seams[1] < 0.1
