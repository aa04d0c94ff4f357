"""What artists do on a real WebUI's page with transparent pictures, in headless Chromium."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import Page, opened
from tests.e2e.studio import OTHER, at_first, embedded, studio, unchanged
from tests.e2e.test_page import SET_NUMBER, click, fetch
from tests.masked_pictures import find_unmasked

if TYPE_CHECKING:
    from tests.e2e.studio import Studio

__all__ = ["at_first", "embedded", "studio", "unchanged"]  # fixtures

PATIENCE = 240  # seconds
INPAINT, INPAINT_SKETCH, INPAINT_UPLOAD = 2, 3, 4  # places among the tabs of img2img
SET_TEXT = """
const field = document.querySelector(arguments[0]);
Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(field, arguments[1]);
field.dispatchEvent(new Event('input', {bubbles: true}));
"""
# Changes what the button hands to the WebUI: the list of checkpoints for the second pass is hidden by default.
REPLACE_SENT = """
const [changes, submit] = [arguments[0], window.submit_txt2img_upscale];
window.submit_txt2img_upscale = function() {
    return submit.apply(this, arguments).map((each) => changes[each] ?? each);
};
"""


class Tab:
    """The page's tab txt2img or img2img."""

    def __init__(self, page: Page, studio: Studio, name: str) -> None:
        self.page, self.studio, self.name = page, studio, name
        self.numbers: dict[str, Any] = {}

    @property
    def panel(self) -> str:
        return f"#script_{self.name}_layerdiffuse"

    def set(self, **values: Any) -> None:
        """Set fields with numbers by their names, and the prompt."""
        for name, value in values.items():
            if name == "prompt":
                self.page.element(f"#{self.name}_prompt textarea")
                self.page.run(SET_TEXT, f"#{self.name}_prompt textarea", value)
            else:
                self.numbers[name] = value
                self.page.element(f"#{self.name}_{name} input[type=number]")
                self._keeps(name)

    def _keeps(self, name: str) -> bool:
        """Whether a field still has its number, which it is given again otherwise: Forge sets its own once more."""
        selector, value = f"#{self.name}_{name} input[type=number]", str(self.numbers[name])
        kept = self.page.find(selector)[0].get_attribute("value") == value
        if not kept:
            self.page.run(SET_NUMBER, selector, value)
        return kept

    def set_small(self, **values: Any) -> None:
        usual = {name: self.studio.usual[name] for name in ("prompt", "seed", "cfg_scale", "width", "height")}
        self.set(**usual | {"steps": 2} | values)

    def switch_layers(self) -> None:
        was_on = self.is_on()
        click(self.page, f"{self.panel}_enabled .label-wrap")
        self.page.wait(lambda: self.is_on() != was_on, "the panel to be switched")

    def is_on(self) -> bool:
        (box,) = self.page.find(f"{self.panel}_enabled-checkbox input, #{self.panel[1:]}_enabled-visible-checkbox")[:1]
        return box.is_selected()

    def read(self, option: str) -> str:
        """The value of a field of the panel."""
        return self.page.find(f"{self.panel}_{option} input")[0].get_attribute("value")

    def list_pictures(self) -> list[str]:
        selectors = (f"#{self.name}_gallery .{part} img" for part in ("thumbnails", "grid-container"))
        images = self.page.find(", ".join(selectors))
        return list(dict.fromkeys(image.get_attribute("src") for image in images))

    def make(self, button: str = "generate") -> list[Image.Image]:
        """Click a button that makes pictures, and wait for them."""
        for _ in range(2):  # what the page does by itself after it was opened takes a moment
            self.page.wait(lambda: all(self._keeps(name) for name in self.numbers), "the numbers to be kept")
            time.sleep(1)
        earlier = self.list_pictures()
        click(self.page, f"#{self.name}_{button}")

        def made() -> list[str]:
            (running,) = self.page.find(f"#{self.name}_interrupt")
            failed = self.page.find(f"#html_log_{self.name} .error")
            assert not failed, [each.text for each in failed]
            return [] if running.is_displayed() or self.list_pictures() == earlier else self.list_pictures()

        return [fetch(self.studio.server, address) for address in self.page.wait(made, "the pictures")]

    def upload(self, selector: str, image: Image.Image, path: Path) -> None:
        image.save(path)
        fields = self.page.wait(lambda: self.page.find(selector), selector)
        fields[0].send_keys(str(path))


@pytest.fixture
def page(studio: Studio, tmp_path: Path) -> Iterator[Page]:
    with opened(f"{studio.server.address}/", tmp_path, PATIENCE) as page:
        yield page


@pytest.fixture
def txt2img(page: Page, studio: Studio) -> Tab:
    tab = Tab(page, studio, "txt2img")
    tab.set_small()
    return tab


@pytest.fixture
def img2img(page: Page, studio: Studio) -> Tab:
    return Tab(page, studio, "img2img")


def start_inpainting(page: Page, img2img: Tab, place: int) -> None:
    """Open one of the inpainting tabs with layers on, the whole picture as the area."""
    page.element("#txt2img_prompt textarea")
    page.run("switch_to_img2img_tab(arguments[0])", place)
    img2img.set_small()
    img2img.switch_layers()


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
@pytest.mark.seen("foreground", "inpaint by the tab Inpaint upload")
def test_inpaint_upload(page: Page, img2img: Tab, studio: Studio, tmp_path: Path, kind: str) -> None:
    start, mask = studio.draw(kind), studio.draw_mask()
    start_inpainting(page, img2img, INPAINT_UPLOAD)
    img2img.upload("#img_inpaint_base input[type=file]", start, tmp_path / "start.png")
    img2img.upload("#img_inpaint_mask input[type=file]", mask, tmp_path / "mask.png")
    page.wait(lambda: page.find("#img_inpaint_base img") and page.find("#img_inpaint_mask img"), "both images")
    (made,) = img2img.make()
    assert (made.mode, made.size) == ("RGBA", start.size)
    far = find_unmasked(mask, 4)
    assert np.array_equal(np.asarray(made)[far], np.asarray(start.convert("RGBA"))[far])


def draw_stroke(page: Page, selector: str) -> None:
    """A short stroke in the middle of a canvas."""
    from selenium.webdriver import ActionChains

    canvas = page.wait(lambda: page.find(selector), selector)[-1]
    page.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    actions = ActionChains(page.driver).move_to_element(canvas).click_and_hold()
    for _ in range(4):
        actions = actions.move_by_offset(3, 2)
    actions.release().perform()


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
@pytest.mark.seen("foreground", "inpaint by the tab Inpaint sketch")
def test_inpaint_sketch(page: Page, img2img: Tab, studio: Studio, tmp_path: Path, kind: str) -> None:
    start = Image.new("RGB", (studio.size, studio.size), (40, 90, 140))
    if kind == "RGBA":
        start.putalpha(255)
        start.paste((40, 90, 140, 0), (0, studio.size // 2, studio.size, studio.size))
    start_inpainting(page, img2img, INPAINT_SKETCH)
    img2img.upload("#inpaint_sketch input[type=file]", start, tmp_path / "start.png")
    page.wait(lambda: page.find("#inpaint_sketch canvas, #inpaint_sketch .forge-image"), "the canvas")
    draw_stroke(page, "#inpaint_sketch canvas")
    (made,) = img2img.make()
    painted, given = np.asarray(made), np.asarray(start.convert("RGBA"))
    edge = studio.size // 8
    assert made.mode == "RGBA"
    assert np.array_equal(painted[:edge], given[:edge])
    if kind == "RGB" or studio.is_forge:
        assert np.array_equal(painted[-edge:, :, 3], given[-edge:, :, 3])
    else:  # AUTOMATIC1111 hands an opaque picture over, and nothing tells what its canvas dropped
        assert (painted[-edge:, :, 3] == 255).all()


@pytest.mark.parametrize("switched", ["on", "off"])
@pytest.mark.seen("foreground", "hires fix by the button for an upscaled version, layers {switched}")
def test_upscaled_version(page: Page, txt2img: Tab, studio: Studio, switched: str) -> None:
    txt2img.switch_layers()
    (first,) = txt2img.make()
    if switched == "off":
        txt2img.switch_layers()
    (larger,) = txt2img.make("upscale")
    assert first.mode == "RGBA"
    assert larger.size == (2 * studio.size, 2 * studio.size)
    transparent = np.asarray(larger.convert("RGBA"))[..., 3].min() < 254  # Forge hides its infotext in the lowest bit
    assert transparent == (switched == "on")
    assert ("layerdiffusion_mode" in larger.info["parameters"]) == (switched == "on")


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.seen("foreground", "hires fix by the button for an upscaled version, another checkpoint, {upscaler}")
def test_upscaled_version_by_another_checkpoint(page: Page, txt2img: Tab, studio: Studio, upscaler: str) -> None:
    with studio.another_checkpoint() as name:
        page.run(REPLACE_SENT, {"Use same checkpoint": name, "Latent": upscaler})
        txt2img.switch_layers()
        txt2img.make()
        (larger,) = txt2img.make("upscale")
    assert (larger.mode, larger.size) == ("RGBA", (2 * studio.size, 2 * studio.size))
    assert f"Hires checkpoint: {OTHER}" in larger.info["parameters"]


@pytest.mark.seen("foreground", "PSD that can't be written, the WebUI's page")
def test_a_layered_file_that_fails_is_told(page: Page, txt2img: Tab, studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "picture.psd").mkdir()
    txt2img.switch_layers()
    click(page, f"{txt2img.panel}_advanced .label-wrap")
    for box in page.find(f"{txt2img.panel}_outputs input[type=checkbox]")[-2:]:
        page.run("arguments[0].click()", box)
    with studio.saving_in(tmp_path):
        transparent = txt2img.make()[0]
    assert transparent.mode == "RGBA"
    assert "picture.psd" in page.element("#html_log_txt2img .comments").text
    assert (tmp_path / "picture.ora").is_file()


@pytest.mark.parametrize(("target", "place"), [("img2img", 0), ("inpaint", INPAINT)])
@pytest.mark.seen("foreground", "Send to {target}")
def test_send_to(page: Page, txt2img: Tab, img2img: Tab, studio: Studio, target: str, place: int) -> None:
    txt2img.switch_layers()
    page.element(f"{txt2img.panel}_weight input[type=number]")
    page.run(SET_NUMBER, f"{txt2img.panel}_weight input[type=number]", "0.85")
    (sent,) = txt2img.make()
    assert "layerdiffusion_weight: 0.85" in sent.info["parameters"]
    click(page, f"#txt2img_send_to_{target}")
    page.wait(img2img.is_on, "the panel to be on")
    page.wait(lambda: img2img.read("weight") == "0.85", "the weight")
    assert img2img.read("mode") == txt2img.read("mode")
    img2img.set_small()
    if target == "inpaint":
        draw_stroke(page, "#img2maskimg canvas")
    (made,) = img2img.make()
    assert made.mode == "RGBA"
    assert "layerdiffusion_weight: 0.85" in made.info["parameters"]
    assert np.ptp(np.asarray(made)[..., 3]) > 2, "the alpha is flat"
    if target == "inpaint":  # far from the stroke, the picture that was sent
        edge = studio.size // 8
        assert abs(np.asarray(made)[:edge].astype(int) - np.asarray(sent)[:edge])[..., 3].max() <= 1


@pytest.mark.parametrize(("mode", "frames"), [("foreground", 1), ("together", 3)])
@pytest.mark.seen("{mode}", "infotext pasted, the WebUI's page")
def test_pasted_infotext_makes_the_set_again(page: Page, txt2img: Tab, studio: Studio, mode: str, frames: int) -> None:
    """That of the last picture of the second set."""
    with studio.seeded_files() if mode == "together" else nullcontext():
        answer = studio.txt2img({"mode": mode, "weight": 0.9, "views": 2}, n_iter=2, width=64, height=64, steps=2)
        pasted = answer.info["infotexts"][-1]
        (seed,) = re.findall(r"Seed: (\d+)", pasted)
        txt2img.set(prompt=pasted)
        txt2img.numbers.clear()  # from here on they are the infotext's
        click(page, "#txt2img_tools #paste")
        page.wait(txt2img.is_on, "the panel to be on")
        page.wait(lambda: page.find("#txt2img_prompt textarea")[0].get_attribute("value") == "red apple", "the prompt")
        page.wait(lambda: page.find("#txt2img_seed input")[0].get_attribute("value") == seed, "the seed")
        made = txt2img.make()
    assert [image.tobytes() for image in made[:frames]] == [image.tobytes() for image in answer.images[-frames:]]


@pytest.mark.seen("any", "embedded model, modes that can't fit: told on the page")
def test_status_of_a_mode_that_cannot_fit(page: Page, txt2img: Tab, studio: Studio) -> None:
    if studio.is_forge:
        pytest.skip("Forge and its forks only load checkpoints of full shape")
    with studio.unfit_file():
        txt2img.switch_layers()
        field = page.element(f"{txt2img.panel}_mode input")
        page.run("arguments[0].scrollIntoView()", field)
        field.click()
        page.element('li[aria-label="Foreground and background together · SD1.5"]').click()
        status = page.wait(lambda: page.find(f"{txt2img.panel}_status .layerdiffusion-bad"), "the refusal")[0].text
        assert "made for a UNet of 320 channels" in status
        assert "Download" not in page.element(f"{txt2img.panel}_status").text
