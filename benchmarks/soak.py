"""Two clients ask a small WebUI for all kinds of things at once, for an hour: nothing may break, leak or stay changed.

    make soak                                         # or: python benchmarks/soak.py --minutes 60

Every layer mode of the embedded model, scenes, the extension's own routes, requests that are interrupted, and requests
that are wrong. What counts is what the server answers: 200 where the request is right, 422 with a sentence
where it isn't. Its memory (by Linux's /proc) is read when every kind was asked for some times and both clients have
been at work for a while, in the middle and at the end; a plain picture and one of each mode have to be the same bytes
at all three times. Ends with 1 where that isn't so.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import head, say

ROOT = Path(__file__).parents[1]
ROUTES, TXT2IMG = "/layerdiffusion/v1", "/sdapi/v1/txt2img"
MODES = ("foreground", "together", "foreground_to_background", "background_to_foreground")
GROWTH = 0.05  # of the server's memory, between the first and the last reading
WARM_UP = 0.1  # share of the time before the first reading, after the rounds
WARM_UP_ROUNDS = 2
ALIKE = {"prompt": "frog", "seed": 5, "steps": 3, "width": 64, "height": 64}  # asked again for the same bytes

Request = tuple[str, dict[str, Any] | None]  # address and body; None: GET


def draw_image(side: int, alpha: int) -> str:
    """A disc as base64 PNG, its surroundings as opaque as `alpha` says."""
    axis = np.linspace(-1, 1, side)
    pixels = np.full((side, side, 4), (30, 90, 60, alpha), np.uint8)
    pixels[np.hypot(*np.meshgrid(axis, axis)) < 0.7] = (220, 160, 20, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


MOTIF, PICTURE = draw_image(64, 0), draw_image(64, 255)


def ask_layers(options: Any, **settings: Any) -> Request:
    """txt2img with these options of the extension."""
    return TXT2IMG, ALIKE | settings | {"alwayson_scripts": {"LayerDiffuse": {"args": [options]}}}


def ask_mode(mode: str, **settings: Any) -> Request:
    """txt2img in a layer mode."""
    given = {"foreground_to_background": {"foreground_image": MOTIF}}
    given |= {"background_to_foreground": {"background_image": PICTURE}}
    return ask_layers({"mode": mode, "views": 1} | given.get(mode, {}), **settings)


def ask_scene(scene: dict[str, Any], **settings: Any) -> Request:
    body = ALIKE | settings | {"script_name": "LayerDiffusion scene", "script_args": [{"views": 1} | scene]}
    return TXT2IMG, body


def list_right(rng: random.Random) -> list[tuple[str, Request]]:
    """Requests that have to be fulfilled, by kind."""
    some = {"seed": rng.randrange(1000), "steps": rng.choice([2, 4]), "width": rng.choice([64, 128])}
    image = {"init_images": [MOTIF], "denoising_strength": 0.6}
    _, body = ask_mode("foreground", **some)
    return [
        ("plain", (TXT2IMG, ALIKE | some)),
        *((mode, ask_mode(mode, **some)) for mode in MODES),
        ("batch", ask_mode("together", **some, batch_size=2)),
        ("image to image", ("/sdapi/v1/img2img", (body or {}) | image)),
        ("8 views", ask_layers({"views": 8}, **some)),
        ("scene", ask_scene({"background": "beach", "foregrounds": ["frog", "star"]}, seed=some["seed"])),
        ("scene over an image", ask_scene({"background_image": PICTURE, "foregrounds": "frog", "outputs": ["psd"]})),
        ("encode", (f"{ROUTES}/encode", {"image": MOTIF})),
        ("composite", (f"{ROUTES}/composite", {"layers": [{"image": PICTURE}, {"image": MOTIF}]})),
        ("modes", (f"{ROUTES}/modes", None)),
    ]


def list_wrong() -> list[tuple[str, Request]]:
    """Requests that have to be refused, by kind."""
    return [
        ("unknown mode", ask_layers({"mode": "forground"})),
        ("a text as weight", ask_layers({"mode": "foreground", "weight": "much"})),
        ("damaged image", ask_layers({"mode": "foreground_to_background", "foreground_image": "AAAA"})),
        ("missing image", ask_layers({"mode": "background_to_foreground"})),
        ("not options", ask_layers("foreground")),
        ("scene of nothing", ask_scene({"background": "beach", "foregrounds": []})),
        ("damaged latent", (f"{ROUTES}/decode", {"latent": "AAAA"})),
        ("layers without one", (f"{ROUTES}/composite", {"layers": []})),
    ]


@dataclass
class Server:
    """A running `layerdiffusion webui`."""

    address: str
    process: subprocess.Popen[bytes]
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, request: Request) -> tuple[int, Any]:
        path, body = request
        data = None if body is None else json.dumps(body).encode()
        sent = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(sent, timeout=900) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def is_up(self) -> bool:
        try:
            return self.ask((f"{ROUTES}/modes", None))[0] == 200
        except OSError:
            return False

    def note(self, kind: str, wanted: int, request: Request) -> None:
        """Ask, count the answer, and keep what was answered otherwise than wanted."""
        status, answer = self.ask(request)
        told = isinstance(answer, dict) and isinstance(answer.get("detail"), str)
        with self.lock:
            self.answers[kind, str(status)] += 1
            if status != wanted or (wanted == 422 and not told):
                self.wrong.append(f"{kind}: {status} {json.dumps(answer)[:300]}")

    def interrupt(self, rng: random.Random) -> None:
        """A long request, which is interrupted while it runs."""
        wait, mode, seed = rng.uniform(0.2, 1.5), rng.choice(MODES), rng.randrange(1000)
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(self.note, "interrupted", 200, ask_mode(mode, steps=100, seed=seed))
            time.sleep(wait)
            self.ask(("/sdapi/v1/interrupt", {}))
            made.result()

    def read_memory(self) -> float:
        """Mebibytes of the server's own memory, resident."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    def make_samples(self) -> list[Any]:
        """What has to be the same at any time: a plain picture and one of each mode."""
        requests: list[Request] = [(TXT2IMG, ALIKE), *(ask_mode(mode) for mode in MODES)]
        return [self.ask(request)[1].get("images") for request in requests]


@contextmanager
def running(port: int, folder: Path) -> Iterator[Server]:
    """A server, from when it answers to the end of the block."""
    words = [sys.executable, "-m", "lib_layerdiffusion", "webui", "--no-browser", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*words, "--out", str(folder / "out")], cwd=ROOT, stdout=log, stderr=log)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        while not server.is_up():
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait()


def work(server: Server, seed: int, until: float) -> None:
    """What one client asks until the time is over: of ten requests seven right, two wrong, one interrupted."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        pick = rng.random()
        if pick < 0.1:
            server.interrupt(rng)
        elif pick < 0.3:
            kind, request = rng.choice(list_wrong())
            server.note(kind, 422, request)
        else:
            kind, request = rng.choice(list_right(rng))
            server.note(kind, 200, request)


def soak(server: Server, minutes: float, pool: ThreadPoolExecutor) -> tuple[list[float], list[list[Any]]]:
    """Memory and samples at the start, in the middle and at the end."""
    rng = random.Random(0)
    for _ in range(WARM_UP_ROUNDS):  # else the first reading is of a server that hasn't seen everything
        for kind, request in list_right(rng):
            server.note(kind, 200, request)
        for kind, request in list_wrong():
            server.note(kind, 422, request)
        server.interrupt(rng)
    memory: list[float] = []
    samples: list[list[Any]] = []
    for part, share in enumerate((WARM_UP, 0.5 - WARM_UP, 0.5)):
        until = time.monotonic() + 60 * minutes * share
        clients = [pool.submit(work, server, 10 * part + client, until) for client in range(2)]
        for client in clients:
            client.result()
        samples.append(server.make_samples())
        memory.append(server.read_memory())
    return memory, samples


def report(server: Server, memory: list[float], samples: list[list[Any]]) -> bool:
    """Say what happened; whether it is what should."""
    print(f"{server.answers.total()} requests\n")
    head("kind", "answer", "number")
    for (kind, status), count in sorted(server.answers.items()):
        say(kind, status, count)
    growth = memory[-1] / memory[0] - 1
    same = all(taken == samples[0] and all(taken) for taken in samples)
    start, middle, end = memory
    print(f"\nMemory: {start:.0f}, {middle:.0f}, {end:.0f} MiB ({growth:+.1%})")
    print(f"The same pictures at all three times: {'yes' if same else 'no'}")
    for line in server.wrong[:20]:
        print(f"Not as it should be: {line}")
    return same and growth <= GROWTH and not server.wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--port", type=int, default=7899)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running(given.port, Path(folder)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        good = report(server, *soak(server, given.minutes, pool))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
