"""The autoencoder's start near the identity, the normalisation of its latents, and its training."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.autoencoder import (
    SCALING_FACTOR,
    TERMS,
    AutoencoderLoss,
    adjust,
    build_autoencoder,
    draw_noise,
    draw_pictures,
    draw_shift,
    laplacian_loss,
    normalise_latents,
    read_autoencoder,
    train,
)
from lib_layerdiffusion.train.dataset import Sprite, TransparentBatch, read_sprites
from lib_layerdiffusion.train.run import Run
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
        zeros = torch.zeros(2, 4, 8, 8)
        loss(pictures, zeros, torch.full((2, 1, 8, 8), amount), zeros, 0.0)
    difference = (seen[1] - seen[0]) * SCALING_FACTOR
    assert torch.allclose(difference[:, 2], torch.ones(()), atol=1e-4)
    assert not difference[:, [0, 1, 3]].any()


@torch.no_grad()
def test_pictures_with_offset_are_decoded_from_their_adjusted_latents(
    encoder_file: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = AutoencoderLoss(replace(TINY_VAE, encoder=encoder_file))
    batch = TransparentBatch.of([sprite.premultiplied for sprite in read_sprites(archive, 64)[2:4]])
    seen: list[torch.Tensor] = []
    decode = loss.vae.decode
    monkeypatch.setattr(loss.vae, "decode", lambda latent: (seen.append(latent), decode(latent))[1])
    pictures, zeros, noise = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    noise[1] = 0.5
    _, output, wanted = loss(pictures, torch.ones(2, 4, 8, 8), zeros[:, :1], noise, 0.0, batch, noise)
    posterior = loss.vae.encode(pictures).latent_dist
    assert torch.allclose(seen[0][:2], posterior.mean + posterior.std + noise, atol=1e-5)
    adjusted = adjust(loss.vae, loss.encoder[0], batch)[1]
    assert torch.allclose(seen[0][2], adjusted[0], atol=1e-5)
    assert torch.allclose(seen[0][3], adjusted[1] + 0.5, atol=1e-5)
    assert wanted.equal(torch.cat([pictures, batch.grey * 2 - 1]))
    assert output.equal(decode(seen[0]).sample)
    assert not any(parameter.requires_grad for parameter in loss.encoder[0].parameters())
    assert not any("block" in name and "encoder.blocks" in name for name, _ in loss.named_parameters())


def test_laplacian_loss_is_that_of_the_kernel() -> None:
    torch.manual_seed(0)
    image, target = torch.rand(2, 3, 9, 7), torch.rand(2, 3, 9, 7)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    wanted = F.conv2d(image - target, kernel, groups=3).abs().mean()
    assert laplacian_loss(image, target).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert laplacian_loss(image + 0.3, image).item() == pytest.approx(0, abs=1e-6)


def test_noise_is_as_large_as_its_image_may_have() -> None:
    noise = draw_noise(20, 256, 0.08, np.random.default_rng(3)) * SCALING_FACTOR
    deviations = noise.std(dim=(1, 2, 3)).tolist()
    assert 0 < min(deviations) < 0.02
    assert 0.06 < max(deviations) <= 0.081


def test_pictures_show_backgrounds_alone_and_behind_sprites(archive: Path) -> None:
    green = np.full((80, 80, 4), (0, 255, 0, 255), np.uint8)
    sprites = read_sprites(archive, 80)[:1]
    drawn = draw_pictures(sprites * 200, 32, TINY_VAE, np.random.default_rng(0), [Sprite("lawn.png", "lawn", green)])
    lawn = (drawn[:, 0, 0, 0] == -1) & (drawn[:, 1, 0, 0] > 0.7) & (drawn[:, 2, 0, 0] == -1)
    behind = lawn & (drawn[:, 0].amax(dim=(1, 2)) > 0)
    assert 70 < int(lawn.sum()) < 130
    assert 30 < int(behind.sum()) < 70


def test_sharpening_leaves_the_latents_and_resumes_exactly(
    archive: Path, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(TINY_VAE, data=archive, log_every=1, grid_every=0), tmp_path / "first")
    first = read_autoencoder(tmp_path / "first" / "model")
    config = replace(
        TINY_VAE,
        data=archive,
        backgrounds=archive,
        start=tmp_path / "first" / "model",
        encoder=encoder_file,
        size_steps=(4,),
        laplacian_weight=1.0,
        discriminator_weight=0.05,
        discriminator_from=0.25,
        latent_noise=0.08,
        log_every=2,
        grid_every=0,
    )
    train(config, tmp_path / "whole")
    keep = Run.checkpoint

    def keep_and_stop(run: Run) -> None:
        keep(run)
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Run, "checkpoint", keep_and_stop)
        train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    file = "model/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    sharp = read_autoencoder(tmp_path / "whole" / "model")
    pictures = torch.rand(1, 3, 64, 64) * 2 - 1
    assert sharp.encode(pictures).latent_dist.parameters.equal(first.encode(pictures).latent_dist.parameters)
    with (tmp_path / "whole" / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["matching"]) > 0
    assert float(rows[1]["laplacian"]) > 0


def test_training_writes_an_autoencoder_and_its_grid(archive: Path, tmp_path: Path) -> None:
    config = replace(TINY_VAE, data=archive, size_steps=(2,), log_every=2, grid_every=1)
    train(config, tmp_path / "run")
    assert read_autoencoder(tmp_path / "run" / "model").config.scaling_factor == SCALING_FACTOR
    names = sorted(path.name for path in (tmp_path / "run").glob("*.png"))
    assert names == ["reconstruction-000001.png", "reconstruction-000002.png"]  # also where no line is logged
    log = (tmp_path / "run" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert log[0].split(",")[3:] == [*TERMS, "norm", "psnr", "detail", "detail_wanted"]
    assert len(log) == 2


def test_folder_without_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no autoencoder"):
        read_autoencoder(tmp_path)
