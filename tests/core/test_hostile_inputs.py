"""Some hundred damaged and absurd inputs, always the same ones: each is read or refused in one sentence, soon."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from lib_layerdiffusion.image_file import read_image, read_size
from lib_layerdiffusion.latent_file import FORMAT, LatentFile, read_latent
from lib_layerdiffusion.options import FIELDS, LayerOptions, parse
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.config import read_config
from lib_layerdiffusion.train.dataset import read_sprites
from lib_layerdiffusion.train.transparency import TransparencyConfig
from lib_layerdiffusion.weights import WeightStore
from lib_layerdiffusion.weights.header import Header, read_header
from tests.seeded import damage

SECONDS = 10  # for one input, on a busy machine; each takes some milliseconds
NUMBERS = ("1e999", "-1e999", "NaN", "9" * 400, "9" * 5000, "-0", "-1", "0.5", "1e-400", "18446744073709551616")
VALUES = (
    *NUMBERS,
    "null",
    "true",
    '""',
    '"a"',
    '"\\ud800"',
    '"\\u0000"',
    '"²"',
    "[]",
    "{}",
    "[[]]",
    '"' + "x" * 5000 + '"',
)
PATHS = ("a\0b", "x" * 300, "", "/proc/1/mem", "/dev/zero", "/dev/full", "/", "\udc80", "a/" * 2000)


def check(call: Callable[[], Any]) -> Any:
    """What `call` gives, or None where it was refused."""
    began, made, said = time.monotonic(), None, "read."
    try:
        made = call()
    except Refusal as refusal:
        said = str(refusal)
    assert said.endswith("."), said
    assert "\n" not in said
    assert len(said) < 1500, said
    assert time.monotonic() - began < SECONDS
    return made


def with_entry(part: str, value: str, data: bytes) -> bytes:
    """A safetensors file of one tensor, `latent`, with one part of its entry in other words."""
    entry = {"dtype": '"F32"', "shape": "[1,4,4,4]", "data_offsets": "[0,256]"} | {part: value}
    tensor = ",".join(f'"{name}":{text}' for name, text in entry.items())
    header = f'{{"__metadata__":{{"format":"{FORMAT}"}},"latent":{{{tensor}}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP", "JPEG", "WEBP"])
def test_damaged_images(kind: str, tmp_path: Path) -> None:
    rng, whole = random.Random(1), io.BytesIO()
    pixels = (np.arange(20 * 30 * 4) % 256).astype(np.uint8).reshape(20, 30, 4)
    Image.fromarray(pixels).convert("RGB" if kind in ("BMP", "JPEG") else "RGBA").save(whole, kind)
    for _ in range(40):
        (tmp_path / "a").write_bytes(damage(whole.getvalue(), rng))
        check(lambda: read_size(tmp_path / "a"))
        read = check(lambda: read_image(tmp_path / "a"))
        assert read is None or (read.dtype, read.ndim, read.shape[2]) == (np.uint8, 3, 4)


@pytest.mark.parametrize("part", ["dtype", "shape", "data_offsets"])
def test_absurd_headers(part: str, tmp_path: Path) -> None:
    """As latent and as weight file; what is read has the shape and the numbers that it says it has."""
    values = [*VALUES, *(f"[1,4,4,{value}]" for value in VALUES), *(f"[0,{value}]" for value in VALUES)]
    values += ['"F64"', '"F8_E5M2"', '"F4"', '"C64"', "[256]", "[64,4]", "[1]" * 3, "[" + "9," * 10_000 + "9]"]
    for value in values:
        data = with_entry(part, value, bytes(256))
        (tmp_path / "own.safetensors").write_bytes(data)
        latent = check(lambda: read_latent(io.BytesIO(data), "latent"))  # noqa: B023 - called at once
        assert latent is None or isinstance(latent, LatentFile)
        loaded = check(lambda: WeightStore().load(tmp_path / "own.safetensors"))
        assert loaded is None or loaded["latent"].nbytes == 256


def test_damaged_latents_and_weights(tmp_path: Path) -> None:
    rng = random.Random(2)
    whole = save({"latent": torch.zeros(1, 4, 4, 4)}, {"format": FORMAT, "width": "32", "height": "32"})
    path = tmp_path / "vae_transparent_encoder.safetensors"
    for _ in range(150):
        path.write_bytes(damage(whole, rng))
        latent = check(lambda: read_latent(path))
        assert latent is None or (latent.latent.shape[:2] == (1, 4) and bool(torch.isfinite(latent.latent).all()))
        (row,) = WeightStore([tmp_path]).check(["vae_transparent_encoder"], values=True)
        assert row.state == "damaged"
        with suppress(Exception):
            assert isinstance(read_header(path), Header)


def test_absurd_options() -> None:
    for name in (*FIELDS, "\ud800"):
        for text in VALUES:
            check(lambda: parse(name, text) if name in FIELDS else None)  # noqa: B023
            try:
                value = json.loads(text)
            except ValueError:  # which no client can send
                continue
            made = check(lambda: LayerOptions.from_dict({name: value}))  # noqa: B023
            assert made is None or isinstance(made, LayerOptions)
            for place in range(12):
                check(lambda: LayerOptions.from_positional([True, *[None] * place, value]))  # noqa: B023


@pytest.mark.slow
def test_absurd_configurations(tmp_path: Path) -> None:
    values = (*VALUES, "inf", "1979-05-27", "[" * 3000, "{a=" * 1000, "0x_", "'\udc80'")
    for name in ("seed", "sizes", "augmentation", "no\0thing"):
        for value in values:
            check(lambda: read_config(TransparencyConfig, None, [f"{name}={value}"]))  # noqa: B023
    rng = random.Random(3)
    for _ in range(60):
        (tmp_path / "a.toml").write_bytes(
            damage(b'data = "a.zip"\nseed = 3\n[augmentation]\nscale = [0.7, 1.0]\n', rng)
        )
        check(lambda: read_config(TransparencyConfig, tmp_path / "a.toml", []))


@pytest.mark.parametrize("key", ["file_name", "text", "caption", "kind", "split", "prompt", "foreground", "other"])
def test_absurd_metadata(key: str, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    for value in VALUES:
        (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "{key}": {value}}}', encoding="utf-8")
        for sprite in check(lambda: read_sprites(tmp_path, 8)) or ():
            assert isinstance(sprite.text.encode(), bytes)
            assert sprite.split in ("train", "held-out")


@pytest.mark.parametrize("path", PATHS)
def test_absurd_paths(path: str) -> None:
    for read in (read_image, read_size, read_latent, WeightStore().load):
        assert check(lambda: read(path)) is None  # noqa: B023
    for call in (
        lambda: read_config(TransparencyConfig, Path(path), []),
        lambda: WeightStore([path]).load("vae_transparent_encoder"),
    ):
        assert check(call) is None


@pytest.mark.parametrize(
    "address", ["http://[::1", "ftp://a", "a", "http://", "http://\0", "http://a/\n", "http://ü:²", "\udc80", "//a"]
)
def test_absurd_mirrors(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(Refusal, match="HF_ENDPOINT") as refusal:
        WeightStore([], tmp_path / "a", endpoint=address, timeout=1).fetch("vae_transparent_encoder")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "a" / "vae_transparent_encoder.safetensors").exists()
