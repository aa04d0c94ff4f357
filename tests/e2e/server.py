"""Start a real WebUI from a checkout, send it requests over HTTP, and stop it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from lib_layerdiffusion.webui import settings

CHECKPOINTS = {family: f"layerdiffusion-seeded-{family}" for family in ("sd15", "sdxl")}  # written by seeded_files
LORA = "layerdiffusion-seeded-lora"
CONTROL = "layerdiffusion-seeded-control"
FLAGS = (
    "--server-name=127.0.0.1",
    "--api",
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--skip-version-check",
    "--skip-python-version-check",
    "--no-hashing",
    "--no-prompt-history",
    "--no-download-sd-model",
    "--do-not-download-clip",
)
ONLY_PROCESSOR = ("--always-cpu", "--cpu")
NO_GRAPHICS_CARD = ("--use-cpu=all", "--no-half", "--precision=full")  # for a WebUI without such a flag
HALF = "--precision=half"  # replaces the last two
OWN_FLAGS = ("--layerdiffusion-offline",)
# where WebUIs define their flags
PARSERS = ("modules/cmd_args.py", "modules_forge/shared.py", "backend/args.py", "ldm_patched/modules/args_parser.py")
# Threads that wait actively make a busy machine many times slower.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "PYTHONUNBUFFERED": "1",
    # glibc would keep freed memory: a WebUI that loads many checkpoints in many threads would grow to twice its size
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
}
STARTED = "Startup time: "  # every WebUI logs it when all routes are there, and again after a reload
# dynamic prompts registers its settings only after AUTOMATIC1111 1.10 and Forge have read them.
DYNAMIC_PROMPTS = {
    "dp_parser_variant_start": "{",
    "dp_parser_variant_end": "}",
    "dp_parser_wildcard_wrap": "__",
    "dp_magicprompt_batch_size": 1,
} | dict.fromkeys(
    (
        "dp_ignore_whitespace",
        "dp_write_raw_template",
        "dp_write_prompts_to_file",
        "dp_limit_jinja_prompts",
        "dp_auto_purge_cache",
        "dp_wildcard_manager_no_dedupe",
        "dp_wildcard_manager_no_sort",
        "dp_wildcard_manager_shuffle",
    ),
    False,
)
HIRES: dict[str, Any] = {
    "enable_hr": True,
    "hr_scale": 1.5,
    "denoising_strength": 0.6,
    "hr_additional_modules": ["Use same choices"],  # Forge fails without it
}
OWN_OPTIONS = {settings.PREFIX + name: value for name, value in settings.defaults().items()}
START_SECONDS, ANSWER_SECONDS = 1200, 1200
PROBE = Path(__file__).parent / "probe"  # an extension, to be linked into the WebUI's extensions


@dataclass(frozen=True)
class State:
    """What a request must not change: a plain picture, one with layers, and the model (see `look_at_model`)."""

    plain: list[str]
    layers: list[str]
    model: dict[str, Any]

    def changes(self, other: State) -> list[str]:
        """Names of the fields that differ; the pictures themselves would make an unreadable message."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


@dataclass(frozen=True)
class Answer:
    """The answer to a request: an HTTP status, and images or an error."""

    status: int
    body: dict[str, Any]

    @property
    def encoded(self) -> list[str]:
        assert self.status == 200, self.body
        return self.body["images"]

    @property
    def images(self) -> list[Image.Image]:
        return [read(text) for text in self.encoded]

    @property
    def info(self) -> dict[str, Any]:
        return json.loads(self.body["info"])


class WebUIServer:
    """A running WebUI; `folder` is its checkout, `python` its interpreter, `more` are additional flags."""

    def __init__(self, folder: Path, python: Path, scratch: Path, more: Sequence[str] = ()) -> None:
        self.folder, self.scratch = folder, scratch
        self.log = scratch / "webui.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        # live previews need a network that Forge would download
        options = {"sd_model_checkpoint": f"{CHECKPOINTS['sd15']}.safetensors", "live_previews_enable": False}
        (scratch / "config.json").write_text(json.dumps(options | DYNAMIC_PROMPTS))
        files = [f"--ui-settings-file={scratch / 'config.json'}", f"--ui-config-file={scratch / 'ui-config.json'}"]
        flags = [*choose_flags(folder, more), *files]
        command = [str(python), "launch.py", *flags, f"--port={self.port}"]
        enter = scratch / "enter"
        enter.write_text("\n")  # Forge Neo waits for Enter if it didn't write the settings itself
        with self.log.open("wb") as log, enter.open("rb") as keys:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=keys,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )

    def wait(self, starts: int = 1) -> None:
        """Wait until the WebUI has started `starts` times.

        Nothing is requested before: AUTOMATIC1111 fails on a request that arrives while it adds its routes.
        """
        until = time.monotonic() + START_SECONDS
        while self._count_starts() < starts:
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"the WebUI did not start:\n{self.read_log()[-3000:]}")
            time.sleep(1)

    def _count_starts(self) -> int:
        return self.read_log().count(STARTED)

    def read_log(self) -> str:
        """The log so far."""
        return self.log.read_text("utf-8", "replace")

    def stop(self) -> None:
        """Stop the process and its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def reload(self, *disabled: str) -> None:
        """Do what the page's "Reload UI" does, with some extensions disabled, and wait for the new page."""
        assert self.post("/sdapi/v1/options", {"disabled_extensions": disabled}).status == 200
        starts = self._count_starts()
        assert self.post("/layerdiffusion-probe/reload").status == 200
        self.wait(starts + 1)

    @property
    def extension(self) -> str:
        """The name of this project's folder in the WebUI's extensions."""
        own = Path(__file__).resolve().parents[2]
        (name,) = [path.name for path in (self.folder / "extensions").iterdir() if path.resolve() == own]
        return name

    @property
    def upscalers(self) -> set[str]:
        """The upscalers for hires fix; Forge Neo, for example, has none for latents."""
        lists = ("/sdapi/v1/upscalers", "/sdapi/v1/latent-upscale-modes")
        return {each["name"] for path in lists for each in self.get(path)}

    def look_at_model(self) -> dict[str, Any]:
        """Checksum of the loaded checkpoint's weights, and the modules that have a hook of this extension."""
        return self.get("/layerdiffusion-probe/model")

    @contextmanager
    def same_threads(self) -> Iterator[None]:
        """Restore the number of threads that the WebUI computes with, on which the rounding of pictures depends.

        ADetailer's detector changes it permanently.
        """
        number = self.get("/layerdiffusion-probe/threads")
        try:
            yield
        finally:
            assert self.post(f"/layerdiffusion-probe/threads?number={number}").status == 200

    @contextmanager
    def options(self, **values: Any) -> Iterator[None]:
        """Change settings of the WebUI for a while; skips the test if the WebUI doesn't have them."""
        before = OWN_OPTIONS | self.get("/sdapi/v1/options")  # an option that was never set isn't listed
        if missing := [name for name in values if name not in before]:
            import pytest  # a WebUI's Python, where the probe needs this module, doesn't have it

            pytest.skip(f"this WebUI doesn't have the option {missing[0]}")
        assert self.post("/sdapi/v1/options", values).status == 200
        try:
            yield
        finally:
            assert self.post("/sdapi/v1/options", {name: before[name] for name in values}).status == 200

    def fail_at(self, place: str, kind: str, times: int = 1) -> None:
        """Make the next calls of `sampling` or `decoding` meet an `error`, a lack of `memory` or an `interrupt`.

        `opaque` makes what is decoded so.
        """
        assert self.post(f"/layerdiffusion-probe/fail?place={place}&kind={kind}&times={times}").status == 200

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=ANSWER_SECONDS) as reply:
            return json.load(reply)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Answer:
        request = urllib.request.Request(
            f"{self.address}{path}", json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
                return Answer(reply.status, json.load(reply))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.load(error))

    def txt2img(self, layers: Any = None, **values: Any) -> Answer:
        """Generate a small picture; `layers` are the script's arguments."""
        return self.post("/sdapi/v1/txt2img", _request(layers, values))

    def ask(self, layers: Any = None, checkpoint: str = CHECKPOINTS["sd15"], **values: Any) -> Answer:
        """Generate a tiny picture with a checkpoint, which stays selected."""
        override = {"sd_model_checkpoint": f"{checkpoint}.safetensors"} | values.pop("override_settings", {})
        tiny = {"width": 64, "height": 64, "override_settings_restore_afterwards": False}
        return self.txt2img(layers, override_settings=override, **tiny | values)

    def observe(self, checkpoint: str = CHECKPOINTS["sd15"], **values: Any) -> State:
        plain, layers = (self.ask(args, checkpoint, **values).encoded for args in (None, {"mode": "foreground"}))
        return State(plain, layers, self.look_at_model())

    def img2img(self, image: Image.Image, layers: Any = None, **values: Any) -> Answer:
        """Generate a small picture from an image."""
        return self.post("/sdapi/v1/img2img", _request(layers, {"init_images": [encode(image)], **values}))


def is_forge(folder: Path) -> bool:
    """Whether the WebUI in `folder` is Forge or a fork of it."""
    return (folder / "modules_forge").is_dir()


def choose_flags(folder: Path, more: Sequence[str] = ()) -> list[str]:
    """The usual flags that the WebUI in `folder` knows (some stop at others), those for the processor, and `more`."""
    known = read_flags(folder)
    device = NO_GRAPHICS_CARD if known.isdisjoint(ONLY_PROCESSOR) else ONLY_PROCESSOR
    device = device[:1] if HALF in more else device
    return [*(flag for flag in (*FLAGS, *device) if flag.partition("=")[0] in known), *OWN_FLAGS, *more]


def read_flags(folder: Path) -> set[str]:
    """The flags that the WebUI in `folder` defines."""
    texts = [path.read_text("utf-8") for name in PARSERS if (path := folder / name).exists()]
    return {flag for text in texts for flag in re.findall(r"""["'](--[\w-]+)["']""", text)}


def _request(layers: Any, values: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {
        "prompt": "a red apple",
        "negative_prompt": "a leaf",  # seeded_files has its words
        "seed": 7,
        "steps": 2,
        "cfg_scale": 5,
        "width": 128,
        "height": 128,
        "sampler_name": "Euler",
        "scheduler": "Automatic",
    }
    if layers is not None:
        request["alwayson_scripts"] = {"LayerDiffuse": {"args": layers}}
    return request | values


def encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def read(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image
