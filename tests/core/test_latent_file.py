"""Latent files: what is written comes back, and what isn't one is refused in a sentence."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_layerdiffusion.latent_file import FORMAT, LatentFile, read_latent
from lib_layerdiffusion.refusal import Refusal


def write(path: Path, latent: torch.Tensor, **about: str) -> Path:
    save_file({"latent": latent}, path, metadata={"format": FORMAT, **about})
    return path


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    latent = torch.randn(1, 4, 3, 5)
    LatentFile(latent, 37, 20, "a model").save(tmp_path / "a.safetensors")
    read = read_latent(tmp_path / "a.safetensors")
    assert torch.equal(read.latent, latent)
    assert (read.width, read.height, read.model) == (37, 20, "a model")
    assert torch.equal(read_latent(io.BytesIO((tmp_path / "a.safetensors").read_bytes())).latent, latent)


def test_a_wrong_shape_is_refused_before_the_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.safetensors", torch.zeros(1, 4, 1, 3000))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("the numbers were read"))
    with pytest.raises(Refusal, match=r"the shape \(1, 4, 1, 3000\)"):
        read_latent(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_floating_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    read = read_latent(write(tmp_path / "a.safetensors", torch.ones(1, 4, 2, 2).to(dtype)))
    assert read.latent.dtype == torch.float32
    assert bool((read.latent == 1).all())


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        (torch.ones(1, 4, 2, 2, dtype=torch.int64), "doesn't hold a LayerDiffusion latent"),
        (torch.full((1, 4, 2, 2), float("nan")), "NaN or infinite"),
        (torch.full((1, 4, 2, 2), float("nan")).to(torch.float8_e4m3fn), "NaN or infinite"),
        (torch.ones(4, 2, 2), "instead of (1, 4, h, w)"),
        (torch.ones(2, 4, 2, 2), "instead of (1, 4, h, w)"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, latent: torch.Tensor, said: str) -> None:
    with pytest.raises(Refusal) as refusal:
        read_latent(write(tmp_path / "a.safetensors", latent))
    assert said in str(refusal.value)


@pytest.mark.parametrize("width", ["", "0", "17", "-1", "²", "٣", "1e3", "9" * 5000])
def test_an_impossible_side_means_the_whole_latent(tmp_path: Path, width: str) -> None:
    assert read_latent(write(tmp_path / "a.safetensors", torch.ones(1, 4, 2, 2), width=width)).width == 16
