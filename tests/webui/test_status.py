"""The status line: checkpoint, files or their download, the last run, and that nothing makes it raise."""

from __future__ import annotations

import re
from datetime import datetime
from html import unescape
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui import status
from lib_layerdiffusion.weights import WEIGHTS, WeightStore
from tests.webui.panel_host import NO_MODEL, FakeExtension, make_extension


def lines(html: str) -> list[tuple[str, str]]:
    """(class, text) of each line."""
    found = re.findall(r'<div class="layerdiffusion-(good|note|bad)">(.*?)</div>', html)
    return [(kind, unescape(re.sub(r"<[^>]+>", "", text))) for kind, text in found]


def test_it_names_family_host_and_the_size_of_the_download(tmp_path):
    files = "layer_sd15_transparent_attn 350 MB, layer_sd15_vae_transparent_decoder 208 MB"
    assert lines(status.describe(make_extension(tmp_path), "foreground")) == [
        ("good", "Checkpoint SD1.5 (Forge)"),
        ("note", f"Download before the first run 558 MB ({files})"),
    ]
    assert list(tmp_path.iterdir()) == [], "nothing is downloaded to find out"


def test_image_to_image_needs_the_encoder_too(tmp_path):
    extension = make_extension(tmp_path, family="sdxl")
    assert "vae_transparent_encoder 2.4 MB" in status.describe(extension, "foreground", is_img2img=True)
    assert "encoder" not in status.describe(extension, "foreground", is_img2img=False)


def test_files_that_are_there_are_not_downloaded(tmp_path, monkeypatch):
    extension = make_extension(tmp_path, family="sdxl")
    row = SimpleNamespace(state="found", name="layer_xl_fg2ble", size=1, cure="")
    monkeypatch.setattr(extension.weights, "check", lambda names: [row for _ in names])
    assert lines(status.describe(extension, "foreground_to_blend"))[1:] == [("good", "Weight files present")]


def test_a_damaged_file_is_named_with_its_cure(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "layer_xl_fg2ble.safetensors")
    ((kind, text),) = lines(status.describe(make_extension(tmp_path, family="sdxl"), "foreground_to_blend"))[1:]
    assert kind == "bad"
    assert "layer_xl_fg2ble.safetensors" in text
    assert "delete it" in text


def test_offline_it_says_which_file_goes_where(tmp_path):
    extension = FakeExtension(WeightStore([tmp_path], tmp_path, offline=True))
    found = lines(status.describe(extension, "foreground_to_background"))[1:]
    assert [kind for kind, _ in found] == ["bad"]
    assert f"download {WEIGHTS['layer_sd15_fg2bg'].url()}" in found[0][1]
    assert f"put it into {tmp_path}" in found[0][1]


@pytest.mark.parametrize(
    ("mode", "family", "sentence"),
    [
        ("together", "sdxl", "Layer mode Foreground and background together needs an SD1.5 checkpoint."),
        ("foreground_conv", "sd15", "Layer mode Transparent foreground (convolution file) needs an SDXL checkpoint."),
        ("foreground", "Flux", "Layer mode Transparent foreground needs an SD1.5 or SDXL checkpoint."),
    ],
)
def test_a_mode_of_another_family_says_what_it_needs(tmp_path, mode, family, sentence):
    found = lines(status.describe(make_extension(tmp_path, family=family), mode))
    assert found[1:] == [("bad", sentence)]
    assert family in found[0][1] or found[0][0] == "good"


def test_without_a_model_the_sentence_and_the_files_of_each_family_appear(tmp_path):
    found = lines(status.describe(make_extension(tmp_path, family=NO_MODEL), "foreground"))
    assert found[0] == ("note", f"Checkpoint {NO_MODEL}")
    assert [text.split()[5] for _, text in found[1:]] == ["SD1.5:", "SDXL:"]


@pytest.mark.parametrize(
    ("outcome", "kind"), [("ok", "good"), ("ok, alpha 0.1 to 1", "good"), ("No image: give <one>.", "bad")]
)
def test_the_last_runs_outcome_is_shown(tmp_path, outcome, kind):
    last = SimpleNamespace(when=datetime(2025, 1, 2, 9, 5), host="Forge", plan="together, weight 1", outcome=outcome)
    html = status.describe(make_extension(tmp_path, last_run=last), "foreground")
    assert lines(html)[-1] == (kind, f"Last run 09:05, together, weight 1: {outcome}")
    assert "<one>" not in html, "it is text, not HTML"


@pytest.mark.parametrize("error", [RuntimeError("a <b> gone"), AttributeError("forge_objects"), KeyError("x")])
def test_whatever_goes_wrong_becomes_text(tmp_path, error):
    ((kind, text),) = lines(status.describe(make_extension(tmp_path, family=error), "foreground"))
    assert (kind, text) == ("bad", str(error))


def test_an_unknown_mode_becomes_text(tmp_path):
    assert "sideways" in lines(status.describe(make_extension(tmp_path), "sideways"))[0][1]


def test_the_hint_is_one_line():
    assert lines(status.hint()) == [("note", status.HINT)]


def test_the_family_is_none_when_it_cannot_be_told(tmp_path):
    assert status.find_family(make_extension(tmp_path, family="sdxl")) == "sdxl"
    assert status.find_family(make_extension(tmp_path, family=Refusal("No checkpoint."))) is None
    assert status.find_family(make_extension(tmp_path, family=AttributeError("forge_objects"))) is None
