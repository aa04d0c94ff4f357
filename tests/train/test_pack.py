"""Putting finished runs together as one small model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.base import train_tokenizer
from lib_layerdiffusion.train.pack import main, pack
from lib_layerdiffusion.train.recipe import LAYER_FILES, PARTS, RECIPE

RUNS = [training.run for training in RECIPE]

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path: Path, sd15_folder: Path) -> Path:
    folder = tmp_path / "runs"
    for run in RUNS:
        (folder / run / "model").mkdir(parents=True)
        (folder / run / "config.json").write_text(
            json.dumps({"seed": run, "data": "/home/me/discs.zip", "backgrounds": None}), encoding="utf-8"
        )
        (folder / run / "log.csv").write_text("step,loss\n", encoding="utf-8")
    for name, run in LAYER_FILES.items():
        tensors = {"weight": torch.full((2, 2), 0.1), "count": torch.arange(3)}
        save_file(tensors, folder / run / "model" / f"{name}.safetensors", {"note": "kept"})
    shutil.copytree(sd15_folder, folder / PARTS["unet"] / "model", dirs_exist_ok=True)
    train_tokenizer(["red disc", "blue disc"], folder / PARTS["unet"] / "tokenizer")
    shutil.copytree(sd15_folder / "vae", folder / PARTS["vae"] / "model", dirs_exist_ok=True)
    config = folder / PARTS["vae"] / "model" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"_name_or_path": "/home/me/autoencoder"}
    config.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_model_is_whole_in_half_precision_and_tells_its_training(runs: Path, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    size = pack(runs, archive, archive, out)
    files = [file for file in out.rglob("*") if file.is_file()]
    assert size == sum(file.stat().st_size for file in files)
    wanted = {**PARTS, **LAYER_FILES}
    found: dict[str, str] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                place = file.stem if file.parent.name == "layer_model" else file.parent.name
                config = json.loads(tensors.metadata()["training_config"])
                assert config["data"] == "discs.zip"
                found[place] = config["seed"]
                kinds = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118 not a dict
                assert torch.float32 not in kinds
                assert torch.float16 in kinds
    assert found == wanted
    with safe_open(out / "layer_model" / "layer_sd15_transparent_attn.safetensors", "pt") as tensors:
        assert tensors.metadata()["note"] == "kept"
        assert tensors.get_tensor("count").dtype == torch.int64
    captions = json.loads((out / "captions.json").read_text(encoding="utf-8"))
    assert captions == [
        {"caption": "red disc", "kind": "opaque"},
        {"caption": "blue disc", "kind": "opaque"},
        {"caption": "glass disc", "kind": "soft"},
    ]
    assert {path.parent.name for path in (out / "training").rglob("log.csv")} == set(RUNS)
    assert not any("/home" in path.read_text(encoding="utf-8") for path in out.rglob("*.json"))
    assert {file.stat().st_mode for file in files} == {(out / "captions.json").stat().st_mode}
    assert (out / "model_index.json").is_file()
    assert (out / "tokenizer").is_dir()
    assert (out / "scheduler").is_dir()


def test_packed_model_is_the_one_trained_and_loads_in_old_and_new_transformers(
    runs: Path, archive: Path, tmp_path: Path, sd15_folder: Path
) -> None:
    pack(runs, archive, archive, tmp_path / "model")
    packed, trained = (StableDiffusionPipeline.from_pretrained(folder) for folder in (tmp_path / "model", sd15_folder))
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(packed, part).state_dict()
        for name, value in getattr(trained, part).state_dict().items():
            assert torch.allclose(found[name].float(), value, atol=1e-3), name
    with safe_open(tmp_path / "model" / "text_encoder" / "model.safetensors", "pt") as tensors:
        assert all(key.startswith("text_model.") for key in tensors.keys())  # noqa: SIM118 not a dict
    assert {path.name for path in (tmp_path / "model" / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt"}
    assert len(packed.tokenizer("red disc").input_ids) == 4


def test_older_model_is_replaced_and_nothing_is_left_beside_it(
    runs: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    words = ["--runs", str(runs), "--data", str(archive), "--backgrounds", str(archive), "--out", str(out)]
    assert main(words) == 0
    (out / "stale").write_text("x", encoding="utf-8")
    assert main(words) == 0
    assert not (out / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runs"]
    assert f"MB in {out}" in capsys.readouterr().out


def test_folder_that_holds_something_else_is_left_alone(runs: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x", encoding="utf-8")
    with pytest.raises(Refusal, match="something else"):
        pack(runs, archive, archive, tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").exists()


def test_unfinished_run_is_named(runs: Path, archive: Path, tmp_path: Path) -> None:
    shutil.rmtree(runs / "foreground" / "model")
    with pytest.raises(Refusal, match="foreground isn't finished"):
        pack(runs, archive, archive, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_earlier_model_stands_in_for_unfinished_runs(runs: Path, archive: Path, tmp_path: Path) -> None:
    pack(runs, archive, archive, tmp_path / "first")
    other = tmp_path / "other"
    shutil.copytree(runs / PARTS["vae"], other / PARTS["vae"])
    (other / PARTS["vae"] / "config.json").write_text(json.dumps({"seed": "new", "data": "d"}), encoding="utf-8")
    pack(other, Path("absent.zip"), Path("absent.zip"), tmp_path / "second", earlier=tmp_path / "first")
    files = [{f.relative_to(m) for m in [tmp_path / run] for f in m.rglob("*")} for run in ("first", "second")]
    assert files[0] == files[1]
    changed = {
        str(name)
        for name in files[0]
        if (tmp_path / "first" / name).is_file()
        and (tmp_path / "first" / name).read_bytes() != (tmp_path / "second" / name).read_bytes()
    }
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert changed == {vae, f"training/{PARTS['vae']}/config.json"}
    with pytest.raises(Refusal, match="or name an earlier model"):
        pack(other, archive, archive, tmp_path / "third")
