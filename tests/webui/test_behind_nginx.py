"""Two small WebUIs behind nginx as docs/scale.md configures it: one is stopped while it works, and no request is lost.

20 requests; LAYERDIFFUSION_REQUESTS=200 makes it as many. `--log-cli-level=INFO` shows who answered.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
REQUESTS = int(os.environ.get("LAYERDIFFUSION_REQUESTS", "20"))
CLIENTS = 4
PATIENCE = 900  # seconds, for a machine that has other work to do
LAYERS = {"LayerDiffuse": {"args": [{"mode": "foreground", "views": 1}]}}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="needs nginx (apt-get install nginx-light)")]


def pick_ports(count: int) -> list[int]:
    """Ports of this machine on which nobody listens."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running(words: list[str], address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when it answers to the end of the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(address):
                    break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until
                time.sleep(0.3)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def configure(folder: Path, ports: list[int], own: int) -> Path:
    """nginx's configuration: what docs/scale.md shows, with other ports, inside what it needs to run in a folder."""
    (shown,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.DOTALL)
    for before, after in zip((7861, 7862, 7860), (*ports, own), strict=True):
        assert f":{before}" in shown
        shown = shown.replace(f":{before}", f":{after}")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.name != "nt" and os.geteuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(
        f"{user}daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{temporary}"
        f"log_format servers '$request_method $status $upstream_addr';\naccess_log {folder}/access.log servers;\n"
        f"{shown}\n}}\n"
    )
    return path


def ask(address: str, seed: int) -> tuple[int, Any]:
    """The seed that the answer tells, and its picture."""
    body = {"prompt": "star", "seed": seed, "steps": 2, "width": 64, "height": 64, "alwayson_scripts": LAYERS}
    request = urllib.request.Request(
        f"{address}/sdapi/v1/txt2img", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        found = json.load(answer)
    image = Image.open(io.BytesIO(base64.b64decode(found["images"][0])))
    image.load()
    return json.loads(found["info"])["seed"], image


def test_a_server_is_stopped_and_no_request_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    *ports, own = pick_ports(3)
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    address = f"http://127.0.0.1:{own}"
    with ExitStack() as servers:
        first, _ = (
            servers.enter_context(
                running(
                    [
                        *(sys.executable, "-m", "lib_layerdiffusion", "webui", "--no-browser"),
                        *("--port", str(port), "--out", str(tmp_path / str(port))),
                    ],
                    f"{each}/layerdiffusion/v1/modes",
                    tmp_path / f"{port}.log",
                )
            )
            for port, each in zip(ports, addresses, strict=True)
        )
        configuration = configure(tmp_path, ports, own)
        words = [str(NGINX), "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(configuration)]
        servers.enter_context(running(words, f"{address}/layerdiffusion/v1/modes", tmp_path / "nginx.log"))
        alone = [ask(addresses[1], seed)[1].tobytes() for seed in range(2)]

        answers: dict[int, Any] = {}
        with ThreadPoolExecutor(CLIENTS) as clients:
            began = time.monotonic()
            for seed, image in clients.map(lambda seed: ask(address, seed), range(REQUESTS)):
                assert seed not in answers
                answers[seed] = image
                if len(answers) == REQUESTS // 3:
                    first.send_signal(signal.SIGKILL)
            seconds = time.monotonic() - began

    assert answers.keys() == set(range(REQUESTS))
    assert {(image.mode, image.size) for image in answers.values()} == {("RGBA", (64, 64))}
    assert [answers[seed].tobytes() for seed in range(2)] == alone
    lines = [line.split(" ", 2) for line in (tmp_path / "access.log").read_text().splitlines() if "POST" in line]
    assert [status for _, status, _ in lines] == ["200"] * REQUESTS
    asked = [servers for _, _, servers in lines]
    counts = {port: sum(servers == f"127.0.0.1:{port}" for servers in asked) for port in ports}
    passed_on = sum("," in servers for servers in asked)
    logger.info("%d requests in %.0f s: %s, passed on: %d", REQUESTS, seconds, counts, passed_on)
    assert min(counts.values()) >= 1
    assert passed_on >= 1
