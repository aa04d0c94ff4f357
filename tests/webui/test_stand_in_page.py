"""A new user's way, in headless Chromium: tick the switch, pick the mode, type, press Generate, download the PNG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import Page, opened
from tests.webui.jobs import read_png

pytestmark = pytest.mark.slow

PATIENCE = 240  # seconds; a browser without a GPU takes what the model would need


@pytest.fixture
def page(server: str, tmp_path: Path) -> Iterator[Page]:
    with opened(server, tmp_path, PATIENCE) as page:
        yield page


def test_from_the_switch_to_a_transparent_png(webui, page, tmp_path):
    page.element("#script_txt2img_layerdiffuse_enabled-checkbox input").click()
    mode = page.element("#script_txt2img_layerdiffuse_mode input")
    mode.click()
    option = 'li[aria-label="Transparent foreground"], li[data-value="Transparent foreground"], .options li'
    page.element(option).click()
    page.element("#txt2img_prompt textarea").send_keys("red apple")
    page.element("#txt2img_generate").click()
    link = page.element("#txt2img_files a")
    assert page.find("#txt2img_gallery img")
    text = page.find("#generation_info_txt2img textarea")[0].get_attribute("value")
    assert "layerdiffusion_mode: foreground" in text
    page.run("arguments[0].target = '_self'; arguments[0].click()", link)
    path = page.wait(lambda: list(tmp_path.glob("*.png")), "the download")[0]
    image = read_png(path)
    assert image.mode == "RGBA"
    alpha = np.asarray(image)[..., 3]
    assert (alpha < 10).mean() > 0.2
    assert (alpha > 245).mean() > 0.2
    assert image.info["parameters"] == text


def test_a_refusal_is_shown(webui, page):
    page.element("#script_txt2img_layerdiffuse_enabled-checkbox input").click()
    width = page.element("#txt2img_prompt textarea")
    width.send_keys("red apple")
    webui.shared.cmd_opts.layerdiffusion_dir, before = "/none/such", webui.shared.cmd_opts.layerdiffusion_dir
    files = webui.module("paths")
    files.models_path, models = "/none/such", files.models_path
    try:
        page.element("#txt2img_generate").click()
        sentence = page.element("#txt2img_progress .error").text
    finally:
        webui.shared.cmd_opts.layerdiffusion_dir, files.models_path = before, models
    assert ".safetensors" in sentence
