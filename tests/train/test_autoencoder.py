"""The autoencoder's start near the identity, the normalisation of its latents, and its training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.autoencoder import (
    SCALING_FACTOR,
    AutoencoderLoss,
    build_autoencoder,
    draw_shift,
    normalise_latents,
    psnr,
    read_autoencoder,
    train,
)
from tests.train.tiny import TINY_VAE

pytestmark = pytest.mark.slow


def is_near(output: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((output - wanted).std() < 0.3 * wanted.std())


@torch.no_grad()
def test_network_starts_near_the_identity() -> None:
    vae = build_autoencoder(TINY_VAE)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 16, 16)
    down, up = vae.encoder.down_blocks[0], vae.decoder.up_blocks[-2]
    assert is_near(down.resnets[0](x, None), x)
    assert down.resnets[0].conv2.weight.abs().max() <= 0.1 / 36**0.5  # a tenth of torch's own start
    assert is_near(down.downsamplers[0](x), F.avg_pool2d(x, 2))
    wide = torch.randn(2, up.upsamplers[0].channels, 8, 8)
    assert is_near(up.upsamplers[0](wide), F.interpolate(wide, scale_factor=2))
    moments = torch.randn(2, 8, 4, 4)
    assert is_near(vae.quant_conv(moments)[:, :4], moments[:, :4])
    assert is_near(vae.post_quant_conv(x), x)


@torch.no_grad()
def test_normalised_latents_decode_to_the_same_picture() -> None:
    vae = build_autoencoder(TINY_VAE).eval()
    torch.manual_seed(0)
    pictures = F.interpolate(torch.rand(20, 3, 8, 8) * 2 - 1, scale_factor=8, mode="bilinear")
    before = vae.encode(pictures).latent_dist
    decoded = vae.decode(before.mean).sample
    scale = before.mean.std(dim=(0, 2, 3)) * SCALING_FACTOR
    normalise_latents(vae, pictures)
    after = vae.encode(pictures).latent_dist
    scaled = after.mean * vae.config.scaling_factor
    assert scaled.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert scaled.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=1e-3)
    assert torch.allclose(after.std * scale[:, None, None], before.std, rtol=1e-3)
    assert torch.allclose(vae.decode(after.mean).sample, decoded, atol=1e-4)


def test_shifts_are_fields_within_the_room() -> None:
    shift = draw_shift(50, 8, 2.0, np.random.default_rng(0))
    assert shift.shape == (50, 1, 8, 8)
    assert 1.5 < shift.abs().max() <= 2
    assert shift.mean(dim=(1, 2, 3)).std() > 0.1  # a field has a level of its own, not noise around 0
    assert abs(float(shift.mean())) < 0.3


def test_room_is_made_by_the_decoder_alone(archive: Path, tmp_path: Path) -> None:
    config = replace(TINY_VAE, data=archive, size_steps=(1,), log_every=1, grid_every=0)
    train(config, tmp_path / "first")
    train(replace(config, start=tmp_path / "first" / "model", room=2.0), tmp_path / "second")
    first, second = (read_autoencoder(tmp_path / run / "model") for run in ("first", "second"))
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    latent = first.encode(pictures).latent_dist.mean
    assert second.encode(pictures).latent_dist.mean.equal(latent)
    assert not torch.allclose(second.decode(latent).sample, first.decode(latent).sample, atol=1e-5)


@torch.no_grad()
def test_shift_reaches_its_channel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = AutoencoderLoss(replace(TINY_VAE, room_channel=2))
    seen: list[torch.Tensor] = []
    decode = loss.vae.decode
    monkeypatch.setattr(loss.vae, "decode", lambda latent: (seen.append(latent), decode(latent))[1])
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    for amount in (0.0, 1.0):
        torch.manual_seed(0)
        loss(pictures, 0.0, torch.full((2, 1, 8, 8), amount))
    difference = (seen[1] - seen[0]) * SCALING_FACTOR
    assert torch.allclose(difference[:, 2], torch.ones(()), atol=1e-4)
    assert not difference[:, [0, 1, 3]].any()


def test_psnr_is_per_picture() -> None:
    target = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert psnr(image, target).tolist() == pytest.approx([20, 40], abs=1e-3)


def test_training_writes_an_autoencoder_and_its_grid(archive: Path, tmp_path: Path) -> None:
    config = replace(TINY_VAE, data=archive, size_steps=(2,), log_every=2, grid_every=1)
    train(config, tmp_path / "run")
    assert read_autoencoder(tmp_path / "run" / "model").config.scaling_factor == SCALING_FACTOR
    names = sorted(path.name for path in (tmp_path / "run").glob("*.png"))
    assert names == ["reconstruction-000001.png", "reconstruction-000002.png"]  # also where no line is logged
    log = (tmp_path / "run" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert log[0].split(",")[2:] == ["l1", "gradient", "kl", "guide", "psnr"]
    assert len(log) == 2


def test_folder_without_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no autoencoder"):
        read_autoencoder(tmp_path)
