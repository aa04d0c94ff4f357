"""The stand-in reads numbers as WebUIs do, refuses impossible ones, and obeys the settings of a request."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.webui.jobs import decode_image

pytestmark = pytest.mark.slow

SMALL = {"steps": 2, "width": 64, "height": 64}


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("layers", [None, {"views": 1}], ids=["plain", "layers"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("width", "128"), ("width", 128.0), ("steps", "2"), ("steps", 2.0), ("cfg_scale", "3"), ("batch_size", "2"),
     ("n_iter", "1"), ("seed", "5"), ("tiling", "false"), ("denoising_strength", "0.5")],
)  # fmt: skip
def test_numbers_may_be_texts(webui, name, value, layers):
    answer = webui.post("txt2img", layers, **SMALL | {name: value})
    assert answer.status_code == 200, answer.text
    same = {"width": 128, "steps": 2, "cfg_scale": 3, "batch_size": 2, "n_iter": 1, "seed": 5}
    again = webui.post("txt2img", layers, **SMALL | {name: same.get(name, {"tiling": False}.get(name, 0.5))})
    assert answer.json()["images"] == again.json()["images"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", 0, "steps must be a whole number from 1 to 1000, not 0."),
        ("steps", "x", "steps must be a whole number from 1 to 1000, not 'x'."),
        ("steps", 2.5, "steps must be a whole number from 1 to 1000, not 2.5."),
        ("batch_size", 0, "batch_size must be a whole number from 1 to 64, not 0."),
        ("n_iter", "0", "n_iter must be a whole number from 1 to 1000, not '0'."),
        ("width", 0, "width must be a whole number from 8 to 8192, not 0."),
        ("height", 10**9, "height must be a whole number from 8 to 8192, not 1000000000."),
        ("width", "9" * 5000, "width must be a whole number from 8 to 8192, not '99999999"),
        ("cfg_scale", "1e999", "cfg_scale must be a number from 0 to 100, not '1e999'."),
        ("cfg_scale", [3], "cfg_scale must be a number from 0 to 100, not [3]."),
        ("hr_upscaler", 3, "hr_upscaler must be a text, not 3."),
        ("tiling", "perhaps", "tiling must be true or false, not 'perhaps'."),
        ("styles", "sky", "styles must be a list, not 'sky'."),
        ("override_settings", [], "override_settings must be an object, not []."),
    ],
)
def test_what_can_not_be_is_refused_with_the_limits(webui, name, value, sentence):
    answer = webui.post("txt2img", **SMALL | {name: value})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(sentence)


def test_a_variation_seed_turns_the_noise(webui):
    settings = {"seed": 1, **SMALL}
    plain, own = webui.txt2img(**settings), webui.txt2img(subseed=5, subseed_strength=1.0, **settings)
    half = webui.txt2img(subseed=5, subseed_strength=0.5, **settings)
    other = webui.txt2img(**settings | {"seed": 5})
    assert np.abs(pixels(own.images[0]) - pixels(other.images[0])).max() <= 1, "at strength 1 it is the other seed"
    for image in (plain.images[0], other.images[0]):
        assert np.abs(pixels(half.images[0]) - pixels(image)).max() > 10
    params = webui.module("infotext_utils").parse_generation_parameters(half.infotexts[0])
    assert (params["Variation seed"], params["Variation seed strength"]) == ("5", "0.5")


def test_variations_keep_the_seed(webui):
    made = webui.txt2img(subseed=5, subseed_strength=0.5, seed=1, batch_size=2, **SMALL)
    assert (made.all_seeds, made.all_subseeds) == ([1, 1], [5, 6])
    assert pixels(made.images[0]).tolist() != pixels(made.images[1]).tolist()


def test_the_noise_of_another_size_lies_in_the_middle(webui):
    rng = webui.module("rng").ImageRNG
    small = rng((4, 8, 8), [3]).next()
    for shape, inside in (((4, 16, 12), np.s_[:, :, 4:12, 2:10]), ((4, 4, 8), None)):
        resized = rng(shape, [3], seed_resize_from_h=64, seed_resize_from_w=64)
        noise = resized.next()
        if inside:
            assert np.array_equal(noise[inside], small)
        else:
            assert np.array_equal(noise, small[:, :, 2:6])
        assert np.array_equal(resized.next(), second(rng, shape)), "only the first noise is resized"


def second(rng, shape):
    plain = rng(shape, [3])
    plain.next()
    return plain.next()


def test_seed_resize_has_its_effect(webui):
    plain = webui.txt2img(seed=1, width=128, height=64, steps=2)
    resized = webui.txt2img(seed=1, width=128, height=64, steps=2, seed_resize_from_w=64, seed_resize_from_h=64)
    assert np.abs(pixels(plain.images[0]) - pixels(resized.images[0])).max() > 10
    assert "Seed resize from: 64x64" in resized.infotexts[0]


def test_clip_skip_takes_an_earlier_layer(webui):
    plain = webui.post("txt2img", **SMALL).json()
    skipped = webui.post("txt2img", override_settings={"CLIP_stop_at_last_layers": 2}, **SMALL).json()
    first, second = (decode_image(answer["images"][0]) for answer in (plain, skipped))
    assert np.abs(pixels(first) - pixels(second)).max() > 2
    assert "Clip skip: 2" in json.loads(skipped["info"])["infotexts"][0]
    refused = webui.post("txt2img", override_settings={"CLIP_stop_at_last_layers": 3}, **SMALL)
    assert "Clip skip must be from 1 to 2" in refused.text


def test_the_page_checks_by_its_sliders(webui):
    import gradio as gr
    from fastapi import HTTPException

    jobs = webui.module("ui_jobs")
    fields = {"width": gr.Slider(64, 2048, 512, step=8, label="Width"), "seed": gr.Number(-1)}
    assert jobs.read_values(fields, {"width": "512", "seed": None, "other": "x"}) == {
        "width": 512,
        "seed": -1,
        "other": "x",
    }
    for value in (63, 2049, None, "wide"):
        with pytest.raises(HTTPException) as refused:
            jobs.read_values(fields, {"width": value, "seed": 1})
        assert refused.value.detail.startswith("Width must be a whole number from 64 to 2048, not ")


def test_pictures_that_are_not_saved_have_names_too(webui):
    jobs = webui.module("ui_jobs")
    made = webui.txt2img(batch_size=2, **SMALL)
    paths = jobs.name_files(made.images)
    assert [path.rpartition("/")[2] for path in paths] == ["picture-00.png", "picture-01.png"]
    assert jobs.find_files(paths) == []
