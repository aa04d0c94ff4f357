"""Typed TOML configuration."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train import command, finetune, transparency
from lib_layerdiffusion.train.config import as_metadata, from_table, read_config
from lib_layerdiffusion.train.dataset import Augmentation
from lib_layerdiffusion.train.recipe import LAYER_FILES, PARTS, RECIPE, Training
from lib_layerdiffusion.train.transparency import TransparencyConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
        ("speed = 3", "has no speed; it knows .*augmentation.flip, .*learning_rate"),
        ("[augmentation]\nspin = 1", "has no augmentation.spin"),
        ('seed = "one"', "seed is 'one'. Input should be a valid integer"),
        ("seed = true", "seed is True"),
        ("ema = false", "ema is False"),
        ("sizes = 64", "sizes is 64"),
        ("sizes = [64.5]", "sizes.0 is 64.5"),
        ("sizes = [100]", "sizes.0 is 100. Input should be a multiple of 64"),
        ("sizes = [0]", "sizes.0 is 0"),
        ("log_every = 0", "log_every is 0. Input should be greater than 0"),
        ("ema = 1.5", "ema is 1.5. Input should be less than or equal to 1"),
        ("learning_rate = nan", "learning_rate is nan. Input should be a finite number"),
        ("data = 3", "data is 3"),
        ("seed = 1979-05-27", "seed is '1979-05-27'"),
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
    with pytest.raises(Refusal, match=r"form is 'lorra'\. Input should be 'attention_sharing' or 'lora'"):
        read_config(finetune.FinetuneConfig, None, ['form="lorra"'])


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"absent.toml can.t be used \(No such file"):
        read_config(TransparencyConfig, tmp_path / "absent.toml", [])


@pytest.mark.parametrize("override", ["seed", "seed=one"])
def test_override_that_is_no_toml_is_refused(override: str) -> None:
    with pytest.raises(Refusal, match="not valid TOML"):
        read_config(TransparencyConfig, None, [override])


def test_metadata_makes_the_same_configuration() -> None:
    config = read_config(TransparencyConfig, None, ["seed=77", "soft_share=0.5"])
    table = json.loads(as_metadata(config)["training_config"])
    assert from_table(TransparencyConfig, table) == config


@pytest.mark.parametrize("stage", ["base", "finetune"])
def test_size_that_no_unet_takes_is_refused_before_anything_is_read(stage: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"size is 100\. Input should be a multiple of 64"):
        command.train_stage(stage, None, ["size=100", 'data="absent.zip"'], tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is not valid TOML"):
        read_config(TransparencyConfig, write(tmp_path, "seed = " + "[" * 20_000 + "]" * 20_000), [])


@pytest.mark.parametrize("training", RECIPE, ids=lambda training: training.run)
def test_configurations_of_the_embedded_model_are_valid_and_name_no_places(training: Training) -> None:
    cls = getattr(importlib.import_module(f"{command.__package__}.{training.stage}"), command.STAGES[training.stage])
    path = EMBEDDED / f"{training.run}.toml"
    config = read_config(cls, path, [])
    places = {option.name for option in fields(cls) if "Path" in str(option.type)}
    assert not places & set(tomllib.loads(path.read_text(encoding="utf-8")))
    assert set(training.find_inputs(Path("r"), Path("d"), Path("b"))) <= places
    assert config.log_every > 0


def test_every_configuration_is_in_the_recipe() -> None:
    assert {path.stem for path in EMBEDDED.glob("*.toml")} == {training.run for training in RECIPE}


def test_runs_start_from_what_earlier_ones_made() -> None:
    made: set[str] = set()
    for training in RECIPE:
        assert {place.partition("/")[0] for place in training.inputs.values()} <= made
        made.add(training.run)
    assert {*PARTS.values(), *LAYER_FILES.values()} <= made
