"""Layers with other extensions that change attention or the UNet's batch, where they are installed in the WebUI.

AUTOMATIC1111 runs most of it with the embedded model and made-up layer files of its width, which is many times faster.
"""

from __future__ import annotations

import shutil
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.embedded import EMBEDDED_FOLDER, a1111_checkpoint
from tests.e2e.server import CHECKPOINTS, CONTROL, encode, is_forge

if TYPE_CHECKING:
    from tests.e2e.server import Answer, WebUIServer

NARROW = "layerdiffusion-narrow"
WHOLE = {"width": 128, "height": 128}  # in a smaller picture the middle block has one token, which sees itself only
TILES = {"width": 192, "height": 128}
REGIONS = {"prompt": "a red apple BREAK a leaf", **WHOLE}
COUPLE = {"prompt": "a red apple\na leaf"}
FEEDBACK = Path(__file__).with_name("foreground.png")


def divide(ratios: str) -> list[Any]:
    """Regional Prompter's arguments: columns of these ratios, by attention."""
    return [True, False, "Matrix", "Columns", "Mask", "Prompt", ratios, "", False, False, False, "Attention"]


def tile(method: str, overlap: int) -> list[Any]:
    """Tiled Diffusion's arguments: tiles of 16 x 16 latent pixels, up to four in a batch."""
    return [True, method, False, True, 192, 128, 16, 16, overlap, 4]


def like(most: float) -> list[Any]:
    """FABRIC's arguments: the picture is liked, with this weight."""
    return [[str(FEEDBACK)], [], True, 0.0, 1.0, most, most, 0.5, False, False, 0.5, 2048, -1]


def couple(direction: str) -> list[Any]:
    """forge-couple's arguments: two halves without a background."""
    return [True, False, "Basic", "", direction, "None", 0.5, [], "off", False, False]


# Script, two settings of it that differ in effect, and the request.
CHANGES: dict[str, tuple[str, list[Any], list[Any], dict[str, Any]]] = {
    "Regional Prompter": ("Regional Prompter", divide("1,1"), divide("3,1"), REGIONS),
    "MultiDiffusion": ("Tiled Diffusion", tile("MultiDiffusion", 4), tile("MultiDiffusion", 12), TILES),
    "Mixture of Diffusers": (
        "Tiled Diffusion",
        tile("Mixture of Diffusers", 4),
        tile("Mixture of Diffusers", 12),
        TILES,
    ),
    "FABRIC": ("FABRIC", like(0.2), like(1.0), {}),
    "Forge Couple": ("Forge Couple", couple("Horizontal"), couple("Vertical"), COUPLE),
    "StyleAlign": ("StyleAlign Integrated", [True, 0.5], [True, 1.0], {"batch_size": 2}),
    "FreeU": ("FreeU Integrated", [True, 1.0, 1.0, 0.9, 0.2], [True, 1.4, 1.4, 0.9, 0.2], WHOLE),
    "self-attention guidance": (
        "SelfAttentionGuidance Integrated",
        [True, 0.2, 2.0, 1.0],
        [True, 2.0, 2.0, 1.0],
        WHOLE,
    ),
    "perturbed attention": ("PerturbedAttentionGuidance Integrated", [True, 8.0], [True, 32.0], WHOLE),
}
FRAMES = {"foreground": 1, "together": 3, "background_to_foreground": 2}
CUT = (
    " cuts the image into parts or changes the number of images within the UNet, which this layer mode can't be used "
    "with: switch that off, or choose the layer mode 'foreground'."
)
REFUSED = {
    ("Forge Couple", "together"): f"sd-forge-couple{CUT}",
    ("FABRIC", "together"): f"sd-webui-fabric{CUT}",
    ("MultiDiffusion", "background_to_foreground"): (
        "The UNet is given [16, 16] latent pixels and the layer mode's image has [16, 24], as when another extension "
        "(such as Tiled Diffusion) samples in tiles: switch that off, or choose a layer mode without an image."
    ),
}
RUN = [
    *((name, mode) for name in CHANGES for mode in ("foreground", "together")),
    ("MultiDiffusion", "background_to_foreground"),
]


def need_script(webui: WebUIServer, start: str, tab: str = "txt2img") -> str:
    """The installed script whose title begins so, as the WebUI's API calls it."""
    found = [title for title in webui.get("/sdapi/v1/scripts")[tab] if title.startswith(start.casefold())]
    if not found:
        pytest.skip(f"{start} isn't installed in this WebUI")
    return found[0]


def choose(server: WebUIServer, checkpoint: str) -> None:
    assert server.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{checkpoint}.safetensors"}).status == 200


@pytest.fixture(scope="module")
def narrow(webui_server: WebUIServer) -> Iterator[WebUIServer]:
    """The WebUI with a narrow checkpoint and a file for each of SD1.5's modes, or as it is if it takes none."""
    if is_forge(webui_server.folder):
        yield webui_server
        return
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from tests.tiny_models import attention_file

    models = webui_server.folder / "models"
    layers = models / "layer_model" / NARROW
    for old in [*models.glob(f"*/{NARROW}*")]:  # left by an earlier model
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    a1111_checkpoint.write(EMBEDDED_FOLDER, models, layers, NARROW)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(EMBEDDED_FOLDER / "unet"))
    for name, frames, control in (("joint", 3, False), ("bg2fg", 2, True)):
        save_file(attention_file(unet, frames, control), layers / f"layer_sd15_{name}.safetensors")
    webui_server.look_at_model()  # it answers while its first checkpoint is being loaded, and mixes up two loads
    assert webui_server.post("/sdapi/v1/refresh-checkpoints").status == 200
    choose(webui_server, NARROW)
    yield webui_server
    choose(webui_server, CHECKPOINTS["sd15"])


@pytest.fixture
def host(narrow: WebUIServer, narrow_before: dict[str, Any]) -> Iterator[WebUIServer]:
    """That WebUI; after the test its weights, modules and next pictures have to be the same, byte for byte."""
    yield narrow
    assert look(narrow) == narrow_before


@pytest.fixture(scope="module")
def narrow_before(narrow: WebUIServer) -> dict[str, Any]:
    """Its state before the first test."""
    return look(narrow)


def look(server: WebUIServer) -> dict[str, Any]:
    small = {"width": 64, "height": 64}
    pictures = {mode: server.txt2img(mode and [{"mode": mode}], **small).encoded for mode in (None, "foreground")}
    return {"model": server.look_at_model(), "pictures": pictures}


@pytest.mark.seen("{mode}", "other extension: {name}")
@pytest.mark.parametrize(("name", "mode"), RUN, ids=lambda value: value.replace(" ", "-"))
def test_what_changes_attention_or_batch(host: WebUIServer, name: str, mode: str) -> None:
    """It has its effect with layers, too, or is refused in a sentence; afterwards pictures without it are unchanged."""
    title, gentle, strong, request = CHANGES[name]
    title = need_script(host, title)
    layers: dict[str, Any] = {"mode": mode}
    if mode == "background_to_foreground":
        layers["background_image"] = encode(Image.linear_gradient("L").resize((192, 128)).convert("RGB"))

    def ask(args: list[Any] | None) -> Answer:
        scripts = {"LayerDiffuse": {"args": [layers]}} | ({} if args is None else {title: {"args": args}})
        return host.txt2img(alwayson_scripts=scripts, **{"width": 64, "height": 64} | request)

    without = ask(None)
    if sentence := REFUSED.get((name, mode)):
        answer = ask(gentle)
        assert (answer.status, answer.body["detail"]) == (422, sentence)
    else:
        shown = [np.asarray(image).astype(int) for image in without.images]
        images = [[np.asarray(image).astype(int) for image in ask(args).images] for args in (gentle, strong)]
        count = request.get("batch_size", 1) * FRAMES[mode]
        assert [len(each) for each in (shown, *images)] == [count] * 3
        assert [each.shape[2] for each in images[0]] == [4, 3, 3][: FRAMES[mode]] * (count // FRAMES[mode])
        for one, other, plain in zip(*images, shown, strict=True):
            assert abs(one - plain).max() > 2
            assert (one != other).any(), "its setting has no effect"
    assert ask(None).encoded == without.encoded


@pytest.mark.seen("{mode}", "other extension: Ultimate SD Upscale")
@pytest.mark.parametrize("mode", ["foreground", "together"])
def test_ultimate_upscale(host: WebUIServer, mode: str) -> None:
    """It paints in tiles through masks of its own: the picture stays opaque, is that without layers, and it is said."""
    title = need_script(host, "Ultimate SD upscale", "img2img")
    start = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    args = [None, 128, 128, 8, 32, 64, 0.35, 32, 0, True, 0, False, 8, 0, 2, 2048, 2048, 1.5]
    request = {"script_name": title, "script_args": args, "denoising_strength": 0.4}
    host.img2img(start, **request)  # Forge's first one differs from all that follow
    plain = host.img2img(start, **request)
    answer = host.img2img(start, [{"mode": mode}], **request)
    (image,) = answer.images
    assert (image.mode, image.size) == (plain.images[0].mode, (192, 192))
    assert image.convert("RGBA").getextrema()[3][0] >= 254  # Forge itself rounds alpha to 254 in places
    assert abs(np.asarray(image).astype(int) - np.asarray(plain.images[0])).max() <= 1
    (note,) = answer.info["extra_generation_params"]["layerdiffusion_notes"]
    assert note.startswith("The script 'Ultimate SD upscale' paints in tiles")


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
