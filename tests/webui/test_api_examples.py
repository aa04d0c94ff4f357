"""The examples of docs/api.md, all of them, against the stand-in with tiny models and every layer mode's file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_layerdiffusion.modes import FAMILIES, MODES
from tests.tiny_models import make_scheduler, quiet
from tests.webui.test_api import blocks, language, run_example  # noqa: F401 - a fixture among them

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: Any, every_file: Path, tmp_path_factory: Any) -> Iterator[tuple[str, str]]:
    """Family, and address of a stand-in with its model."""
    pytest.importorskip("gradio")
    uvicorn = pytest.importorskip("uvicorn")
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from lib_layerdiffusion.stand_in.launch import running

    parts = request.getfixturevalue(f"{request.param}_parts")
    if request.param == "sd15":
        pipe = StableDiffusionPipeline(**parts, scheduler=make_scheduler())
    else:
        pipe = StableDiffusionXLPipeline(**parts, scheduler=make_scheduler(), add_watermarker=False)
    settings = {"outputs": tmp_path_factory.mktemp("outputs"), "weights": every_file, "offline": True}
    with running(quiet(pipe), "tiny", **settings) as stand_in, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(stand_in.app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < until, "the server doesn't start"
            time.sleep(0.05)
        yield request.param, f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def test_examples_of_a_family_run_in_the_document_s_order(served, language, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LAYERDIFFUSION_STEPS", "1")
    family, url = served
    offered = {mode.name for mode in MODES if mode.family == family}
    (inputs,) = (text for mark, text in blocks("python") if mark == "inputs")
    marks = []
    for mark, text in blocks(language):
        kind, _, mode = mark.partition(": ")
        if kind == "own" or mode in offered:
            run_example(language, text, url, tmp_path)
            marks.append(mark)
        if mark == "mode: foreground":  # which the others start from
            run_example("python", inputs, url, tmp_path)
    assert {f"mode: {name}" for name in offered} <= set(marks)
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.size == (64, 64)
            with_alpha = path.stem.startswith(("foreground", "decoded")) or path.stem == "blend"  # of two layers
            assert (image.mode == "RGBA") == with_alpha, path.name


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_a_refused_example_prints_the_sentence_and_writes_no_picture(served, tmp_path):
    _, url = served
    example = next(text for mark, text in blocks("bash") if mark == "mode: foreground")
    environment = os.environ | {"LAYERDIFFUSION_URL": url, "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        ["bash", "-c", example.replace('"mode": "foreground"', '"mode": "nonsense"')],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "There is no layer mode 'nonsense'" in done.stderr
    assert not list(tmp_path.glob("*.png"))
