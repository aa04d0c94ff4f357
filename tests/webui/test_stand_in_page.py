"""A new user's way, in headless Chromium: choose a word, press Generate, download; and what the small buttons do."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lib_layerdiffusion.embedded import EMBEDDED_FOLDER
from lib_layerdiffusion.scene import TITLE
from tests.browser import Page, opened
from tests.webui.jobs import read_png

pytestmark = pytest.mark.slow

PATIENCE = 240  # seconds; a browser without a GPU takes what the model would need
PANEL = "#script_txt2img_layerdiffuse"
SCENE = "#script_layerdiffusion_scene"
SET = """
const field = document.querySelector(arguments[0]);
const kind = field instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, arguments[1]);
for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, {bubbles: true}));
"""
PARAMETERS = "a star\nSteps: 7, Sampler: DDIM, CFG scale: 2, Seed: 11, Size: 64x192"


@pytest.fixture
def page(server: str, tmp_path: Path) -> Iterator[Page]:
    with opened(server, tmp_path, PATIENCE) as page:
        page.element("#txt2img_prompt textarea")
        page.wait(lambda: page.find(f"{PANEL}_status .layerdiffusion-good"), "the status, which the page asks for")
        yield page


def value(page: Page, selector: str) -> str:
    return page.find(selector)[0].get_attribute("value")


def click(page: Page, selector: str) -> None:
    page.run("arguments[0].scrollIntoView(); arguments[0].click()", page.element(selector))


def number(tab: str, name: str) -> str:
    return f"#{tab}_{name} input[type=number]"


def make_small(page: Page) -> None:
    for name, side in (("width", "64"), ("height", "128"), ("steps", "2")):
        page.run(SET, number("txt2img", name), side)


def test_from_a_word_to_a_transparent_png(webui, page):
    """Nothing but a word and a key: layers are on from the start."""
    assert page.element(f"{PANEL}_enabled-checkbox input").is_selected()
    click(page, '#txt2img_words button[data-prompt="red apple"]')
    prompt = page.find("#txt2img_prompt textarea")[0]
    assert prompt.get_attribute("value") == "red apple", "at once"
    prompt.send_keys("\ue009", "\ue007")  # Ctrl+Enter
    link = page.element("#txt2img_files a")
    assert page.find("#txt2img_gallery img")
    page.wait(lambda: page.find("#txt2img_gallery img.layerdiffusion-transparent"), "the checkerboard")
    text = value(page, "#generation_info_txt2img textarea")
    assert "layerdiffusion_mode: foreground" in text
    image = read_png(page.download(link, ".png"))
    assert image.mode == "RGBA"
    alpha = np.asarray(image)[..., 3]
    assert (alpha < 10).mean() > 0.2
    assert (alpha > 245).mean() > 0.2
    assert image.info["parameters"] == text
    page.wait(lambda: "Last run" in page.element(f"{PANEL}_status").text, "the status after the run")


def test_files_have_names_and_go_on_to_image_to_image(webui, page):
    make_small(page)
    page.run(SET, "#txt2img_prompt textarea", "frog")
    click(page, f"{PANEL}_advanced .label-wrap")
    for output in ("checker", "alpha", "psd", "ora"):
        click(page, f"{PANEL}_outputs_{output} input")
    click(page, "#txt2img_generate")
    page.element("#txt2img_files a")
    names = [link.get_attribute("download") for link in page.find("#txt2img_files a[download]")]
    stem = names[0].removesuffix(".png")
    seed = stem.split("-")[1]
    assert stem.endswith(f"-{seed}-frog")
    assert names == [f"{stem}{end}" for end in (".png", "-checker.png", "-alpha.png", ".psd", ".ora")]
    ora = page.find("#txt2img_files a[download]")[-1]
    assert "mergedimage.png" in zipfile.ZipFile(page.download(ora, ".ora")).namelist()

    page.run("arguments[0].click()", page.find("#txt2img_same_seed")[0])
    page.wait(lambda: value(page, "#txt2img_seed input") == seed, "the picture's seed")
    click(page, "#txt2img_any_seed")
    page.wait(lambda: value(page, "#txt2img_seed input") == "-1", "any seed")
    click(page, "#txt2img_send_to_img2img")
    page.element("#img2img_image img")
    page.wait(lambda: value(page, "#img2img_prompt textarea") == "frog", "the prompt")
    assert [value(page, number("img2img", name)) for name in ("width", "height", "steps")] == ["64", "128", "2"]
    assert value(page, "#img2img_seed input") == seed
    assert page.find("#script_img2img_layerdiffuse_enabled-checkbox input")[0].is_selected()
    page.run(SET, number("img2img", "width"), "512")
    click(page, "#img2img_size_of_image")
    page.wait(lambda: value(page, number("img2img", "width")) == "64", "the image's size")
    assert value(page, number("img2img", "height")) == "128"


def test_modes_that_can_not_run_are_marked_in_the_list(webui, page):
    click(page, f"{PANEL}_mode input")
    page.find(f"{PANEL}_mode input")[0].click()
    marked = page.wait(lambda: page.find("li.layerdiffusion-unavailable"), "the marks")
    assert len(page.find(f"{PANEL}_mode li")) == len(marked) + 4, "the embedded model has SD1.5's four modes"
    reasons = f"{PANEL}_mode .layerdiffusion-why"  # without a text as long as the list fades in
    page.wait(lambda: {reason.text for reason in page.find(reasons)} == {"needs SDXL"}, "the reasons")


def test_sides_are_swapped(webui, page):
    make_small(page)
    click(page, "#txt2img_swap")
    page.wait(lambda: value(page, number("txt2img", "width")) == "128", "the swap")
    assert value(page, number("txt2img", "height")) == "64"


@pytest.mark.parametrize("way", ["button", "drop"])
def test_parameters_of_a_picture_are_read(webui, page, tmp_path, way):
    info, path = PngInfo(), tmp_path / "given.png"
    info.add_text("parameters", PARAMETERS)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    column = "arguments[0].parentElement.querySelector('input[type=file]')"
    button = page.element("#txt2img_read")
    if way == "button":
        page.driver.execute_script(f"return {column}", button).send_keys(str(path))
    else:
        drop_on_prompt(page, path)
    page.wait(lambda: value(page, "#txt2img_prompt textarea") == "a star", "the parameters")
    found = [value(page, number("txt2img", name)) for name in ("steps", "cfg", "width", "height")]
    assert found == ["7", "2", "64", "192"]
    assert value(page, "#txt2img_seed input") == "11"
    assert not page.find(f"{PANEL}_enabled-checkbox input")[0].is_selected(), "it was made without layers"


def drop_on_prompt(page: Page, path: Path) -> None:
    page.driver.execute_script(
        """const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(arguments[0])], "given.png", {type: "image/png"}));
        document.querySelector("#txt2img_prompt textarea").dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));""",
        list(path.read_bytes()),
    )


def colour_of(page: Page, selector: str) -> tuple[int, ...]:
    text = page.element(selector).value_of_css_property("color")
    return tuple(int(part) for part in text[text.index("(") + 1 : text.index(")")].split(",")[:3])


def test_unknown_words_are_told_in_colour(webui, page):
    make_small(page)
    page.run(SET, "#txt2img_prompt textarea", "frog zebra")
    click(page, "#txt2img_generate")
    assert "doesn't know 'zebra'" in page.element("#txt2img_progress .comments").text
    assert colour_of(page, "#txt2img_progress .comments") == (122, 82, 0)


def test_a_number_that_can_not_be_is_refused_in_colour(webui, page):
    page.run(SET, number("txt2img", "steps"), "0")
    click(page, "#txt2img_generate")
    assert page.element("#txt2img_progress .error").text == "Steps must be a whole number from 1 to 150, not 0."
    red, green, blue = colour_of(page, "#txt2img_progress .error")
    assert red > 2 * max(green, blue)


def test_a_refusal_is_shown(webui, page):
    page.element("#txt2img_prompt textarea").send_keys("red apple")
    webui.shared.cmd_opts.layerdiffusion_dir, before = "/none/such", webui.shared.cmd_opts.layerdiffusion_dir
    files = webui.module("paths")
    files.models_path, models = "/none/such", files.models_path
    try:
        click(page, "#txt2img_generate")
        sentence = page.element("#txt2img_progress .error").text
    finally:
        webui.shared.cmd_opts.layerdiffusion_dir, files.models_path = before, models
    assert "layer_sd15_transparent_attn" in sentence


def choose_script(page: Page, title: str) -> None:
    field = page.element("#script_list input")
    page.run("arguments[0].scrollIntoView()", field)
    field.click()
    page.element(f'li[aria-label="{title}"]').click()


def test_the_script_for_scenes_says_what_can_not_run_when_it_is_shown(webui, page, sdxl, tmp_path, monkeypatch):
    """With the checkpoint and the files of that moment, before anything is chosen in it."""

    def wait_for(text: str) -> str:
        page.wait(lambda: text in page.element(f"{SCENE}_status").text, f"{text!r} in the status of scenes")
        return page.element(f"{SCENE}_status").text

    choose_script(page, TITLE)
    said = wait_for("Passes")
    assert "1 foreground, background, blend with foreground" in said
    assert said.endswith("Weight files present")

    (tmp_path / "layer_model").mkdir()
    here = EMBEDDED_FOLDER / "layer_model"
    for path in here.glob("*.safetensors"):
        if "fg2bg" not in path.name:
            (tmp_path / "layer_model" / path.name).symlink_to(path)
    monkeypatch.setattr(webui.module("paths"), "models_path", str(tmp_path))
    click(page, f"{SCENE}_refresh")
    assert "Weight files present" in wait_for("Made first Foreground: not for this checkpoint"), "the published one"
    click(page, f'{SCENE}_first input[value="Foreground"]')
    said = wait_for("1 foreground; 2 background, blend with foreground")
    assert "Layer mode The file layer_sd15_fg2bg is made for a UNet of 320 channels" in said

    choose_script(page, "None")
    webui.load(sdxl)
    choose_script(page, TITLE)
    said = wait_for("Checkpoint SDXL")
    assert "1 foreground; 2 blend with foreground; 3 background" in said
    assert "layer_xl_fg2ble" in said
