"""The picture of `make webui` for README.md, after an image was made in it: the last part of `make screenshots`."""

from __future__ import annotations

import io
import socket
import tempfile
import threading
import time
from pathlib import Path

import uvicorn
from PIL import Image

from lib_layerdiffusion.embedded import EMBEDDED, EMBEDDED_FOLDER
from lib_layerdiffusion.hosts.pipelines import load_pipeline
from lib_layerdiffusion.stand_in.launch import running
from tests.browser import Page, opened

PATH = Path(__file__).parents[2] / "docs" / "images" / "webui.png"
PATIENCE = 240  # seconds
PROMPT, SEED = "red apple", "5"


def generate(page: Page) -> None:
    """Type a prompt and generate, with the panel that is open from the start."""
    page.wait(lambda: page.find("#script_txt2img_layerdiffuse_status .layerdiffusion-good"), "the status")
    page.element("#txt2img_prompt textarea").send_keys(PROMPT)
    seed = page.element("#txt2img_seed input")
    seed.clear()
    seed.send_keys(SEED)
    page.element("#txt2img_generate").click()
    page.element("#txt2img_files a")
    page.element("#txt2img_gallery img").click()
    page.run("document.activeElement.blur(); window.scrollTo(0, 0); document.body.style.overflow = 'hidden'")
    time.sleep(2)  # for the preview that slides open


def main() -> None:
    """Serve the page on a free port of this machine, use it, and save what it looks like."""
    pipe = load_pipeline(EMBEDDED_FOLDER, device="cpu", offline=True)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with running(pipe, EMBEDDED, outputs=Path(folder), offline=True) as stand_in:
            server = uvicorn.Server(uvicorn.Config(stand_in.app, log_level="error"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            try:
                with opened(address, Path(folder), PATIENCE) as page:
                    page.driver.set_window_size(1300, 1400)
                    generate(page)
                    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
            finally:
                server.should_exit = True
                thread.join(10)
    shot.save(PATH, optimize=True)


if __name__ == "__main__":
    main()
