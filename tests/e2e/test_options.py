"""Options of a real WebUI that change how its model computes or reload it, set while layers are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.e2e.server import CHECKPOINTS, Answer, is_forge
from tests.e2e.test_embedded_checkpoint import CHECKPOINT, choose, embedded

if TYPE_CHECKING:
    from tests.e2e.server import State, WebUIServer

__all__ = ["embedded"]  # a fixture

FOREGROUND, TOGETHER = {"mode": "foreground"}, {"mode": "together"}
ATTENTION = "cross_attention_optimization"
ATTENTIONS = {  # AUTOMATIC1111's; the others need a graphics card
    "none": "None",
    "split, Doggettx": "Doggettx",
    "split, InvokeAI": "InvokeAI",
    "split, original": "V1 - original v1",
    "sub-quadratic": "sub-quadratic",
    "sdp": "sdp - scaled dot product",
    "sdp-no-mem": "sdp-no-mem - scaled dot product without memory efficient attention",
}
HYPERTILE = {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 128}
HYPERTILE_ARGUMENTS = [128, 2, 0, False]  # tile size, swap size, depth, whether tiles grow with it
TILED = {"width": 256, "height": 256, "steps": 1}


@pytest.mark.seen("foreground", "attention: {name}")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(webui: WebUIServer, before: State, name: str) -> None:
    """Each computes the same, so the picture only differs by rounding."""
    if is_forge(webui.folder):
        pytest.skip("Forge and its forks choose their attention by flags")
    value = ATTENTIONS[name]
    applied = "attention optimization" if value == "None" else f"attention optimization: {value.partition(' ')[0]}..."
    times = webui.read_log().count(applied)
    with webui.options(**{ATTENTION: value}):
        assert webui.read_log().count(applied) == times + 1
        together = webui.ask(TOGETHER).images
        foreground = webui.ask(FOREGROUND)
    assert [image.mode for image in together] == ["RGBA", "RGB", "RGB"]
    assert differ(foreground, Answer(200, {"images": before.layers})) <= 1


@pytest.mark.seen("foreground", "checkpoint unloaded and loaded again")
def test_checkpoint_unloaded_and_loaded_again(webui: WebUIServer, before: State) -> None:
    assert webui.post("/sdapi/v1/unload-checkpoint").status == 200
    assert webui.post("/sdapi/v1/reload-checkpoint").status in (200, 404)  # Forge Neo does so with the next picture
    assert webui.ask(FOREGROUND).encoded == before.layers


@pytest.mark.seen("foreground", "hypertile")
def test_tiles_around_the_attention(webui: WebUIServer) -> None:
    """AUTOMATIC1111's Hypertile wraps the attention: each image alone may be tiled, the frames of a set may not."""
    if not (webui.folder / "extensions-builtin" / "hypertile").is_dir():
        pytest.skip("this WebUI doesn't have that Hypertile")
    made = {}
    try:
        for enabled in (True, False):
            values = {"override_settings": HYPERTILE | {"hypertile_enable_unet": enabled}, **TILED}
            made[enabled] = [webui.ask(layers, **values) for layers in (None, FOREGROUND)]
            together = webui.ask(TOGETHER, **values)
            assert together.status == (422 if enabled else 200)
            assert not enabled or together.body["detail"].startswith("hypertile cuts the image into parts")
    finally:  # AUTOMATIC1111 keeps a setting that had no value before
        webui.ask(override_settings={"hypertile_enable_unet": False})
    assert min(differ(*pair) for pair in zip(made[True], made[False], strict=True)) > 0, "nothing was tiled"


@pytest.mark.seen("foreground", "hypertile")
def test_tiles_within_the_network(webui: WebUIServer) -> None:
    """Forge's forks tile the queries before the attention, by a patch."""
    titles = [title for title in webui.get("/sdapi/v1/scripts")["txt2img"] if title == "hypertile integrated"]
    if not titles:
        pytest.skip("this WebUI doesn't have that Hypertile")
    tiles = {"args": [True, *HYPERTILE_ARGUMENTS]}
    tiled, refused = (
        webui.ask(alwayson_scripts={"LayerDiffuse": {"args": [layers]}, titles[0]: tiles}, **TILED)
        for layers in (FOREGROUND, TOGETHER)
    )
    assert differ(tiled, webui.ask(FOREGROUND, **TILED)) > 0
    assert refused.status == 422
    assert "Hypertile" in refused.body["detail"]


@pytest.mark.seen("foreground", "weights stored in fp8")
def test_weights_in_eight_bits(webui: WebUIServer, embedded: WebUIServer, before: State) -> None:
    """AUTOMATIC1111 keeps the rounded weights in memory; loading a checkpoint of another shape replaces them."""
    choose(webui, f"{CHECKPOINTS['sd15']}.safetensors")
    with webui.options(fp8_storage="Enable"):
        plain = webui.ask().encoded
        first = webui.ask(FOREGROUND)
        assert webui.ask(FOREGROUND).encoded == first.encoded
        assert [image.mode for image in webui.ask(TOGETHER).images] == ["RGBA", "RGB", "RGB"]
        assert webui.ask().encoded == plain != before.plain
        assert webui.look_at_model()["hooked"] == []
    assert differ(first, Answer(200, {"images": before.layers})) < 20
    choose(webui, f"{CHECKPOINT}.safetensors")


def differ(one: Answer, other: Answer) -> float:
    """The largest mean difference between their pictures, in 0..255."""
    pairs = zip(one.images, other.images, strict=True)
    return max(float(abs(np.asarray(image).astype(int) - np.asarray(pair)).mean()) for image, pair in pairs)
