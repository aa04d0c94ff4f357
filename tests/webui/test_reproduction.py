"""What images and answers say about how they were made: the same set comes again, and nothing is kept from anyone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_layerdiffusion.layers import Layer, composite
from tests.webui.jobs import decode_image

pytestmark = pytest.mark.slow

FAST: dict[str, Any] = {"views": 1}
SIZE: dict[str, Any] = {"width": 64, "height": 64}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With several threads the rounding of a picture depends on how many are sampled at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parse(webui: Any, text: str) -> dict[str, str]:
    return webui.module("infotext_utils").parse_generation_parameters(text)


def replay(webui: Any, text: str) -> list[bytes]:
    """What an API client gets that sends nothing but an infotext (and the size of the batch, which no text has)."""
    answer = webui.request("POST", "/sdapi/v1/txt2img", json={"infotext": text, "batch_size": 1, "n_iter": 1})
    assert answer.status_code == 200, answer.text
    return [decode_image(each).tobytes() for each in answer.json()["images"]]


@pytest.mark.parametrize("given", [5, [5, 9]])
def test_every_picture_of_a_set_makes_the_set_again(families, given):
    webui = families.webui
    layers = {"mode": "together", "background_prompt": "a beach", **FAST}
    processed = webui.txt2img(layers, seed=given, batch_size=2, steps=2)
    seeds = [parse(webui, text)["Seed"] for text in processed.infotexts]
    assert seeds == (["5"] * 3 + ["8"] * 3 if given == 5 else ["5"] * 3 + ["9"] * 3)
    made = [image.tobytes() for image in processed.images]
    for index in (0, 1, 2, 4, 5):
        first = index - index % 3
        assert replay(webui, processed.infotexts[index]) == made[first : first + 3]


def test_variation_seeds_are_the_sets_too(families):
    webui = families.webui
    processed = webui.txt2img({"mode": "together", **FAST}, seed=5, subseed=20, subseed_strength=0.3, steps=2)
    assert [parse(webui, text)["Variation seed"] for text in processed.infotexts] == ["20"] * 3


def test_a_replay_adds_no_preview(webui):
    processed = webui.txt2img({"views": 1}, **SIZE)
    assert replay(webui, processed.infotexts[0]) == [processed.images[0].tobytes()]


def test_a_text_that_is_written_after_the_job_names_the_mode(families):
    """As X/Y/Z does for its grid, with the job that it made of a copy of `p`."""
    webui = families.webui
    p = webui.job("txt2img", {"mode": "together", "weight": 0.5, **FAST}, steps=2)
    cell = copy(p)
    processed = webui.run(cell)
    cell.extra_generation_params = copy(cell.extra_generation_params) | {"Script": "X/Y/Z plot"}
    text = webui.module("processed").create_infotext(cell, cell.all_prompts, cell.all_seeds, cell.all_subseeds)
    read = parse(webui, text)
    assert (read["layerdiffusion_mode"], read["layerdiffusion_weight"]) == ("together", "0.5")
    assert "layerdiffusion_layer" not in read
    assert "layerdiffusion_mode" not in p.extra_generation_params
    assert replay(webui, text) == [image.tobytes() for image in processed.images]


def test_a_second_job_with_the_same_p_says_its_own(families):
    """As Loopback does."""
    webui = families.webui
    p = webui.job("txt2img", {"mode": "together", "weight": 0.5, **FAST}, steps=2)
    webui.run(p)
    p.script_args = tuple({"mode": "foreground", **FAST} if isinstance(each, dict) else each for each in p.script_args)
    (text,) = webui.run(p).infotexts
    read = parse(webui, text)
    assert read["layerdiffusion_mode"] == "foreground"
    assert not {"layerdiffusion_weight", "layerdiffusion_layer"} & read.keys()


@pytest.mark.parametrize(("chosen", "shown"), [(None, "checker"), ("#204060", "#204060"), ("plaid", "checker")])
def test_grids_show_transparency_over_the_users_background(webui, monkeypatch, chosen, shown):
    if chosen:
        monkeypatch.setitem(webui.shared.opts.data, "layerdiffusion_grid_background", chosen)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    opaque = Image.new("RGB", (32, 32), "red")
    grid = webui.module("images").image_grid([Image.fromarray(pixels), opaque], rows=1)
    expected = composite([Layer("image", pixels, "foreground")], shown)
    assert (grid.mode, grid.size) == ("RGB", (64, 32))
    assert np.array_equal(np.asarray(grid)[:, :32], expected[..., :3])
    assert np.array_equal(np.asarray(grid)[:, 32:], np.asarray(opaque))


def test_api_clients_are_told_why_the_image_is_ordinary(webui, monkeypatch):
    monkeypatch.setitem(webui.shared.opts.data, "layerdiffusion_go_on", True)
    answer = webui.post("txt2img", {"mode": "foreground_conv", **FAST}).json()
    info = json.loads(answer["info"])
    (sentence,) = info["extra_generation_params"]["layerdiffusion_notes"]
    assert "SDXL" in sentence
    assert "layerdiffusion_mode" not in info["infotexts"][0]
    assert "notes" not in info["infotexts"][0]


def test_api_clients_and_the_page_are_told_that_an_image_is_opaque(webui, monkeypatch):
    monkeypatch.setattr(
        "lib_layerdiffusion.webui.results.Batch.judge", lambda self: iter(["It is opaque: draw one object."])
    )
    processed = webui.txt2img(FAST, **SIZE)
    assert processed.extra_generation_params["layerdiffusion_notes"] == ["It is opaque: draw one object."]
    assert processed.comments.count("It is opaque") == 1
    assert None not in json.loads(processed.js())["extra_generation_params"].values()


def test_previews_that_fail_are_told_to_the_page_and_to_clients(webui, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("lib_layerdiffusion.webui.results.deliver", fail)
    processed = webui.txt2img(FAST, **SIZE)
    assert "the disk is full" in processed.extra_generation_params["layerdiffusion_notes"][0]
    assert "the disk is full" in processed.comments
