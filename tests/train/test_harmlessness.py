"""The measure of harm that an offset does, and its command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_layerdiffusion import cli
from lib_layerdiffusion.train.autoencoder import psnr, read_autoencoder
from lib_layerdiffusion.train.dataset import TransparentBatch, read_sprites
from lib_layerdiffusion.train.harmlessness import Harm, measure, tabulate
from lib_layerdiffusion.transparent_vae import TransparentEncoder

WIDTHS = (4, 4, 8, 8)


def make_encoder(offset: float) -> TransparentEncoder:
    """An encoder whose offset is a constant."""
    encoder = TransparentEncoder(WIDTHS)
    nn.init.constant_(encoder.blocks[-1].bias, offset / TransparentEncoder.factor)
    return encoder


def test_no_offset_does_no_harm(archive: Path, vae_folder: Path) -> None:
    (row,) = measure(read_autoencoder(vae_folder), make_encoder(0), read_sprites(archive, 64)[:1])
    assert (row.name, row.kind) == ("red.png", "opaque")
    assert (row.mean, row.largest, row.psnr) == (0, 0, 100)


def test_harm_is_the_difference_that_the_frozen_decoder_shows(archive: Path, vae_folder: Path) -> None:
    vae, sprites = read_autoencoder(vae_folder), read_sprites(archive, 64)[2:4]
    rows = measure(vae, make_encoder(3), sprites)
    for row, sprite in zip(rows, sprites, strict=True):
        with torch.no_grad():
            posterior = vae.encode(TransparentBatch.of([sprite.premultiplied]).grey * 2 - 1).latent_dist
            latents = posterior.mean, posterior.mean + 3 * posterior.std
            plain, changed = ((vae.decode(latent).sample / 2 + 0.5).clamp(0, 1) for latent in latents)
        assert row.psnr == pytest.approx(float(psnr(changed, plain)), abs=1e-2)
        assert row.mean == pytest.approx(float((changed - plain).abs().mean()), rel=1e-3)
        assert row.largest == pytest.approx(float((changed - plain).abs().max()), rel=1e-3)
        assert 0 < row.mean < row.largest


def test_table_has_a_line_for_each_kind_and_one_for_all() -> None:
    rows = [Harm("a", "opaque", 30, 0.1, 0.2), Harm("b", "soft", 40, 0.3, 0.4), Harm("c", "soft", 50, 0.5, 0.9)]
    assert tabulate(rows).splitlines()[2:] == [
        "| opaque | 1 | 30.00 | 30.00 | 0.1000 | 0.2000 |",
        "| soft | 2 | 45.00 | 40.00 | 0.4000 | 0.9000 |",
        "| all | 3 | 40.00 | 30.00 | 0.3000 | 0.9000 |",
    ]


def test_command_prints_the_table(
    archive: Path, sd15_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(make_encoder(0).state_dict(), tmp_path / "encoder.safetensors")
    words = [
        str(archive),
        "--vae",
        str(sd15_folder),
        "--encoder",
        str(tmp_path / "encoder.safetensors"),
        "--size",
        "64",
    ]
    assert cli.main(["harmlessness", *words, "--split", "held-out"]) == 0
    assert "| all | 2 | 100.00 | 100.00 | 0.0000 | 0.0000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--split", "absent"], "no image of the split absent"),
        (["--vae", "absent"], "no autoencoder"),
        (["--encoder", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_command_refuses_in_one_sentence(
    archive: Path,
    vae_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    sentence: str,
) -> None:
    save_file(make_encoder(0).state_dict(), tmp_path / "encoder.safetensors")
    words = [str(archive), "--vae", str(vae_folder), "--encoder", str(tmp_path / "encoder.safetensors"), "--size", "64"]
    assert cli.main(["harmlessness", *words, *change]) == 2
    assert sentence in capsys.readouterr().err
