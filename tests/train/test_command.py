"""The command `layerdiffusion train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_layerdiffusion import cli
from lib_layerdiffusion.train import command, finetune, pack
from lib_layerdiffusion.train.recipe import DECODER, ENCODER, RECIPE


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    for name in (*command.STAGES, *command.TOOLS, "embedded"):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fly"], "no training command fly"),
        (["evaluate", "a", "b", "--size", "-1"], "-1 is not between 64 and 2048"),
        (["evaluate", "a", "b", "--seeds", "0", "9" * 400], "is not between 0 and"),
        (["transparency", "--out", "x", "speed=1"], "no speed"),
        (["transparency", "--out", "x", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_stage_gets_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Path]] = []
    monkeypatch.setattr(finetune, "train", lambda config, out: calls.append((config, out)))
    (tmp_path / "a.toml").write_text("rank = 3\nsteps = 5\n", encoding="utf-8")
    words = ["finetune", "--config", str(tmp_path / "a.toml"), "--out", "runs/a", "steps=7", 'form="lora"']
    assert cli.main(["train", *words]) == 0
    ((config, out),) = calls
    assert (config.rank, config.steps, config.form, out) == (3, 7, "lora", Path("runs/a"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configurations of the runs that were trained, by their names; `pack` has what was packed."""
    found: dict[str, Any] = {}
    for stage, name in command.STAGES.items():
        module = __import__(f"{command.__package__}.{stage}", fromlist=[name])
        monkeypatch.setattr(module, "train", lambda config, out: found.update({out.name: config}))
    monkeypatch.setattr(pack, "pack", lambda *paths: found.update(pack=paths))
    return found


def test_embedded_model_is_trained_from_the_folders_given(tmp_path: Path, calls: dict[str, Any]) -> None:
    runs, data, behind, out = tmp_path / "runs", tmp_path / "it's.zip", tmp_path / "b.zip", tmp_path / "model"
    (runs / "autoencoder" / "model").mkdir(parents=True)  # this one is finished
    words = ["--data", str(data), "--backgrounds", str(behind), "--runs", str(runs), "--out", str(out)]
    assert cli.main(["train", "embedded", *words]) == 0
    assert calls.pop("pack") == (runs, data, behind, out)
    assert list(calls) == [training.run for training in RECIPE[1:]]
    assert {config.data for config in calls.values()} == {data}
    assert {run for run, config in calls.items() if getattr(config, "backgrounds", None)} == {
        "autoencoder_sharp",
        "base_scenes",
        "together",
        "foreground_to_background",
        "background_to_foreground",
        "autoencoder_crisp",
        "base_last",
        "together_last",
        "foreground_to_background_last",
        "background_to_foreground_last",
        "together_end",
        "background_to_foreground_end",
        "foreground_to_background_end",
        "foreground_to_background_fine",
        "foreground_to_background_close",
        "foreground_to_background_closer",
        "together_shaped",
        "background_to_foreground_shaped",
        "autoencoder_keen",
    }
    assert calls["autoencoder_room"].start == calls["base"].autoencoder == runs / "autoencoder" / "model"
    assert calls["transparency_start"].start_decoder is None
    assert calls["transparency_room"].start_encoder is None
    assert calls["transparency_room"].start_decoder == runs / "transparency_start" / "model" / f"{DECODER}.safetensors"
    assert calls["transparency"].start_encoder == runs / "transparency_room" / "model" / f"{ENCODER}.safetensors"
    assert calls["transparency_decoder"].decoder_only
    assert calls["base_scenes"].start == runs / "base" / "model"
    assert calls["base_scenes"].backgrounds == behind
    assert calls["foreground"].base == runs / "base" / "model"
    assert calls["foreground_scenes"].base == runs / "base_scenes" / "model"
    assert calls["foreground_scenes"].start.is_relative_to(runs / "foreground" / "model")


def test_one_run_of_the_embedded_model_is_trained_alone(tmp_path: Path, calls: dict[str, Any]) -> None:
    (tmp_path / "base_scenes" / "model").mkdir(parents=True)  # finished: it may be lengthened
    assert cli.main(["train", "embedded", "--runs", str(tmp_path), "--only", "base_scenes"]) == 0
    assert list(calls) == ["base_scenes"]


def test_run_that_the_recipe_does_not_have_is_refused(
    calls: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "embedded", "--only", "base_scene"]) == 2
    assert "did you mean 'base_scenes'" in capsys.readouterr().err
    assert not calls
