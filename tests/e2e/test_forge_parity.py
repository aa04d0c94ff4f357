"""In Forge's own UNet, injection samples the same latents as merged weights."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def differences(webui_places: tuple[Path, Path]) -> dict[str, tuple[float, float]]:
    checkout, python = webui_places
    if not (checkout / "backend/nn/unet.py").exists():
        pytest.skip("LAYERDIFFUSION_WEBUI is not a checkout of Forge")
    command = [python, "-m", "tests.e2e.forge_parity", checkout]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["lora", "diff", "widened", "sharing_1", "sharing_3"])
def test_sampled_latents_are_those_of_merged_weights(differences: dict[str, tuple[float, float]], kind: str) -> None:
    injected, plain = differences[kind]
    assert injected < 1e-4
    assert plain > 0.1, "the patches have no effect"
