"""Requests to a real WebUI: every mode, and every kind of generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lib_layerdiffusion.modes import MODES
from tests.e2e.server import HIRES, Answer, encode, read

if TYPE_CHECKING:
    from tests.e2e.server import State, WebUIServer

FOREGROUND = [{"mode": "foreground"}]
SAME_PICTURE = Path(__file__).with_name("foreground.png")
ALIASES = {mode.name: mode.alias for mode in MODES if mode.family == "sd15"}


@pytest.mark.seen("any", "encode route before the first picture")
def test_encoding_before_the_first_picture(webui_server: WebUIServer, sprite: Image.Image) -> None:
    """Forge loads the checkpoint with the first picture."""
    answer = webui_server.post("/layerdiffusion/v1/encode", {"image": encode(sprite)})
    assert answer.status == 200, answer.body


@pytest.fixture(scope="module")
def sprite() -> Image.Image:
    """A half-transparent disc on an empty canvas."""
    image = Image.new("RGBA", (128, 128))
    ImageDraw.Draw(image).ellipse((24, 24, 104, 104), fill=(200, 40, 30, 180))
    return image


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """An opaque ramp."""
    rows, columns = np.mgrid[0:128, 0:128].astype(np.uint8)
    return Image.fromarray(np.dstack([2 * rows, 2 * columns, np.full_like(rows, 90)]))


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    image = Image.new("L", (128, 128))
    ImageDraw.Draw(image).rectangle((40, 40, 90, 90), fill=255)
    return image


def check(answer: Answer, modes: str, size: tuple[int, int] = (128, 128)) -> list[Image.Image]:
    """The images, after checking their number, modes (A: RGBA, -: RGB), sizes and infotexts."""
    images = answer.images
    assert [image.mode for image in images] == ["RGBA" if mode == "A" else "RGB" for mode in modes]
    assert {image.size for image in images} == {size}
    for image in images:
        assert "layerdiffusion_mode" in image.info["parameters"]
        if image.mode == "RGBA":
            assert np.ptp(np.asarray(image)[..., 3]) > 2, "the alpha is flat"
    return images


@pytest.mark.parametrize("args", [FOREGROUND, FOREGROUND[0]], ids=["list", "object"])
@pytest.mark.seen("foreground", "txt2img")
def test_foreground(webui: WebUIServer, args: Any) -> None:
    check(webui.txt2img(args), "A")


@pytest.mark.seen("foreground", "the same picture in every WebUI")
def test_same_picture_in_every_webui(before: State) -> None:
    """The stored picture is Forge's; on a processor all WebUIs draw the same noise."""
    (made,) = (np.asarray(read(text)).astype(int) for text in before.layers)
    with Image.open(SAME_PICTURE) as image:
        assert abs(made - np.asarray(image)).mean() < 2


@pytest.mark.seen("foreground", "positional arguments")
def test_positional_list(webui: WebUIServer) -> None:
    args = [True, ALIASES["foreground"], 1.0, 1.0, None, None, None, "Crop and Resize", False, "", "", ""]
    check(webui.txt2img(args), "A-")


@pytest.mark.seen("any", "switched off")
def test_switched_off(webui: WebUIServer, before: State) -> None:
    assert webui.ask([{"enabled": False}]).encoded == before.plain


@pytest.mark.seen("together", "txt2img")
def test_together(webui: WebUIServer) -> None:
    check(webui.txt2img([{"mode": "together", "background_prompt": "a meadow"}]), "A--")


@pytest.mark.seen("foreground_to_background", "txt2img")
def test_foreground_to_background(webui: WebUIServer, sprite: Image.Image) -> None:
    args = [{"mode": "foreground_to_background", "foreground_image": encode(sprite)}]
    check(webui.txt2img(args), "--")


@pytest.mark.seen("background_to_foreground", "txt2img")
def test_background_to_foreground(webui: WebUIServer, scene: Image.Image) -> None:
    args = [{"mode": "background_to_foreground", "background_image": encode(scene)}]
    check(webui.txt2img(args), "A-")


@pytest.mark.seen("foreground", "batch size x batch count")
def test_batches(webui: WebUIServer) -> None:
    images = check(webui.txt2img(FOREGROUND, batch_size=2, n_iter=2), "AAAA")
    assert len({image.tobytes() for image in images}) == 4


@pytest.mark.seen("together", "batch size x batch count")
def test_batches_of_sets(webui: WebUIServer) -> None:
    answer = webui.txt2img([{"mode": "together"}], batch_size=2, n_iter=2)
    for index, image in enumerate(check(answer, 4 * "A--")):
        layer = ("foreground", "background", "blend")[index % 3]
        assert f"layerdiffusion_layer: {layer}" in image.info["parameters"]
    assert answer.info["all_seeds"] == list(range(7, 19))


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos", "None"])
@pytest.mark.seen("foreground", "hires fix, {upscaler}")
def test_second_pass(webui: WebUIServer, upscaler: str) -> None:
    if upscaler not in webui.upscalers:
        pytest.skip("the WebUI doesn't have that upscaler")
    check(webui.txt2img(FOREGROUND, **HIRES, hr_upscaler=upscaler), "A", (192, 192))


@pytest.mark.seen("foreground", "img2img, transparent")
def test_image_to_image_from_transparency(webui: WebUIServer, sprite: Image.Image) -> None:
    transparent = check(webui.img2img(sprite, FOREGROUND, denoising_strength=0.5), "A")[0]
    grey = Image.new("RGBA", sprite.size, (128, 128, 128, 255))
    grey.alpha_composite(sprite)
    opaque = check(webui.img2img(grey.convert("RGB"), FOREGROUND, denoising_strength=0.5), "A")[0]
    assert transparent.tobytes() != opaque.tobytes()


@pytest.mark.parametrize(("area", "only_masked"), [("whole picture", False), ("only masked", True)])
@pytest.mark.seen("foreground", "inpaint, {area}")
def test_inpainting(webui: WebUIServer, sprite: Image.Image, mask: Image.Image, area: str, only_masked: bool) -> None:
    options = {"mask": encode(mask), "mask_blur": 0, "inpaint_full_res": only_masked, "inpainting_fill": 1}
    image = check(webui.img2img(sprite, FOREGROUND, denoising_strength=0.8, **options), "A")[0]
    outside = np.asarray(mask) == 0
    before, after = np.asarray(sprite).astype(int), np.asarray(image).astype(int)
    assert abs(before[..., 3] - after[..., 3])[outside].max() <= 1
    seen = outside & (before[..., 3] > 0)
    assert abs(before - after)[seen].max() <= 2
    assert (before != after)[~outside].any()


@pytest.mark.seen("foreground", "264x200, the size of a plain picture")
def test_size_between_steps(webui: WebUIServer) -> None:
    """The size of a plain picture: Forge Neo 2.26 (exo101/sd-webui-forge-neo-v3) rounds to multiples of 64."""
    asked = {"width": 264, "height": 200}
    size = webui.txt2img(**asked).images[0].size
    answer = webui.txt2img(FOREGROUND, **asked)
    check(answer, "A", size)
    assert "Size: {}x{}".format(*size) in answer.info["infotexts"][0]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([{"mode": "foreground_conv"}], "SDXL only"),
        ([{"mode": "forground"}], "foreground"),
        ([{"wieght": 1}], "weight"),
        ([{"mode": "background_to_foreground"}], "background_image"),
        ([{"mode": "background_to_foreground", "background_image": "no image"}], "background_image"),
        ([True, ALIASES["together"]], "batch"),
    ],
)
@pytest.mark.seen("any", "refusals")
def test_refusals(webui: WebUIServer, args: Any, named: str) -> None:
    answer = webui.txt2img(args)
    assert answer.status == 422
    assert named in answer.body["detail"]
    assert "\n" not in answer.body["detail"]


@pytest.mark.parametrize("override", [{}, {"samples_format": "jpg"}], ids=["default", "jpg"])
@pytest.mark.seen("foreground", "saved file")
def test_saved_files_keep_alpha(webui: WebUIServer, tmp_path: Path, override: dict[str, str]) -> None:
    unsaved = read(webui.txt2img(FOREGROUND).encoded[0])
    folder = {"outdir_txt2img_samples": str(tmp_path)}  # the WebUI reads it before the request's own settings
    before = {name: webui.get("/sdapi/v1/options")[name] for name in folder}
    assert webui.post("/sdapi/v1/options", folder).status == 200
    try:
        answer = webui.txt2img(FOREGROUND, save_images=True, override_settings=override)
    finally:
        webui.post("/sdapi/v1/options", before)
    (saved,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    with Image.open(saved) as image:
        assert image.tobytes() == unsaved.tobytes() == check(answer, "A")[0].tobytes()


@pytest.mark.seen("any", "settings unchanged")
def test_settings_are_unchanged(webui: WebUIServer) -> None:
    before = webui.get("/sdapi/v1/options")
    check(webui.txt2img(FOREGROUND, save_images=True), "A")
    assert webui.get("/sdapi/v1/options") == before
