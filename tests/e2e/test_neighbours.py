"""Layers with a ControlNet unit: Forge's own, or the extension sd-webui-controlnet where that is installed."""

from __future__ import annotations

import urllib.error
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.server import CONTROL, encode

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer


@pytest.fixture(scope="module")
def unit(webui_server: WebUIServer) -> dict[str, Any]:
    """An enabled unit with the seeded ControlNet and an image that needs no preprocessor."""
    try:
        models, modules = (webui_server.get(f"/controlnet/{kind}_list")[f"{kind}_list"] for kind in ("model", "module"))
    except urllib.error.HTTPError:
        pytest.skip("this WebUI has no ControlNet")
    model = [name for name in models if name.startswith(CONTROL)]
    if not model:
        pytest.skip("needs the ControlNet of tests.e2e.seeded_files")
    (module,) = (name for name in modules if name.casefold() == "none")
    image = encode(Image.linear_gradient("L").resize((128, 128)).convert("RGB"))
    return {"enabled": True, "module": module, "model": model[0], "image": image, "save_detected_map": False}


@pytest.mark.seen("{mode}", "with a ControlNet unit")
@pytest.mark.parametrize(("mode", "frames"), [("any", 1), ("foreground", 1), ("together", 3)])
def test_controlnet(webui: WebUIServer, unit: dict[str, Any], mode: str, frames: int) -> None:
    """It steers every frame, and a picture without layers; afterwards pictures without it are unchanged."""
    layers = {} if mode == "any" else {"LayerDiffuse": {"args": [{"mode": mode}]}}
    without = webui.txt2img(alwayson_scripts=layers)
    steered = webui.txt2img(alwayson_scripts={**layers, "ControlNet": {"args": [unit]}}).images
    assert [image.mode for image in steered] == [image.mode for image in without.images]
    assert len(steered) == frames
    assert (steered[0].mode == "RGBA") == bool(layers)
    for one, other in zip(steered, without.images, strict=True):
        assert abs(np.asarray(one).astype(int) - np.asarray(other))[..., :3].max() > 2
    assert webui.txt2img(alwayson_scripts=layers).encoded == without.encoded
