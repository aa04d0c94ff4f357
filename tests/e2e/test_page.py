"""A WebUI's own txt2img page in headless Chromium: switch, mode, image, Generate, and the gallery's transparent PNG."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.browser import Page, opened

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

PATIENCE = 600  # seconds; the first picture loads the checkpoint
PANEL = "#script_txt2img_layerdiffuse"
SET_NUMBER = """
const field = document.querySelector(arguments[0]);
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, arguments[1]);
for (const name of ['input', 'change', 'blur']) field.dispatchEvent(new Event(name, {bubbles: true}));
"""
LABELS = {  # mode -> what the page calls it, the image it needs, and the modes of the pictures in the gallery
    "foreground": ("Transparent foreground", None, "A"),
    "together": ("Foreground and background together · SD1.5", None, "A--"),
    "background_to_foreground": ("Foreground for my background · SD1.5", "background", "A-"),
}


@pytest.fixture
def page(webui_server: WebUIServer, tmp_path: Path) -> Iterator[Page]:
    with opened(f"{webui_server.address}/", tmp_path, PATIENCE) as page:
        yield page


def click(page: Page, selector: str) -> None:
    page.run("arguments[0].scrollIntoView(); arguments[0].click()", page.element(selector))


def set_small(page: Page) -> None:
    for name, value in (("width", 64), ("height", 64), ("steps", 1)):
        page.element(f"#txt2img_{name} input[type=number]")
        page.run(SET_NUMBER, f"#txt2img_{name} input[type=number]", str(value))


@pytest.mark.parametrize("mode", LABELS)
@pytest.mark.seen("{mode}", "the WebUI's page")
def test_page(webui_server: WebUIServer, page: Page, tmp_path: Path, mode: str) -> None:
    label, given, expected = LABELS[mode]
    page.element("#txt2img_prompt textarea").send_keys("a red apple")
    set_small(page)
    click(page, f"{PANEL}_enabled .label-wrap")
    field = page.element(f"{PANEL}_mode input")
    page.run("arguments[0].scrollIntoView()", field)
    field.click()
    page.element(f'li[aria-label="{label}"]').click()  # it reacts to the mouse button going down
    page.wait(lambda: field.get_attribute("value") == label, "the mode to be chosen")
    if given:
        path = tmp_path / "given.png"
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
        selector = f"{PANEL}_{given}_image input[type=file]"
        page.wait(lambda: page.find(selector), selector)[0].send_keys(str(path))
        page.element(f"{PANEL}_{given}_image img")
    click(page, "#txt2img_generate")
    page.wait(lambda: len(list_pictures(page)) >= len(expected), "the pictures")
    pictures = [fetch(webui_server, address) for address in list_pictures(page)]
    assert [picture.mode for picture in pictures[: len(expected)]] == ["RGBA" if m == "A" else "RGB" for m in expected]
    transparent = pictures[0]
    assert transparent.size == (64, 64)
    assert np.ptp(np.asarray(transparent)[..., 3]) > 2, "the alpha is flat"
    assert f"layerdiffusion_mode: {mode}" in transparent.info["parameters"]


def list_pictures(page: Page) -> list[str]:
    """Addresses of the gallery's pictures, in its order."""
    images = page.find("#txt2img_gallery .thumbnails img, #txt2img_gallery .grid-container img")
    return list(dict.fromkeys(image.get_attribute("src") for image in images))


def fetch(server: WebUIServer, address: str) -> Image.Image:
    assert address.startswith(f"{server.address}/")
    with urllib.request.urlopen(address, timeout=60) as reply:
        return Image.open(io.BytesIO(reply.read()))
