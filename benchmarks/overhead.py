"""Time of a sampling step with the foreground mode on against a plain one, in a running WebUI.

`python benchmarks/overhead.py http://127.0.0.1:7860 [sizes]`. Steps are timed by the difference of two requests of
different length, so loading, prompts and decoding don't count; plain and enabled requests take turns.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import urllib.request
from typing import Any

SHORT, LONG, ROUNDS = 1, 4, 3
FOREGROUND = {"LayerDiffuse": {"args": [{"mode": "foreground", "views": 1}]}}


def run(address: str, size: int, steps: int, layers: dict[str, Any]) -> float:
    """Seconds that a request takes; with guidance, so a step is two rows of the UNet."""
    body = {"prompt": "a red apple", "steps": steps, "width": size, "height": size, "cfg_scale": 5, "seed": 7}
    body |= {"sampler_name": "Euler", "scheduler": "Automatic", "alwayson_scripts": layers}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/sdapi/v1/txt2img", json.dumps(body).encode(), headers)
    start = time.perf_counter()
    with urllib.request.urlopen(request) as reply:
        reply.read()
    return time.perf_counter() - start


def measure(address: str, size: int) -> dict[str, float]:
    """Median seconds of a step, plain and enabled, and their ratio."""
    steps: dict[str, list[float]] = {"plain": [], "foreground": []}
    for layers in ({}, FOREGROUND):
        run(address, size, 1, layers)  # loads what is needed
    for _ in range(ROUNDS):
        for name, layers in (("plain", {}), ("foreground", FOREGROUND)):
            short, long = (run(address, size, count, layers) for count in (SHORT, LONG))
            steps[name].append((long - short) / (LONG - SHORT))
    median = {name: statistics.median(times) for name, times in steps.items()}
    return median | {"ratio": median["foreground"] / median["plain"]}


if __name__ == "__main__":
    for size in [int(word) for word in sys.argv[2:]] or [256, 512]:
        times = {name: round(value, 3) for name, value in measure(sys.argv[1], size).items()}
        sys.stdout.write(f"{json.dumps({'size': size, **times})}\n")
