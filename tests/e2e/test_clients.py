"""A public client library and the examples of docs/api.md against a real WebUI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.modes import MODES
from tests.webui.test_api import blocks, language, run_example

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

__all__ = ["language"]  # a fixture

SD15 = {mode.name for mode in MODES if mode.family == "sd15"}
SMALL = 128


@pytest.mark.seen("foreground", "the client library webuiapi")
def test_webuiapi(webui: WebUIServer) -> None:
    webuiapi = pytest.importorskip("webuiapi")
    client = webuiapi.WebUIApi(port=webui.port, sampler="Euler", scheduler="Automatic", steps=2)
    layers = {"LayerDiffuse": {"args": [{"mode": "foreground"}]}}
    settings = {"prompt": "a red apple", "width": SMALL, "height": SMALL, "cfg_scale": 5, "seed": 7}
    plain = client.txt2img(**settings)
    made = client.txt2img(**settings, alwayson_scripts=layers)
    assert (plain.image.mode, made.image.mode) == ("RGB", "RGBA")
    assert made.info["all_seeds"] == [7]
    assert np.ptp(np.asarray(made.image)[..., 3]) > 2, "the alpha is flat"
    again = client.img2img(images=[made.image], denoising_strength=0.5, **settings, alwayson_scripts=layers)
    assert again.image.mode == "RGBA"
    assert "layerdiffusion_mode: foreground" in client.png_info(made.image).info
    with pytest.raises(RuntimeError, match="forground"):
        client.txt2img(**settings, alwayson_scripts={"LayerDiffuse": {"args": [{"mode": "forground"}]}})
    assert client.txt2img(**settings).image.tobytes() == plain.image.tobytes()


@pytest.mark.seen("any", "the examples of docs/api.md")
def test_examples_of_the_document(
    webui: WebUIServer,
    language: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the document's order, for the modes of the loaded family, with few steps and small pictures."""
    monkeypatch.setenv("LAYERDIFFUSION_STEPS", f'1, "width": {SMALL}, "height": {SMALL}')
    url = webui.address
    (inputs,) = (text for mark, text in blocks("python") if mark == "inputs")
    for mark, text in blocks(language):
        kind, _, mode = mark.partition(": ")
        if kind == "own" or mode in SD15:
            run_example(language, text, url, tmp_path)
        if mark == "mode: foreground":  # which the others start from
            run_example("python", inputs, url, tmp_path)
    made = {path.stem: path for path in tmp_path.glob("*.png")}
    assert {"foreground", "foreground-2", "blend-3", "background-4", "decoded", "checker"} <= set(made)
    for name, path in made.items():
        with Image.open(path) as image:
            assert image.size == (SMALL, SMALL), name
            with_alpha = name.startswith(("foreground", "decoded")) or name == "blend"  # of two layers
            assert (image.mode == "RGBA") == with_alpha, name
