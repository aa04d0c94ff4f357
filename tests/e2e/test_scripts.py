"""Layers together with the WebUI's plot script and with other extensions, if they are installed in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.server import encode

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

FOREGROUND = {"mode": "foreground"}
PLOTTED = ["foreground", "together", "background_to_foreground"]
# A detector's file in models/adetailer; whatever it is trained for, at confidence 0 it finds something.
DETECTED = {"ad_confidence": 0, "ad_mask_k": 1, "ad_denoising_strength": 0.9}


def need_script(webui: WebUIServer, start: str) -> str:
    """The title of the installed script that starts with `start`."""
    titles = webui.get("/sdapi/v1/scripts")["txt2img"]
    found = [title for title in titles if title.casefold().startswith(start)]
    if not found:
        pytest.skip(f"{start} isn't installed in this WebUI")
    return found[0]


def write_plot_arguments(webui: WebUIServer, script: str, label: str, values: list[str]) -> list[Any]:
    """The plot script's arguments, which differ between WebUIs: the defaults, except for the X axis."""
    (info,) = [info for info in webui.get("/sdapi/v1/script-info") if info["name"] == script and not info["is_img2img"]]
    arguments: list[Any] = []
    seen: set[str] = set()
    for field in info["args"]:
        name, value = field["label"].casefold(), field["value"]
        if name.endswith(" type"):
            value = field["choices"].index(label if name == "x type" else "Nothing")
        elif name == "x values":  # a text for most axes, and then a list for those with choices
            value = values if "x values" in seen else ", ".join(values)
        elif name == "include sub images":
            value = True
        seen.add(name)
        arguments.append([] if value is None else value)
    return arguments


@pytest.mark.seen("any", "X/Y/Z plot over three modes")
def test_plot_over_modes(webui: WebUIServer) -> None:
    script = need_script(webui, "x/y/z plot")
    arguments = write_plot_arguments(webui, script, "[LayerDiffusion] Layer mode", PLOTTED)
    background = encode(Image.linear_gradient("L").resize((128, 128)).convert("RGB"))
    answer = webui.txt2img(
        {"mode": "foreground", "background_image": background}, script_name=script, script_args=arguments
    )
    singles = [image for image in answer.images if image.size == (128, 128)]
    assert [image.mode for image in singles] == ["RGBA"] * len(PLOTTED)
    assert len({image.tobytes() for image in singles}) == len(PLOTTED)


@pytest.mark.seen("any", "X/Y/Z plot with a mode that is refused")
def test_plot_with_a_refused_mode(webui: WebUIServer) -> None:
    script = need_script(webui, "x/y/z plot")
    modes = ["foreground", "foreground_conv"]  # the second needs SDXL
    arguments = write_plot_arguments(webui, script, "[LayerDiffusion] Layer mode", modes)
    answer = webui.txt2img({"mode": "foreground"}, script_name=script, script_args=arguments)
    made, told = (image for image in answer.images if image.size == (128, 128))
    assert (made.mode, told.mode) == ("RGBA", "RGB")
    grey = np.asarray(told.convert("L"))
    assert np.median(grey) > 200, "paper"
    assert (grey < 150).mean() > 0.02, "letters"


@pytest.mark.seen("{mode}", "with dynamic prompts")
@pytest.mark.parametrize("mode", ["foreground", "together"])
def test_dynamic_prompts(webui: WebUIServer, mode: str) -> None:
    need_script(webui, "dynamic prompts")
    answer = webui.txt2img({"mode": mode}, prompt="a {red|green|blue|white} apple", batch_size=2)
    frames = {"foreground": 1, "together": 3}[mode]
    assert [image.mode for image in answer.images] == 2 * (["RGBA"] + ["RGB"] * (frames - 1))
    prompts = [text.splitlines()[0] for text in answer.info["infotexts"]]
    assert not any("{" in prompt for prompt in prompts)
    for image, prompt in zip(answer.images, prompts, strict=True):
        assert image.info["parameters"].startswith(prompt)


@pytest.mark.seen("{mode}", "with ADetailer")
@pytest.mark.parametrize("mode", ["foreground", "together"])
def test_adetailer(webui: WebUIServer, mode: str) -> None:
    """It redraws a detail of the picture in a generation of its own, without layers."""
    script = need_script(webui, "adetailer")
    files = sorted((webui.folder / "models" / "adetailer").glob("*.pt"))
    if not files:
        pytest.skip("models/adetailer has no detector")
    scripts = {
        "LayerDiffuse": {"args": [{"mode": mode}]},
        script: {"args": [True, False, {"ad_model": files[0].name, **DETECTED}]},
    }
    with webui.same_threads():
        detailed = webui.txt2img(alwayson_scripts=scripts).images
    without = webui.txt2img({"mode": mode}).images
    assert [image.mode for image in detailed] == [image.mode for image in without]
    one, other = (np.asarray(images[0]).astype(int) for images in (detailed, without))
    assert abs(one - other)[..., :3].max() > 2, "the detail wasn't redrawn"
    assert abs(one - other)[..., 3].max() <= 2, "the alpha changed"
