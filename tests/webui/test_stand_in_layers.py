"""The real, unchanged script in the stand-in: transparent images from page values and API, and nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.modes import MODE_NAMES
from lib_layerdiffusion.transparent_vae import TransparentDecoder
from lib_layerdiffusion.webui import status
from tests.webui.jobs import decode_image, encode_image

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"steps": 6, "width": 128, "height": 128}
FAST = {"views": 1}


def assert_transparent(image: Image.Image) -> None:
    """Much of the image is clear, and much of it is solid."""
    assert image.mode == "RGBA"
    alpha = np.asarray(image)[..., 3]
    assert (alpha < 10).mean() > 0.2
    assert (alpha > 245).mean() > 0.2


def state_of(model: Any) -> dict[str, bytes]:
    """All weights of a model."""
    nets = {"unet": model.model.diffusion_model, "vae": model.first_stage_model}
    return {
        f"{name}.{key}": value.numpy().tobytes()
        for name, net in nets.items()
        for key, value in net.state_dict().items()
    }


def test_the_script_is_loaded_and_shown(webui):
    assert webui.script.args_to - webui.script.args_from == len(webui.script.controls)
    assert webui.script.alwayson


@pytest.mark.parametrize("name", ["Forge", "A1111"])
def test_page_values_make_a_transparent_image(webui, name, tmp_path):
    webui.act_like(name)
    page = {"enabled": True, "mode": "foreground", "outputs": ["rgba", "checker"], "views": 1}
    settings = SETTINGS | {"do_not_save_samples": False, "outpath_samples": str(tmp_path)}
    processed = webui.txt2img(is_api=False, page=page, **settings)
    assert_transparent(processed.images[0])
    assert [image.mode for image in processed.images[1:]] == ["RGB"]
    (path,) = tmp_path.iterdir()
    saved = Image.open(path)
    assert saved.tobytes() == processed.images[0].tobytes()
    params = webui.module("infotext_utils").parse_generation_parameters(saved.info["parameters"])
    assert params["layerdiffusion_mode"] == "foreground"


def test_an_api_client_gets_a_transparent_image_and_a_plain_one_is_as_before(webui):
    before = state_of(webui.model)
    plain = webui.post("txt2img", **SETTINGS).json()["images"]
    for layers in ({}, [True, "foreground"], [True]):
        answer = webui.post("txt2img", layers, **SETTINGS)
        assert answer.status_code == 200
        assert_transparent(decode_image(answer.json()["images"][0]))
    assert webui.post("txt2img", **SETTINGS).json()["images"] == plain
    assert state_of(webui.model) == before


def test_a_request_that_cannot_be_served_is_an_answer_with_a_sentence(webui):
    answer = webui.post("txt2img", {"mode": "no such mode"}, **SETTINGS)
    assert answer.status_code == 422
    assert "no such mode" in answer.json()["detail"]
    assert "images" not in answer.json()


@pytest.mark.parametrize("mode", [name for name in MODE_NAMES if name != "foreground"])
def test_other_modes_than_the_embedded_models_own_are_refused_for_that_reason(webui, mode):
    answer = webui.post("txt2img", {"mode": mode}, **SETTINGS)
    assert answer.status_code == 422
    assert "The embedded model knows only the foreground mode" in answer.json()["detail"]
    assert "The embedded model knows only the foreground mode" in status.describe(webui.extension, mode)
    rows = webui.request("GET", "/layerdiffusion/v1/modes").json()["modes"]
    assert [(row["name"], row["family"]) for row in rows if row["offered"]] == [("foreground", "sd15")]


def test_the_header_of_a_weight_file_is_read_once_for_a_generation(webui, monkeypatch):
    from lib_layerdiffusion import weights

    seen, read_header = [], weights.read_header
    monkeypatch.setattr(weights, "read_header", lambda path: seen.append(path.stem) or read_header(path))
    monkeypatch.setattr(webui.extension, "_store", None)  # as after the start
    assert_transparent(webui.txt2img(FAST, **SETTINGS).images[0])
    assert sorted(seen) == ["layer_sd15_transparent_attn", "layer_sd15_vae_transparent_decoder"]


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_alpha_survives_the_users_sample_format(webui, kind):
    webui.shared.opts.set("samples_format", kind)
    answer = webui.post("txt2img", FAST, **SETTINGS)
    assert_transparent(decode_image(answer.json()["images"][0]))
    assert webui.shared.opts.samples_format == kind


@pytest.mark.parametrize("name", ["stealth_pnginfo_option", "stealth_pnginfo_opt", "stealth_pnginfo"])
@pytest.mark.parametrize("own", [None, "RGB"], ids=["never set", "set"])
def test_stealth_infotext_is_off_as_long_as_layers_are_made(webui, monkeypatch, name, own):
    options, decode, seen = webui.shared.opts, TransparentDecoder.decode, []
    options.data_labels[name] = webui.shared.OptionInfo("Alpha")
    options.data |= {} if own is None else {name: own}

    def look(*args: Any, **named: Any) -> Any:
        seen.append(options.data[name])
        return decode(*args, **named)

    monkeypatch.setattr(TransparentDecoder, "decode", look)
    webui.txt2img(FAST, **SETTINGS)
    assert seen == [False if name == "stealth_pnginfo" else "None"]
    assert options.data.get(name) == own


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_fix_is_transparent(webui, upscaler):
    settings = {"enable_hr": True, "hr_upscaler": upscaler, "hr_scale": 1.5, "denoising_strength": 0.5}
    processed = webui.txt2img(FAST, **SETTINGS | settings | {"steps": 4})
    assert processed.images[0].size == (192, 192)
    assert_transparent(processed.images[0])


def test_image_to_image_starts_from_transparency(webui):
    start = webui.post("txt2img", FAST, **SETTINGS).json()["images"][0]
    body = SETTINGS | {"init_images": [start], "denoising_strength": 0.3}
    answer = webui.post("img2img", FAST, **body)
    image = decode_image(answer.json()["images"][0])
    assert_transparent(image)
    alphas = [np.asarray(each)[..., 3].astype(int) for each in (image, decode_image(start))]
    assert np.abs(alphas[0] - alphas[1]).mean() < 25


def test_inpainting_only_the_mask_keeps_the_rest(webui):
    start = decode_image(webui.post("txt2img", FAST, **SETTINGS).json()["images"][0])
    mask = Image.new("L", start.size)
    mask.paste(255, (64, 40, 100, 100))
    images = {"init_images": [encode_image(start)], "mask": encode_image(mask)}
    body = SETTINGS | images | {"inpaint_full_res": False, "mask_blur": 0, "denoising_strength": 0.9, "prompt": "pizza"}
    image = decode_image(webui.post("img2img", FAST, **body).json()["images"][0])
    assert_transparent(image)
    left = [np.asarray(each).astype(int)[:, :56] for each in (image, start)]
    assert np.abs(left[0][..., 3] - left[1][..., 3]).max() <= 1
