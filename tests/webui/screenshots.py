"""Pictures of the panel in every mode for docs/modes.md: `make screenshots`.

The panel stands in a page of its own, on whichever gradio is installed; WebUIs' own style sheets are not there.
"""

from __future__ import annotations

import io
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_layerdiffusion.modes import MODE_NAMES, any_row
from lib_layerdiffusion.webui import panel
from lib_layerdiffusion.webui.labels import to_label
from tests.browser import Page, opened
from tests.webui import panel_host

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "images"
PATIENCE = 60  # seconds
COLOURS = 128  # of a picture: enough for greys, an accent and smooth letters
GRADIO = int(gr.__version__.partition(".")[0])
ACCORDION = {3: panel_host.accordion_of_gradio_3, 4: panel_host.accordion_of_gradio_4}[GRADIO]
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
PICK = "arguments[0].dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"


def elem_id(name: str) -> str:
    return f"script_txt2img_layerdiffuse_{name}"


def find_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def build(extension: Any) -> gr.Blocks:
    """A page as wide as half a WebUI, with the panel."""
    css = (ROOT / "style.css").read_text(encoding="utf-8") + ".gradio-container {max-width: 640px !important}"
    with gr.Blocks(theme=gr.themes.Default(**FONTS), css=css, analytics_enabled=False) as demo:
        made = panel.build(False, elem_id, extension)
        generate = gr.Button(visible=False)
        generate.click(lambda *values: None, made.controls)  # what no event takes as input can't be edited
    return demo


def take(page: Page, selector: str, name: str) -> None:
    """Save a picture of an element."""
    page.run("document.activeElement.blur()")
    time.sleep(1)  # for what slides open
    image = Image.open(io.BytesIO(page.element(selector).screenshot_as_png)).convert("RGB")
    path = FOLDER / f"{name}-gradio{GRADIO}.png"
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def show_mode(page: Page, mode: str) -> None:
    """Pick a mode as a user does."""
    field = page.element(f"#{elem_id('mode')} input")
    label = to_label("mode", mode)
    if field.get_attribute("value") != label:
        field.click()
        page.run(PICK, page.element(f'li[aria-label="{label}"]'))
        page.wait(lambda: field.get_attribute("value") == label, label)
    wanted = f"#{elem_id('status')} .layerdiffusion-status div"
    page.wait(lambda: len(page.find(wanted)) > 1, "the status")


def main() -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory() as folder, panel_host.installed(panel_host.make_modules(ACCORDION())):
        extension = panel_host.make_extension(Path(folder))
        demo = build(extension)
        demo.queue()
        _, address, _ = demo.launch(
            prevent_thread_lock=True, server_name="127.0.0.1", server_port=find_port(), quiet=True
        )
        try:
            with opened(address, Path(folder), PATIENCE) as page:
                page.element(f"#{elem_id('enabled')} .label-wrap").click()
                for mode in MODE_NAMES:
                    extension.family = any_row(mode).family
                    page.element(f"#{elem_id('refresh')}").click()
                    show_mode(page, mode)
                    take(page, f"#{elem_id('enabled')}", f"panel-{mode}")
                page.element(f"#{elem_id('advanced')} .label-wrap").click()
                take(page, f"#{elem_id('advanced')}", "panel-advanced")
        finally:
            demo.close()


if __name__ == "__main__":
    main()
