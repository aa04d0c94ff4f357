"""A WebUI's own txt2img page in headless Chromium: the panel, its defaults, the gallery and the Save button."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.modes import MODE_NAMES, MODES
from lib_layerdiffusion.upscaling import upscale
from lib_layerdiffusion.webui.labels import to_label
from tests.browser import Page, opened
from tests.e2e.test_extras import draw_disc

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

PATIENCE = 600  # seconds; the first picture loads the checkpoint
PANEL = "#script_txt2img_layerdiffuse"
SET_NUMBER = """
const field = document.querySelector(arguments[0]);
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, arguments[1]);
for (const name of ['input', 'change', 'blur']) field.dispatchEvent(new Event(name, {bubbles: true}));
"""
MODES_ON_THE_PAGE = {  # mode -> the image it needs, and the modes of the pictures in the gallery
    "foreground": (None, "A"),
    "together": (None, "A--"),
    "background_to_foreground": ("background", "A-"),
}
DEFAULTS = "customscript/layerdiffusion.py/txt2img"  # in the WebUI's ui-config.json
SWITCH = "LayerDiffusion"
GALLERY = "#txt2img_gallery"


@pytest.fixture
def page(webui_server: WebUIServer, tmp_path: Path) -> Iterator[Page]:
    with opened(f"{webui_server.address}/", tmp_path, PATIENCE) as page:
        yield page


def click(page: Page, selector: str) -> None:
    page.run("arguments[0].scrollIntoView(); arguments[0].click()", page.element(selector))


def set_numbers(page: Page, tab: str = "txt2img", **values: float) -> None:
    """Give a tab's fields with numbers their values."""
    for name, value in values.items():
        selector = f"#{tab}_{name} input[type=number]"
        page.element(selector)
        page.run(SET_NUMBER, selector, str(value))


def set_small(page: Page) -> None:
    set_numbers(page, width=64, height=64, steps=1)


def open_modes(page: Page) -> Any:
    """Open the panel and its list of modes; returns the list's field."""
    click(page, f"{PANEL}_enabled .label-wrap")
    field = page.element(f"{PANEL}_mode input")
    page.run("arguments[0].scrollIntoView()", field)
    page.wait(lambda: page.find(f"{PANEL}_status .layerdiffusion-good"), "the status")
    field.click()
    return field


def choose_mode(page: Page, mode: str) -> None:
    """Switch the panel on, and choose a layer mode."""
    field, label = open_modes(page), to_label("mode", mode)
    page.element(f'li[aria-label="{label}"]').click()  # it reacts to the mouse button going down
    page.wait(lambda: field.get_attribute("value") == label, "the mode to be chosen")


def give_image(page: Page, role: str, path: Path) -> None:
    """Give the layer mode an image from a file."""
    selector = f"{PANEL}_{role}_image input[type=file]"
    page.wait(lambda: page.find(selector), selector)[0].send_keys(str(path))
    page.element(f"{PANEL}_{role}_image img")


@pytest.mark.parametrize("mode", MODES_ON_THE_PAGE)
@pytest.mark.seen("{mode}", "the WebUI's page")
def test_page(webui_server: WebUIServer, page: Page, tmp_path: Path, mode: str) -> None:
    given, expected = MODES_ON_THE_PAGE[mode]
    page.element("#txt2img_prompt textarea").send_keys("a red apple")
    set_small(page)
    choose_mode(page, mode)
    if given:
        path = tmp_path / "given.png"
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
        give_image(page, given, path)
    click(page, "#txt2img_generate")
    page.wait(lambda: len(list_pictures(page)) >= len(expected), "the pictures")
    pictures = [fetch(webui_server, address) for address in list_pictures(page)]
    assert [picture.mode for picture in pictures[: len(expected)]] == ["RGBA" if m == "A" else "RGB" for m in expected]
    transparent = pictures[0]
    assert transparent.size == (64, 64)
    assert np.ptp(np.asarray(transparent)[..., 3]) > 2, "the alpha is flat"
    assert f"layerdiffusion_mode: {mode}" in transparent.info["parameters"]
    page.wait(lambda: page.find(f"{GALLERY} img.layerdiffusion-transparent"), "the checkerboard")


@pytest.mark.seen("any", "modes that can't run are marked in the list")
def test_modes_of_another_family_are_marked(webui_server: WebUIServer, page: Page) -> None:
    webui_server.ask()  # so that a checkpoint is loaded
    open_modes(page)
    other = {to_label("mode", name) for name in MODE_NAMES} - {
        to_label("mode", mode.name) for mode in MODES if mode.family == "sd15"
    }
    marked = page.wait(lambda: page.find("li.layerdiffusion-unavailable"), "the marks")
    assert {entry.get_attribute("aria-label") for entry in marked} == other
    assert {entry.find_element("css selector", ".layerdiffusion-why").text for entry in marked} == {"needs SDXL"}


@contextmanager
def set_defaults(server: WebUIServer, values: dict[str, Any]) -> Iterator[None]:
    """Change the user's own defaults by the page's labels, as the settings' "Defaults" does, and reload the page."""
    path = server.scratch / "ui-config.json"
    before = path.read_text("utf-8")
    changed = {f"{DEFAULTS}/{label}/value": value for label, value in values.items()}
    kept = json.loads(before)
    assert changed.keys() <= kept.keys()
    path.write_text(json.dumps(kept | changed), "utf-8")
    server.reload()
    try:
        yield
    finally:
        path.write_text(before, "utf-8")
        server.reload()


@pytest.mark.seen("foreground_to_background", "the user's own defaults of the page")
def test_own_defaults(webui_server: WebUIServer, tmp_path: Path) -> None:
    label = to_label("mode", "foreground_to_background")
    values = {"Layer mode": label, "Decode quality": "2", "Resize mode": "Just Resize"}
    boxes = {"Checkerboard preview": True, "Blend": False}
    kept = json.loads((webui_server.scratch / "ui-config.json").read_text("utf-8"))
    keeps_switch = f"{DEFAULTS}/{SWITCH}/value" in kept  # gradio 4's WebUIs keep no accordion's
    values |= {SWITCH: True} if keeps_switch else {}
    with set_defaults(webui_server, values | boxes), opened(f"{webui_server.address}/", tmp_path, PATIENCE) as page:
        if not keeps_switch:
            click(page, f"{PANEL}_enabled .label-wrap")
        page.wait(lambda: page.find(f"{PANEL}_status .layerdiffusion-status[data-unavailable]"), "the status")
        assert page.element(f"{PANEL}_mode input").get_attribute("value") == label
        page.element(f"{PANEL}_foreground_image")
        assert not any(each.is_displayed() for each in page.find(f"{PANEL}_background_image"))
        click(page, f"{PANEL}_advanced .label-wrap")
        for name, chosen in (("views", "2"), ("resize_mode", "Just Resize")):
            picked = page.element(f"{PANEL}_{name}").find_elements("css selector", "label.selected")
            assert [each.text for each in picked] == [chosen]
        assert not page.element(f"{PANEL}_outputs_blend input").is_selected()
        assert page.element(f"{PANEL}_outputs_background input").is_selected()


@pytest.mark.seen("foreground", "a grid of a batch, and Save with jpg")
def test_grid_and_save_button(webui_server: WebUIServer, page: Page, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with webui_server.options(samples_format="jpg", outdir_save=str(saved), use_save_to_dirs_for_ui=False):
        page.element("#txt2img_prompt textarea").send_keys("a red apple")
        set_small(page)
        set_numbers(page, batch_count=2)
        click(page, f"{PANEL}_enabled .label-wrap")
        page.element(f"{PANEL}_mode input")
        click(page, "#txt2img_generate")
        page.wait(lambda: len(list_pictures(page)) >= 3, "the pictures")
        grid, *pictures = (fetch(webui_server, address) for address in list_pictures(page))
        assert [picture.mode for picture in pictures] == ["RGBA", "RGBA"]
        assert grid.size in ((128, 64), (64, 128))
        assert grid.convert("RGBA").getextrema()[3] == (255, 255), "the grid isn't opaque"
        click(page, "#save_txt2img")
        page.wait(lambda: len(list(saved.glob("*.png"))) == 2, "the files")
        assert [Image.open(path).mode for path in saved.glob("*.png")] == ["RGBA", "RGBA"]


@pytest.mark.seen("foreground", "saved previews")
def test_previews_are_saved_under_the_layers_name(webui_server: WebUIServer, tmp_path: Path) -> None:
    values = {"layerdiffusion_save_previews": True, "outdir_txt2img_samples": str(tmp_path), "save_to_dirs": False}
    with webui_server.options(**values):
        layers = {"mode": "foreground", "outputs": ["rgba", "checker", "alpha"]}
        answer = webui_server.ask(layers, save_images=True, batch_size=2)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    layer_names = [name for name in names if not name.endswith(("-checker.png", "-alpha.png"))]
    assert len(layer_names) == 2
    stems = [name.removesuffix(".png") for name in layer_names]
    assert names == sorted(f"{stem}{end}.png" for stem in stems for end in ("", "-checker", "-alpha"))
    assert [image.mode for image in answer.images] == ["RGBA", "RGBA", "RGB", "RGB", "RGB", "RGB"]
    kinds = [image.info["parameters"].rpartition("layerdiffusion_preview: ")[2] for image in answer.images[2:]]
    assert kinds == ["checker", "checker", "alpha", "alpha"]


@pytest.mark.seen("any", "a transparent picture in the Extras tab, by page")
def test_extras_tab(webui_server: WebUIServer, page: Page, tmp_path: Path) -> None:
    given = tmp_path / "disc.png"
    draw_disc().save(given)
    page.wait(lambda: page.find("#tabs button"), "the tabs")
    page.run("[...document.querySelectorAll('#tabs button')].find(b => b.innerText.trim() === 'Extras').click()")
    page.wait(lambda: page.find("#extras_image input[type=file]"), "the field")[0].send_keys(str(given))
    page.element("#extras_image img")
    set_numbers(page, "extras", upscaling_resize=2)
    page.element("#extras_upscaler_1 input").click()
    page.element('li[aria-label="Lanczos"]').click()
    click(page, "#extras_generate")
    shown = page.wait(lambda: list_pictures(page, "#extras_gallery"), "the picture")
    made = fetch(webui_server, shown[0])
    assert (made.mode, made.size) == ("RGBA", (128, 96))
    assert (np.asarray(made)[..., 3] == upscale(np.asarray(draw_disc()), (128, 96))[..., 3]).all()


def list_pictures(page: Page, gallery: str = GALLERY) -> list[str]:
    """Addresses of a gallery's pictures, in its order."""
    images = page.find(", ".join(f"{gallery} {part} img" for part in (".thumbnails", ".grid-container", ".preview")))
    return list(dict.fromkeys(image.get_attribute("src") for image in images))


def fetch(server: WebUIServer, address: str) -> Image.Image:
    assert address.startswith(f"{server.address}/")
    with urllib.request.urlopen(address, timeout=60) as reply:
        return Image.open(io.BytesIO(reply.read()))
