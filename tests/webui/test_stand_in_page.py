"""A new user's way, in headless Chromium: tick the switch, pick the mode, type, press Generate, download the PNG."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.conftest import read_png

PATIENCE = 240  # seconds; a browser without a GPU takes what the model would need
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1500",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


def wait(condition: Callable[[], Any], what: str) -> Any:
    """What a condition yields as soon as it holds."""
    until = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


def element(browser: Any, selector: str) -> Any:
    found = wait(lambda: browser.find_elements("css selector", selector), selector)[0]
    wait(found.is_displayed, f"{selector} to be shown")
    return found


def test_from_the_switch_to_a_transparent_png(webui, server, browser, tmp_path):
    browser.get(server)
    element(browser, "#script_txt2img_layerdiffuse_enabled-checkbox input").click()
    mode = element(browser, "#script_txt2img_layerdiffuse_mode input")
    mode.click()
    option = 'li[aria-label="Transparent foreground"], li[data-value="Transparent foreground"], .options li'
    element(browser, option).click()
    element(browser, "#txt2img_prompt textarea").send_keys("red apple")
    element(browser, "#txt2img_generate").click()
    link = element(browser, "#txt2img_files a")
    assert browser.find_elements("css selector", "#txt2img_gallery img")
    text = browser.find_element("css selector", "#generation_info_txt2img textarea").get_attribute("value")
    assert "layerdiffusion_mode: foreground" in text
    browser.execute_script("arguments[0].target = '_self'; arguments[0].click()", link)
    path = wait(lambda: list(tmp_path.glob("*.png")), "the download")[0]
    image = read_png(path)
    assert image.mode == "RGBA"
    alpha = np.asarray(image)[..., 3]
    assert (alpha < 10).mean() > 0.2
    assert (alpha > 245).mean() > 0.2
    assert image.info["parameters"] == text


def test_a_refusal_is_shown(webui, server, browser):
    browser.get(server)
    element(browser, "#script_txt2img_layerdiffuse_enabled-checkbox input").click()
    width = element(browser, "#txt2img_prompt textarea")
    width.send_keys("red apple")
    webui.shared.cmd_opts.layerdiffusion_dir, before = "/none/such", webui.shared.cmd_opts.layerdiffusion_dir
    files = webui.module("paths")
    files.models_path, models = "/none/such", files.models_path
    try:
        element(browser, "#txt2img_generate").click()
        sentence = element(browser, "#txt2img_progress .error").text
    finally:
        webui.shared.cmd_opts.layerdiffusion_dir, files.models_path = before, models
    assert ".safetensors" in sentence
