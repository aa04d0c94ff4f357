"""What the extension adds to the start of a WebUI, and how long a change of the layer mode takes.

    python benchmarks/start.py --files models/layer_model

The start: reading the extension's code where the WebUI has imported torch and gradio, and building the small WebUI's
page with and without the extension's scripts. A change of mode: files of SD1.5 read and checked against a UNet of full
shape, each of them read once before, so that the system has it in memory; `--files` names their folder. Without it that
table is left out.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import ROUNDS, head, say

MODES = ("foreground", "together", "foreground_to_background", "background_to_foreground", "foreground")


def clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_code() -> float:
    """Seconds to load the script, in a process that has what any WebUI has imported."""
    for name in ("gradio", "torch", "cv2", "safetensors.torch", "fastapi", "PIL.Image"):
        importlib.import_module(name)
    from lib_layerdiffusion.stand_in import launch

    launch.install_modules()
    scripts = importlib.import_module("modules.scripts")
    small = ("lib_layerdiffusion.stand_in", "lib_layerdiffusion.train")
    for name in [name for name in sys.modules if name.startswith("lib_layerdiffusion.") and not name.startswith(small)]:
        del sys.modules[name]  # what the small WebUI has loaded of the extension's own code
    seconds = clock(lambda: scripts.load_script(launch.FOLDER / "scripts" / "layerdiffusion.py"))
    launch.stop()
    return seconds


def measure_page() -> tuple[float, float]:
    """Seconds to build the page without and with the extension's scripts, the least of a few times."""
    from lib_layerdiffusion.embedded import EMBEDDED_FOLDER
    from lib_layerdiffusion.hosts.pipelines import load_pipeline
    from lib_layerdiffusion.stand_in import launch

    pipe = load_pipeline(EMBEDDED_FOLDER, device="cpu")
    with tempfile.TemporaryDirectory() as folder, launch.running(pipe, outputs=Path(folder)):
        scripts = importlib.import_module("modules.scripts")
        runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
        data, times = list(scripts.scripts_data), dict[bool, list[float]]()
        for on in (True, False) * ROUNDS:
            scripts.scripts_data[:] = data if on else []
            for runner in runners:
                runner.initialize_scripts(runner.is_img2img)
            page = importlib.import_module("modules.ui")
            times.setdefault(on, []).append(clock(page.create_ui))
        scripts.scripts_data[:] = data
    return min(times[False]), min(times[True])


def measure_switches(files: Path) -> list[tuple[str, float]]:
    """Seconds until a session with the files of a mode is ready, by mode; the second round's."""
    from lib_layerdiffusion.hosts.ldm_names import name_modules, translate
    from lib_layerdiffusion.modes import find_mode
    from lib_layerdiffusion.options import LayerOptions
    from lib_layerdiffusion.planning import Facts, plan
    from lib_layerdiffusion.session import Session
    from lib_layerdiffusion.weights import WeightStore
    from tests.full_unets import UNETS, make_meta_unet

    unet = make_meta_unet(UNETS["sd15"]).eval()
    names = name_modules(dict(unet.config))
    device = torch.device("cpu")
    host: Any = SimpleNamespace(
        unet=unet,
        device=device,
        precision=torch.float32,
        parameter_name=lambda name: translate(name, names),
        on_device=lambda network, room=0: nullcontext(device),
    )
    picture = np.zeros((512, 512, 4), np.uint8)
    taken: list[tuple[str, float]] = []
    for _ in range(2):
        taken.clear()
        with Session(host, WeightStore([files])) as session:
            for mode in MODES:
                given = dict.fromkeys(find_mode(mode, "sd15").inputs, picture)
                options: dict[str, Any] = {f"{role}_image": image for role, image in given.items()}
                made = plan(LayerOptions(mode=mode, **options), Facts("sd15", 512, 512))
                taken.append((mode, clock(lambda session=session, made=made, given=given: session.open(made, given))))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, help="folder of the layer files of SD1.5")
    given = parser.parse_args()
    logging.disable()
    code = measure_code()
    without, with_scripts = measure_page()
    head("start of a WebUI", "s")
    say("reading the code", f"{code:.2f}")
    say("the page, without and with the extension", f"{without:.2f}, {with_scripts:.2f}")
    say("the extension adds", f"{code + with_scripts - without:.2f}")
    if given.files is not None:
        print()
        head("change to the mode", "s")
        for mode, seconds in measure_switches(given.files):
            say(mode, f"{seconds:.2f}")


if __name__ == "__main__":
    main()
