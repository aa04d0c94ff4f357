"""The command behind `make webui`: a taken port is refused at once, the page is served, Ctrl-C ends it quietly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_layerdiffusion.stand_in.command import check_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds, for a machine that has other work to do


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        yield somebody.getsockname()[1]


def command(port: int, folder: Path) -> subprocess.Popen[str]:
    words = ["-m", "lib_layerdiffusion", "webui", f"--port={port}", "--no-browser", f"--out={folder}"]
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_taken_port_is_refused_before_anything_is_loaded(taken, tmp_path):
    process = command(taken, tmp_path)
    out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert said.startswith(f"Port {taken} can't be used")
    assert "make webui PORT=" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C can't be sent to one process")
def test_the_page_is_served_until_ctrl_c(tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = command(port, tmp_path)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
                    assert b"LayerDiffusion" in page.read()
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/layerdiffusion/v1/modes") as answer:
            assert json.load(answer)["family"] == "sd15"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    address = f"http://127.0.0.1:{port}"
    assert said == f"The page is at {address}, the API at {address}/sdapi/v1; Ctrl-C ends both.\n"
    check_port(port)
