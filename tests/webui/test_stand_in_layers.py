"""The real, unchanged script in the stand-in: transparent images from page values and API, and nothing left behind."""

from __future__ import annotations

import base64
import copy
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_layerdiffusion import outputs
from lib_layerdiffusion.layers import Layer, composite, fit
from lib_layerdiffusion.modes import MODE_NAMES, MODES
from lib_layerdiffusion.refusal import Refusal
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
    path, preview = sorted(tmp_path.iterdir(), key=lambda each: len(each.name))
    assert preview.name == f"{path.stem}-checker.png"
    saved = Image.open(path)
    assert saved.tobytes() == processed.images[0].tobytes()
    params = webui.module("infotext_utils").parse_generation_parameters(saved.info["parameters"])
    assert params["layerdiffusion_mode"] == "foreground"


@pytest.mark.parametrize("name", ["Forge", "A1111"])
def test_a_file_that_fails_is_told_on_the_page_and_in_the_answer(webui, name, tmp_path, monkeypatch, caplog):
    def fail(_stack, _path):
        raise Refusal("The disk is full: free some space.")

    webui.act_like(name)
    monkeypatch.setattr(outputs, "WRITERS", outputs.WRITERS | {"psd": fail})
    settings = SETTINGS | {"do_not_save_samples": False, "outpath_samples": str(tmp_path)}
    processed = webui.txt2img({"outputs": ["rgba", "checker", "psd", "ora"], "views": 1}, **settings)
    assert [image.mode for image in processed.images] == ["RGBA", "RGB"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} >= {".png", ".ora"}
    sentence = "The disk is full: free some space."
    assert sentence in processed.comments
    assert json.loads(processed.js())["extra_generation_params"]["layerdiffusion_notes"] == [sentence]
    assert sentence in caplog.text
    assert webui.extension.last_run.outcome == sentence


def test_an_api_client_gets_a_transparent_image_and_a_plain_one_is_as_before(webui):
    before = state_of(webui.model)
    plain = webui.post("txt2img", **SETTINGS).json()["images"]
    for layers in ({}, [True, "foreground"], [True]):
        answer = webui.post("txt2img", layers, **SETTINGS)
        assert answer.status_code == 200
        assert_transparent(decode_image(answer.json()["images"][0]))
    assert webui.post("txt2img", **SETTINGS).json()["images"] == plain
    assert state_of(webui.model) == before


def test_previews_over_colours_and_an_image(webui):
    room = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    names = ["over_black", "over_white", "over_image"]
    asked = FAST | {"outputs": ["rgba", *names], "preview_image": encode_image(Image.fromarray(room))}
    answer = webui.post("txt2img", asked | {"resize_mode": "stretch"}, **SETTINGS | {"width": 126, "height": 120})
    rgba, *previews = [np.asarray(decode_image(image)) for image in answer.json()["images"]]
    behind = fit(room, (126, 120), "stretch")
    for preview, background in zip(previews, ("black", "white", behind), strict=True):
        wanted = composite([Layer("layer", rgba, "foreground")], background).astype(int)
        assert np.abs(preview - wanted).max() <= (1 if background is behind else 0)  # an opaque image has alpha here
    text = json.loads(answer.json()["info"])["infotexts"][-1]
    params = webui.module("infotext_utils").parse_generation_parameters(text)
    assert params["layerdiffusion_outputs"] == "rgba+over_black+over_white+over_image"
    assert params["layerdiffusion_preview_image"] == "True"
    assert params["layerdiffusion_preview"] == "over_image"
    refused = webui.post("txt2img", {"outputs": ["over_image"]}, **SETTINGS)
    assert refused.status_code == 422
    assert "give preview_image, or leave over_image out of outputs" in refused.json()["detail"]
    broken = webui.post("txt2img", asked | {"preview_image": "bm90IGFuIGltYWdl"}, **SETTINGS)
    assert broken.status_code == 422
    assert "preview_image" in broken.json()["detail"]


def test_a_request_that_cannot_be_served_is_an_answer_with_a_sentence(webui):
    answer = webui.post("txt2img", {"mode": "no such mode"}, **SETTINGS)
    assert answer.status_code == 422
    assert "no such mode" in answer.json()["detail"]
    assert "images" not in answer.json()


OF_SD15 = [mode.name for mode in MODES if mode.family == "sd15"]


@pytest.mark.parametrize("mode", [name for name in MODE_NAMES if name not in OF_SD15])
def test_modes_of_another_family_are_refused_for_that_reason(webui, mode):
    answer = webui.post("txt2img", {"mode": mode}, **SETTINGS)
    assert answer.status_code == 422
    assert "SDXL" in answer.json()["detail"]
    assert "SDXL" in status.describe(webui.extension, mode)


def test_the_embedded_model_makes_layers_together(webui):
    rows = webui.request("GET", "/layerdiffusion/v1/modes").json()["modes"]
    assert [(row["name"], row["family"]) for row in rows if row["offered"]] == [(name, "sd15") for name in OF_SD15]
    layers = {"mode": "together", "foreground_prompt": "panda", "background_prompt": "meadow", "views": 1}
    images = [decode_image(text) for text in webui.post("txt2img", layers, **SETTINGS).json()["images"]]
    assert [image.mode for image in images] == ["RGBA", "RGB", "RGB"]


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


@pytest.mark.parametrize("host", ["A1111", "Forge"])
@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.parametrize("size", [(128, 128), (124, 128)])
def test_a_picture_of_the_gallery_is_enlarged_with_its_transparency(webui, host, upscaler, size):
    """What the button does that makes only the second pass of hires fix."""
    webui.act_like(host)
    first = webui.txt2img(FAST, **SETTINGS | {"width": size[0]}).images[0]
    hires = {"enable_hr": True, "hr_upscaler": upscaler, "hr_scale": 1.5, "denoising_strength": 0.3}
    p = webui.job("txt2img", FAST, firstpass_image=first, **SETTINGS | hires)
    p.txt2img_upscale = True
    made = webui.run(p).images[0]
    assert made.size == (192, 192)
    assert_transparent(made)
    small = np.asarray(made.resize(first.size))[..., 3].astype(int)
    assert np.abs(small - np.asarray(first)[..., 3]).mean() < 25


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_a_picture_of_the_gallery_is_enlarged_by_another_checkpoint(webui, embedded_pipeline, monkeypatch, upscaler):
    """Pictures are enlarged before they are encoded, which the other checkpoint's VAE does then."""
    first = webui.txt2img(FAST, **SETTINGS).images[0]
    hires = {"enable_hr": True, "hr_upscaler": upscaler, "hr_scale": 1.5, "denoising_strength": 0.3}
    p = webui.job("txt2img", FAST, firstpass_image=first, **SETTINGS | hires)
    take, other = p._take_first_pass, copy.deepcopy(embedded_pipeline)

    def take_and_load() -> Any:
        taken = take()
        webui.load(other)
        return taken

    monkeypatch.setattr(p, "_take_first_pass", take_and_load)
    made = webui.run(p).images[0]
    assert webui.model.pipe is other
    assert_transparent(made)
    small = np.asarray(made.resize(first.size))[..., 3].astype(int)
    assert np.abs(small - np.asarray(first)[..., 3]).mean() < 25


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_with_the_panel_off_a_transparent_picture_is_enlarged_on_the_webuis_background(webui, upscaler):
    webui.shared.opts.data["img2img_background_color"] = "#204060"
    hires = {"enable_hr": True, "hr_upscaler": upscaler, "hr_scale": 1.5, "denoising_strength": 0.3}
    first = Image.new("RGBA", (128, 128))
    first.paste((200, 40, 40, 255), (40, 40, 90, 90))
    flat = Image.new("RGB", (128, 128), "#204060")
    flat.paste(first, mask=first)
    pictures = []
    for each in (first, flat):
        torch.manual_seed(0)  # the VAE's encoding draws from its posterior
        pictures += webui.run(webui.job("txt2img", firstpass_image=each, **SETTINGS | hires)).images
    assert [(each.mode, each.size) for each in pictures] == [("RGB", (192, 192))] * 2
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_set_cannot_be_enlarged_from_one_picture(families):
    p = families.webui.job("txt2img", {"mode": "together"}, enable_hr=True, hr_scale=1.5, firstpass_image=noise())
    with pytest.raises(Exception, match=r"this button enlarges one: tick Hires\. fix and generate the set again"):
        families.webui.run(p)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8))


@pytest.mark.parametrize("kind", ["PNG-8, one index", "PNG-8, table", "GIF", "RGB, one colour"])
def test_image_to_image_starts_from_every_kind_of_transparency(webui, kind):
    inside = np.hypot(*(np.mgrid[:128, :128] - 60)) < 40
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[:], rgba[inside] = (0, 255, 0, 0), (200, 40, 40, 255)
    indexed = Image.fromarray(inside.astype(np.uint8), "P")
    indexed.putpalette([0, 255, 0, 200, 40, 40])
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "PNG-8, one index": (indexed, {"format": "PNG", "transparency": 0}),
        "PNG-8, table": (indexed, {"format": "PNG", "transparency": bytes([0, 255])}),
        "GIF": (indexed, {"format": "GIF", "transparency": 0}),
        "RGB, one colour": (Image.fromarray(rgba[..., :3]), {"format": "PNG", "transparency": (0, 255, 0)}),
    }
    image, settings = saved[kind]
    image.save(buffer := io.BytesIO(), **settings)
    starts = [base64.b64encode(buffer.getvalue()).decode(), encode_image(Image.fromarray(rgba))]
    body = SETTINGS | {"denoising_strength": 0.3}
    answers = [webui.post("img2img", FAST, **body, init_images=[start]).json() for start in starts]
    made = [decode_image(answer["images"][0]) for answer in answers]
    assert made[0].tobytes() == made[1].tobytes()


def test_around_a_motif_alpha_is_zero(webui):
    """Also in the corners, so that the box of all that isn't empty is the motif's."""
    made = webui.txt2img({"views": 1}, prompt=["frog", "pizza"], batch_size=2, **SETTINGS | {"seed": 1, "steps": 20})
    for image in made.images:
        alpha = image.getchannel("A")
        assert [alpha.getpixel((x, y)) for x in (0, 127) for y in (0, 127)] == [0, 0, 0, 0]
        left, top, right, bottom = alpha.getbbox()
        assert (right - left) * (bottom - top) < 0.9 * 128**2
