"""The command `export-checkpoint`: what it writes for AUTOMATIC1111 is read back by diffusers' own converter."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lib_layerdiffusion.embedded import EMBEDDED_FOLDER
from lib_layerdiffusion.embedded.a1111_checkpoint import write
from lib_layerdiffusion.refusal import Refusal

LDM = re.compile(
    r"model\.diffusion_model\.(time_embed|input_blocks|middle_block|output_blocks|out)\.\d+\."
    r"|first_stage_model\.(encoder|decoder)\.(conv_in|conv_out|norm_out|mid\.|(down|up)\.\d\.(block|downsample|upsample))"
    r"|first_stage_model\.(quant_conv|post_quant_conv)\."
    r"|cond_stage_model\.transformer\.text_model\.(embeddings|encoder|final_layer_norm)\."
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A WebUI's folder of models, still empty."""
    folder = tmp_path / "models"
    (folder / "Stable-diffusion").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def exported(
    request: pytest.FixtureRequest, tiny_model: Path, embedded_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A model, and the folder that it was exported into as "own"."""
    model = {"tiny": tiny_model, "embedded": embedded_model}[request.param]
    folder = tmp_path_factory.mktemp("models")
    write(model, folder, folder / "layers", "own")
    return model, folder / "Stable-diffusion"


def check_equal(module: nn.Module, state: dict[str, Any]) -> None:
    own = module.state_dict()
    assert state.keys() - own.keys() <= {"text_model.embeddings.position_ids"}
    assert own.keys() <= state.keys()
    for name, value in own.items():
        assert torch.equal(state[name].to(value.dtype).reshape(value.shape), value), name


def take(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_unet_comes_back_as_it_was(exported: tuple[Path, Path]) -> None:
    model, folder = exported
    unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype="auto")
    check_equal(unet, convert_ldm_unet_checkpoint(load_file(folder / "own.safetensors"), dict(unet.config)))


def test_autoencoder_comes_back_as_it_was(exported: tuple[Path, Path]) -> None:
    model, folder = exported
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype="auto")
    check_equal(vae, convert_ldm_vae_checkpoint(load_file(folder / "own.safetensors"), dict(vae.config)))


def test_text_encoder_and_tokenizer_come_back_as_they_were(exported: tuple[Path, Path]) -> None:
    model, folder = exported
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", torch_dtype="auto")
    state = take(load_file(folder / "own.safetensors"), "cond_stage_model.transformer.")
    prefix = next(iter(text_encoder.state_dict())).startswith("text_model.")
    check_equal(text_encoder, state if prefix else take(state, "text_model."))
    again = CLIPTextModel(CLIPTextModel.config_class.from_pretrained(folder / "own-text"))
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in text_encoder.state_dict().items()
    }
    before, after = (CLIPTokenizer.from_pretrained(path) for path in (model / "tokenizer", folder / "own-text"))
    assert before("a red apple").input_ids == after("a red apple").input_ids


def test_every_key_is_one_of_ldm(exported: tuple[Path, Path]) -> None:
    state = load_file(exported[1] / "own.safetensors")
    assert [key for key in state if not LDM.match(key)] == []
    attention = [key for key in state if ".mid.attn_1." in key and key.endswith("weight") and ".norm." not in key]
    assert len(attention) == 8
    assert all(state[key].shape[2:] == (1, 1) for key in attention)


def test_yaml_says_what_the_model_is(exported: tuple[Path, Path]) -> None:
    model, folder = exported
    params = json.loads((folder / "own.yaml").read_text("utf-8"))["model"]["params"]
    scheduler = json.loads((model / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    velocity = scheduler["prediction_type"] == "v_prediction"
    assert params["parameterization"] == ("v" if velocity else "eps")
    assert params["cond_stage_config"]["params"] == {"folder": "own-text"}, "a path would break when files are moved"
    for part, name in (("unet", "unet_config"), ("vae", "first_stage_config")):
        config = json.loads((model / part / "config.json").read_text("utf-8"))
        given = params[name]["params"]
        assert (given["widths"], given["groups"]) == (config["block_out_channels"], config["norm_num_groups"])


def test_paths_are_told_and_layer_files_lie_in_a_folder_of_the_checkpoint(run: Any, models: Path) -> None:
    outcome = run("export-checkpoint", models, "--model", run.model)
    assert outcome.code == 0, outcome.err
    assert sorted(outcome.paths) == sorted(path for path in models.rglob("*") if path.is_file())
    name = run.model.name
    names = {path.name for path in (run.model / "layer_model").iterdir()}
    assert {path.name for path in (models / "layer_model" / name).iterdir()} == names
    assert {path.name for path in (models / "Stable-diffusion").iterdir()} == {
        f"{name}.safetensors",
        f"{name}.yaml",
        f"{name}-text",
    }


def test_layer_files_go_where_they_are_wanted_also_under_the_commands_earlier_name(
    run: Any, models: Path, tmp_path: Path
) -> None:
    assert run("export", models, "--layers", tmp_path / "layers", "--name", "own").code == 0
    names = {path.name for path in (EMBEDDED_FOLDER / "layer_model").iterdir()}
    assert {path.name for path in (tmp_path / "layers").iterdir()} == names
    assert (models / "Stable-diffusion" / "own.safetensors").exists()
    assert not (models / "layer_model").exists()


def test_a_second_time_is_fine_and_another_file_is_kept(run: Any, models: Path) -> None:
    words = ("export-checkpoint", models, "--model", run.model, "--name", "own")
    assert [run(*words).code for _ in range(2)] == [0, 0]
    mine = models / "layer_model" / "own" / "layer_sd15_transparent_attn.safetensors"
    mine.write_text("mine")
    (models / "Stable-diffusion" / "own.yaml").unlink()
    outcome = run(*words)
    assert outcome.code == 2
    assert str(mine) in outcome.err
    assert mine.read_text() == "mine"
    assert not (models / "Stable-diffusion" / "own.yaml").exists(), "something was written all the same"


def test_model_without_layer_files(bare_model: Path, models: Path) -> None:
    written = write(bare_model, models, models / "layers", "own")
    assert {path.relative_to(models).parts[0] for path in written} == {"Stable-diffusion"}


@pytest.mark.parametrize("part", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer"])
def test_incomplete_model_is_refused(tiny_model: Path, models: Path, tmp_path: Path, part: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (shutil.rmtree if (model / part).is_dir() else Path.unlink)(model / part)
    with pytest.raises(Refusal, match=re.escape(str(model / part))):
        write(model, models, models / "layers", "own")
    assert [*models.rglob("*.*")] == []


@pytest.mark.parametrize("change", [{"use_linear_projection": True}, {"down_block_types": ["DownBlock2D"] * 3}])
def test_other_structures_are_refused(tiny_model: Path, models: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = model / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(Refusal, match=r"SD1\.5"):
        write(model, models, models / "layers", "own")


def test_folder_of_something_else_is_refused(run: Any, tmp_path: Path) -> None:
    outcome = run("export-checkpoint", tmp_path)
    assert outcome.code == 2
    assert "Stable-diffusion" in outcome.err
    assert [*tmp_path.iterdir()] == []


def test_checkpoint_is_refused(run: Any, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"")
    outcome = run("export-checkpoint", models, "--model", file)
    assert outcome.code == 2
    assert "already" in outcome.err
