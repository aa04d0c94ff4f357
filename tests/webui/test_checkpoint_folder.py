"""Layer files for one checkpoint only lie in a folder of its name, and go before those for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.webui.conftest import WebUI

pytestmark = pytest.mark.slow


@pytest.fixture
def home(webui: WebUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/layer_model of the stand-in, with a folder for the checkpoint "own"."""
    monkeypatch.setattr(webui.module("paths"), "models_path", str(tmp_path))
    monkeypatch.setattr(webui.shared.cmd_opts, "layerdiffusion_dir", None)
    folder = tmp_path / "layer_model"
    (folder / "own").mkdir(parents=True)
    return folder


def named(path: str) -> Any:
    return SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename=path))


def test_folder_of_the_checkpoint_goes_first(webui: WebUI, home: Path) -> None:
    store = webui.extension.store(named("/elsewhere/own.safetensors"))
    assert store.folders == (home / "own", home)
    assert store.download_to == home, "what is downloaded is for all checkpoints"


def test_other_checkpoints_have_none(webui: WebUI, home: Path) -> None:
    assert webui.extension.store(named("/elsewhere/other.safetensors")).folders == (home,)
    assert webui.extension.store(SimpleNamespace()).folders == (home,)


def test_loaded_checkpoint_is_asked_by_itself(webui: WebUI, home: Path) -> None:
    webui.load(webui.model.pipe, "own")
    first = webui.extension.store()
    assert first.folders == (home / "own", home)
    assert webui.extension.store() is first
    webui.load(webui.model.pipe, "other")
    assert webui.extension.store().folders == (home,)


def test_generation_takes_the_files_of_its_checkpoint(webui: WebUI, home: Path, embedded_model: Path) -> None:
    for path in (embedded_model / "layer_model").iterdir():
        (home / "own" / path.name).symlink_to(path)
    webui.load(webui.model.pipe, "own")
    answer = webui.post("txt2img", {"mode": "foreground"})
    assert answer.status_code == 200, answer.text
    webui.load(webui.model.pipe, "other")
    answer = webui.post("txt2img", {"mode": "foreground"})
    assert answer.status_code == 422
    assert "layer_sd15" in answer.json()["detail"]
