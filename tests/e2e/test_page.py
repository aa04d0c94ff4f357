"""A WebUI's own txt2img page in headless Chromium: switch, mode, image, Generate, and the gallery's transparent PNG."""

from __future__ import annotations

import io
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

PATIENCE = 600  # seconds; the first picture loads the checkpoint
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
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
def browser(webui_server: WebUIServer) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument("--window-size=1300,1800")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.get(f"http://127.0.0.1:{webui_server.port}/")
    yield driver
    driver.quit()


def wait(condition: Callable[[], Any], what: str) -> Any:
    """What a condition yields as soon as it holds."""
    until = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.3)
    return found


def element(browser: Any, selector: str) -> Any:
    found = wait(lambda: browser.find_elements("css selector", selector), selector)[0]
    wait(found.is_displayed, f"{selector} to be shown")
    return found


def click(browser: Any, selector: str) -> None:
    browser.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", element(browser, selector))


def set_small(browser: Any) -> None:
    for name, value in (("width", 64), ("height", 64), ("steps", 1)):
        element(browser, f"#txt2img_{name} input[type=number]")
        browser.execute_script(SET_NUMBER, f"#txt2img_{name} input[type=number]", str(value))


@pytest.mark.parametrize("mode", LABELS)
def test_page(webui_server: WebUIServer, browser: Any, tmp_path: Path, mode: str) -> None:
    label, given, expected = LABELS[mode]
    element(browser, "#txt2img_prompt textarea").send_keys("a red apple")
    set_small(browser)
    click(browser, f"{PANEL}_enabled .label-wrap")
    field = element(browser, f"{PANEL}_mode input")
    browser.execute_script("arguments[0].scrollIntoView()", field)
    field.click()
    element(browser, f'li[aria-label="{label}"]').click()  # it answers to the mouse button going down
    wait(lambda: field.get_attribute("value") == label, "the mode to be chosen")
    if given:
        path = tmp_path / "given.png"
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
        selector = f"{PANEL}_{given}_image input[type=file]"
        wait(lambda: browser.find_elements("css selector", selector), selector)[0].send_keys(str(path))
        element(browser, f"{PANEL}_{given}_image img")
    click(browser, "#txt2img_generate")
    wait(lambda: len(list_pictures(browser)) >= len(expected), "the pictures")
    pictures = [fetch(webui_server, address) for address in list_pictures(browser)]
    assert [picture.mode for picture in pictures[: len(expected)]] == ["RGBA" if m == "A" else "RGB" for m in expected]
    transparent = pictures[0]
    assert transparent.size == (64, 64)
    assert np.ptp(np.asarray(transparent)[..., 3]) > 2, "the alpha holds nothing"
    assert f"layerdiffusion_mode: {mode}" in transparent.info["parameters"]


def list_pictures(browser: Any) -> list[str]:
    """Addresses of the gallery's pictures, in its order."""
    images = browser.find_elements(
        "css selector", "#txt2img_gallery .thumbnails img, #txt2img_gallery .grid-container img"
    )
    return list(dict.fromkeys(image.get_attribute("src") for image in images))


def fetch(server: WebUIServer, address: str) -> Image.Image:
    assert address.startswith(f"http://127.0.0.1:{server.port}/")
    with urllib.request.urlopen(address, timeout=60) as reply:
        return Image.open(io.BytesIO(reply.read()))
