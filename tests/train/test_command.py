"""The command `layerdiffusion train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_layerdiffusion import cli
from lib_layerdiffusion.train import command, finetune, pack


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    for name in (*command.STAGES, *command.TOOLS, "embedded"):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fly"], "no training command fly"),
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


def test_embedded_model_is_trained_from_the_folders_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}
    packed: list[tuple[Path, ...]] = []
    for stage, name in command.STAGES.items():
        module = __import__(f"{command.__package__}.{stage}", fromlist=[name])
        monkeypatch.setattr(module, "train", lambda config, out: calls.update({out.name: config}))
    monkeypatch.setattr(pack, "pack", lambda *paths: packed.append(paths))
    runs, data, out = tmp_path / "runs", tmp_path / "it's.zip", tmp_path / "model"
    (runs / "autoencoder" / "model").mkdir(parents=True)  # this one is finished
    assert cli.main(["train", "embedded", "--data", str(data), "--runs", str(runs), "--out", str(out)]) == 0
    assert list(calls) == [
        "autoencoder_room",
        "transparency_start",
        "transparency_room",
        "transparency",
        "transparency_decoder",
        "transparency_edges",
        "transparency_last",
        "base",
        "foreground",
    ]
    assert {config.data for config in calls.values()} == {data}
    assert calls["autoencoder_room"].start == calls["base"].autoencoder == runs / "autoencoder" / "model"
    assert calls["transparency"].autoencoder == runs / "autoencoder_room" / "model"
    assert calls["transparency_start"].start_decoder is None
    assert calls["transparency_room"].start_encoder is None
    assert calls["transparency_room"].start_decoder.parent == runs / "transparency_start" / "model"
    assert calls["transparency"].start_encoder.parent == runs / "transparency_room" / "model"
    assert calls["transparency"].start_decoder.parent == runs / "transparency_room" / "model"
    assert calls["transparency_decoder"].decoder_only
    assert calls["transparency_decoder"].start_decoder.parent == runs / "transparency" / "model"
    assert calls["transparency_edges"].start_decoder.parent == runs / "transparency_decoder" / "model"
    assert calls["transparency_last"].start_decoder.parent == runs / "transparency_edges" / "model"
    assert calls["foreground"].base == runs / "base" / "model"
    encoder = runs / "transparency" / "model" / "layer_sd15_vae_transparent_encoder.safetensors"
    assert calls["foreground"].encoder == encoder
    assert packed == [(runs, data, out)]
