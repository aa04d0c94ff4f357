"""The stand-in WebUI with the real script, without a network socket (`webui`) and behind one (`server`)."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import (  # noqa: F401 - fixtures
    control_files,
    layer_files,
    sd15,
    sd15_parts,
    sdxl,
    sdxl_parts,
    tokenizer,
)
from tests.webui.families import every_file, families  # noqa: F401 - fixtures
from tests.webui.jobs import WebUI

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def embedded_pipeline() -> Any:
    """The embedded model's pipeline."""
    pytest.importorskip("diffusers")
    from lib_layerdiffusion.embedded import EMBEDDED_FOLDER
    from lib_layerdiffusion.hosts.pipelines import load_pipeline

    return load_pipeline(EMBEDDED_FOLDER, device="cpu", offline=True)


@pytest.fixture(scope="module")
def stand_in(embedded_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running stand-in; there can be only one at a time."""
    pytest.importorskip("gradio")
    from lib_layerdiffusion.stand_in.launch import running

    with running(embedded_pipeline, outputs=tmp_path_factory.mktemp("outputs"), offline=True) as started:
        yield started


@pytest.fixture
def webui(stand_in: Any) -> Iterator[WebUI]:
    """The stand-in as it was after the start, acting like Forge; see WebUI for what tests do with it."""
    webui = WebUI(stand_in)
    shared = webui.shared
    before = shared.traits, shared.sd_model, dict(shared.opts.data), dict(shared.opts.data_labels)
    runners = webui.scripts.scripts_txt2img, webui.scripts.scripts_img2img
    scripts = [(list(runner.scripts), list(runner.inputs)) for runner in runners]
    callbacks = webui.module("script_callbacks").callback_map
    own = list(callbacks["cfg_denoiser"])
    shared.state.reset()
    yield webui
    shared.traits, shared.sd_model, shared.opts.data, shared.opts.data_labels = before
    shared.prompt_styles.styles.clear()
    webui.module("extra_networks").extra_network_registry.clear()
    callbacks["cfg_denoiser"] = own
    for runner, (kept, inputs) in zip(runners, scripts, strict=True):
        runner.scripts[:], runner.inputs[:] = kept, inputs


@pytest.fixture
def only_foreground(webui: WebUI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the embedded model's layer files only those of the foreground mode are there."""
    from lib_layerdiffusion.embedded import EMBEDDED_FOLDER

    (tmp_path / "layer_model").mkdir()
    for name in ("transparent_attn", "vae_transparent_decoder", "vae_transparent_encoder"):
        file = f"layer_sd15_{name}.safetensors"
        shutil.copy(EMBEDDED_FOLDER / "layer_model" / file, tmp_path / "layer_model")
    monkeypatch.setattr(webui.module("paths"), "models_path", str(tmp_path))


@pytest.fixture(scope="module")
def server(stand_in: Any) -> Iterator[str]:
    """Address of the stand-in behind a socket of this machine."""
    import uvicorn

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(stand_in.app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not running.started:
        assert time.monotonic() < until, "the server doesn't start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(10)
