"""Typed TOML configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train import autoencoder, base, finetune, transparency
from lib_layerdiffusion.train.config import as_metadata, from_table, read_config
from lib_layerdiffusion.train.dataset import Augmentation
from lib_layerdiffusion.train.transparency import TransparencyConfig

EMBEDDED = Path(transparency.__file__).with_name("embedded")


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_and_overrides_become_typed_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'data = "a.zip"\nsizes = [64]\nsize_steps = [3]\nbatches = [2]\n[augmentation]\nflip = false\n'
    )
    config = read_config(TransparencyConfig, path, ["learning_rate=1", 'autoencoder="b"', "size_steps = [9]"])
    assert config.data == Path("a.zip")
    assert config.autoencoder == Path("b")
    assert config.size_steps == (9,)
    assert isinstance(config.learning_rate, float)
    assert config.augmentation == Augmentation(flip=False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("speed = 3", "has no speed; it knows .*learning_rate"),
        ("[augmentation]\nspin = 1", "has no augmentation.spin"),
        ('seed = "one"', "seed is 'one'; it must be of type int"),
        ("seed = true", "seed is True"),
        ("ema = false", "ema is False"),
        ("sizes = 64", "sizes is 64"),
        ("sizes = [64.5]", "sizes is 64.5"),
        ("augmentation = { scale = [0.1, 0.2, 0.3] }", "augmentation.scale"),
        ("seed = ", "not valid TOML"),
        ("sizes = [64]", "describe the same stages"),
        ("batches = [12, 3]", "batches holds 3"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        read_config(TransparencyConfig, write(tmp_path, text), [])


def test_choice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Refusal, match="form is 'lorra'; it must be one of attention_sharing, lora"):
        read_config(finetune.FinetuneConfig, None, ['form="lorra"'])


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="can't be read"):
        read_config(TransparencyConfig, tmp_path / "absent.toml", [])


@pytest.mark.parametrize("override", ["seed", "seed=one"])
def test_override_that_is_no_toml_is_refused(override: str) -> None:
    with pytest.raises(Refusal, match="not valid TOML"):
        read_config(TransparencyConfig, None, [override])


def test_metadata_makes_the_same_configuration() -> None:
    config = read_config(TransparencyConfig, None, ["seed=77", "soft_share=0.5"])
    table = json.loads(as_metadata(config)["training_config"])
    assert from_table(TransparencyConfig, table) == config


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("autoencoder", autoencoder.AutoencoderConfig),
        ("autoencoder_room", autoencoder.AutoencoderConfig),
        ("transparency_start", transparency.TransparencyConfig),
        ("transparency", transparency.TransparencyConfig),
        ("base", base.BaseConfig),
        ("foreground", finetune.FinetuneConfig),
    ],
)
def test_configurations_of_the_embedded_model_are_valid(name: str, cls: type) -> None:
    config = read_config(cls, EMBEDDED / f"{name}.toml", [])
    assert asdict(config)["data"] == Path("sprites.zip")
