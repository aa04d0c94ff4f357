"""SDXL's modes and a user's LoRA in a real WebUI, with the checkpoint's family changed between requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lib_layerdiffusion.modes import MODES, Mode
from tests.e2e.server import CHECKPOINTS, LORA, Answer, encode

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

SIZE = 64
SDXL = [mode for mode in MODES if mode.family == "sdxl"]


@pytest.fixture(scope="module")
def families(webui_server: WebUIServer) -> dict[str, list[str]]:
    """A plain picture of each family; the next tests compare with it."""
    if not (Path(webui_server.folder) / "models/Stable-diffusion" / f"{CHECKPOINTS['sdxl']}.safetensors").exists():
        pytest.skip("needs the SDXL files of tests.e2e.seeded_files")
    return {family: request(webui_server, family).encoded for family in ("sd15", "sdxl")}


def request(webui: WebUIServer, family: str, layers: Any = None, **values: Any) -> Answer:
    """One step, with the checkpoint of a family."""
    return webui.ask(layers, CHECKPOINTS[family], steps=1, **values)


@pytest.mark.parametrize("mode", SDXL, ids=lambda mode: mode.name)
@pytest.mark.seen("{mode.name}", "txt2img, SDXL")
def test_modes_of_sdxl(webui_server: WebUIServer, families: dict[str, list[str]], mode: Mode) -> None:
    image = encode(Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGBA"))
    args = {"mode": mode.name} | {f"{role}_image": image for role in mode.inputs}
    first = request(webui_server, "sdxl", args).images[0]
    assert first.mode == ("RGB" if mode.transparent_frame is None else "RGBA")
    assert first.size == (SIZE, SIZE)
    assert request(webui_server, "sdxl").encoded == families["sdxl"]


@pytest.mark.seen("foreground", "family changed between requests")
def test_family_changes_between_requests(webui_server: WebUIServer, families: dict[str, list[str]]) -> None:
    images: dict[str, Image.Image] = {}
    for family in ("sd15", "sdxl", "sd15"):
        image = request(webui_server, family, {"mode": "foreground"}).images[0]
        assert image.mode == "RGBA"
        assert images.setdefault(family, image).tobytes() == image.tobytes()
        assert request(webui_server, family).encoded == families[family]


@pytest.mark.seen("foreground", "with a LoRA on the same layers")
def test_lora_on_the_same_layers(webui_server: WebUIServer, families: dict[str, list[str]]) -> None:
    """On attention and convolutions, with shared attention in place."""
    prompt = f"a red apple <lora:{LORA}:1>"
    lora = request(webui_server, "sd15", prompt=prompt).encoded
    without = request(webui_server, "sd15", {"mode": "foreground"}).images[0]
    with_lora = request(webui_server, "sd15", {"mode": "foreground"}, prompt=prompt).images[0]
    assert with_lora.mode == "RGBA"
    assert with_lora.tobytes() != without.tobytes()
    assert request(webui_server, "sd15", prompt=prompt).encoded == lora != families["sd15"]
    assert request(webui_server, "sd15").encoded == families["sd15"]
