"""The routes under /sdapi/v1 as clients of WebUIs use them: by hand, with curl, and with a public client library."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.webui.jobs import decode_image, encode_image

pytestmark = pytest.mark.slow

SMALL = {"steps": 4, "width": 64, "height": 64}


def test_lists(webui):
    scripts = webui.request("GET", "/sdapi/v1/scripts").json()
    assert "layerdiffuse" in scripts["txt2img"]
    assert "layerdiffuse" in scripts["img2img"]
    info = webui.request("GET", "/sdapi/v1/script-info").json()
    assert {each["is_img2img"] for each in info if each["name"] == "layerdiffuse"} == {True, False}
    labels = [arg["label"] for arg in info[0]["args"]]
    assert "Weight" in labels
    assert [each["model_name"] for each in webui.request("GET", "/sdapi/v1/sd-models").json()] == ["embedded"]
    assert "DDIM" in [each["name"] for each in webui.request("GET", "/sdapi/v1/samplers").json()]
    assert webui.request("GET", "/sdapi/v1/progress").json()["progress"] == 0
    for name in ("upscalers", "latent-upscale-modes", "cmd-flags", "prompt-styles", "loras", "schedulers"):
        assert webui.request("GET", f"/sdapi/v1/{name}").status_code == 200


def test_settings(webui):
    assert webui.request("GET", "/sdapi/v1/options").json()["samples_format"] == "png"
    assert webui.request("POST", "/sdapi/v1/options", json={"samples_format": "jpg"}).status_code == 200
    assert webui.shared.opts.samples_format == "jpg"
    answer = webui.post("txt2img", **SMALL).json()
    assert decode_image(answer["images"][0]).format == "JPEG"


def test_an_answer_tells_what_was_made(webui):
    answer = webui.post("txt2img", batch_size=2, negative_prompt="pizza", unknown="field", **SMALL).json()
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [1, 2]
    assert len(answer["images"]) == len(info["infotexts"]) == 2
    assert answer["parameters"]["batch_size"] == 2
    text = decode_image(answer["images"][1]).info["parameters"]
    assert text == info["infotexts"][1]
    found = webui.request("POST", "/sdapi/v1/png-info", json={"image": answer["images"][1]}).json()
    assert found["info"] == text
    assert found["parameters"]["Negative prompt"] == "pizza"


@pytest.mark.parametrize("args", [{"views": 1}, [{"views": 1}], [True, "foreground"]], ids=["object", "one", "list"])
@pytest.mark.parametrize("name", ["LayerDiffuse", "LayerDiffusion", "layerdiffusion"])
def test_the_script_has_two_names(webui, name, args):
    scripts = {name: {"args": args}}
    answer = webui.post("txt2img", alwayson_scripts=scripts, **SMALL)
    assert answer.status_code == 200, answer.text
    assert decode_image(answer.json()["images"][0]).mode == "RGBA"
    assert "layerdiffusion_mode: foreground" in answer.json()["info"]


def test_the_script_under_both_names_is_refused(webui):
    scripts = {name: {"args": {"views": 1}} for name in ("LayerDiffuse", "LayerDiffusion")}
    answer = webui.post("txt2img", alwayson_scripts=scripts, **SMALL)
    assert answer.status_code == 422
    assert "LayerDiffuse and LayerDiffusion, which are the same script" in answer.json()["detail"]


def test_other_scripts_names_are_left_alone(webui):
    answer = webui.post("txt2img", alwayson_scripts={"LayerDiffusions": {"args": {}}}, **SMALL)
    assert answer.json()["detail"] == "always on script LayerDiffusions not found"


def test_an_infotext_fills_in_what_a_request_leaves_out(webui):
    first = webui.post("txt2img", {"weight": 0.5, "views": 1}, seed=7, **SMALL).json()
    (text,) = json.loads(first["info"])["infotexts"]
    layers = {"alwayson_scripts": {"LayerDiffuse": {"args": [True]}}}
    again = webui.request("POST", "/sdapi/v1/txt2img", json={"infotext": text, **layers}).json()
    assert json.loads(again["info"])["infotexts"][0].startswith("red apple\nSteps: 4")
    assert "layerdiffusion_weight: 0.5" in again["info"]
    assert "Seed: 7" in again["info"]


def test_what_is_wrong_is_said(webui):
    assert webui.request("POST", "/sdapi/v1/img2img", json={"prompt": "frog"}).status_code == 404
    assert webui.post("txt2img", sampler_name="none such").status_code == 400
    assert webui.post("txt2img", alwayson_scripts={"none such": {"args": []}}).status_code == 422
    assert webui.post("img2img", init_images=["no image"]).status_code == 500


def test_an_exception_in_the_job_is_the_answer(webui):
    answer = webui.post("txt2img", enable_hr=True, hr_upscaler="none such", **SMALL)
    assert answer.status_code == 500
    assert "none such" in answer.json()["errors"]
    assert webui.shared.state.job_count == 0


def test_words_that_the_embedded_model_does_not_know_are_told(webui):
    info = json.loads(webui.post("txt2img", prompt="frog (zebra:1.2) Frog", **SMALL).json()["info"])
    assert info["extra_generation_params"]["Unknown words"] == "zebra"
    assert "Unknown words: zebra" in info["infotexts"][0]
    known = json.loads(webui.post("txt2img", prompt="frog", **SMALL).json()["info"])
    assert "Unknown words" not in known["infotexts"][0]


def test_interrupt_and_skip_are_told(webui):
    assert webui.request("POST", "/sdapi/v1/interrupt").json() == {}
    assert webui.shared.state.interrupted
    assert webui.request("POST", "/sdapi/v1/skip").status_code == 200
    assert webui.shared.state.skipped


def test_a_password_guards_all_routes(webui):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    webui.shared.cmd_opts.api_auth = "me:secret:word"
    app = FastAPI()
    try:
        webui.module("api.api").Api(app, webui.module("call_queue").queue_lock)
    finally:
        webui.shared.cmd_opts.api_auth = None
    client = TestClient(app)
    assert client.get("/sdapi/v1/options").status_code == 401
    assert client.get("/sdapi/v1/options", auth=("me", "guess")).status_code == 401
    assert client.get("/sdapi/v1/options", auth=("me", "secret:word")).status_code == 200


def test_the_public_client_library(webui, server):
    webuiapi = pytest.importorskip("webuiapi")
    client = webuiapi.WebUIApi(baseurl=f"{server}/sdapi/v1", sampler="Euler", steps=6)
    assert client.util_get_current_model() == "embedded"
    layers = {"LayerDiffuse": {"args": [{"mode": "foreground"}]}}
    settings = {"width": 128, "height": 128, "cfg_scale": 3, "seed": 1, "alwayson_scripts": layers}
    made = client.txt2img(prompt="red apple", **settings)
    assert made.image.mode == "RGBA"
    assert made.info["all_seeds"] == [1]
    assert np.asarray(made.image)[..., 3].min() < 10
    again = client.img2img(images=[made.image], prompt="red apple", denoising_strength=0.4, **settings)
    assert again.image.mode == "RGBA"
    assert client.png_info(made.image).info.startswith("red apple")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(webui, server, tmp_path):
    body = {"prompt": "star", "seed": 1, **SMALL, "alwayson_scripts": {"LayerDiffuse": {"args": {"views": 1}}}}
    (tmp_path / "body.json").write_text(json.dumps(body))
    words = ["curl", "-sS", "-H", "Content-Type: application/json", "-d", f"@{tmp_path}/body.json"]
    done = subprocess.run([*words, f"{server}/sdapi/v1/txt2img"], capture_output=True, check=True, timeout=120)
    assert decode_image(json.loads(done.stdout)["images"][0]).mode == "RGBA"


def test_the_page_is_served(webui, server):
    import urllib.request

    with urllib.request.urlopen(f"{server}/", timeout=30) as answer:
        assert "gradio" in answer.read().decode()


def test_images_of_all_kinds_are_read(webui):
    image = Image.new("RGBA", (64, 64), (200, 20, 20, 255))
    for text in (encode_image(image), f"data:image/png;base64,{encode_image(image.convert('RGB'))}"):
        assert webui.post("img2img", init_images=[text], **SMALL).status_code == 200
