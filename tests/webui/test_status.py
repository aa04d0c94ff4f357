"""The status line: checkpoint, files or their download, the last run, and that nothing makes it raise."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html import unescape
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lib_layerdiffusion.modes import MODE_NAMES, MODES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui import status
from lib_layerdiffusion.webui.labels import from_label
from lib_layerdiffusion.weights import WEIGHTS, WeightStore
from tests.webui.panel_host import NO_MODEL, FakeExtension, make_extension


def lines(html: str) -> list[tuple[str, str]]:
    """(class, text) of each line."""
    found = re.findall(r'<div class="layerdiffusion-(good|note|bad)"[^>]*>(.*?)</div>', html)
    return [(kind, unescape(re.sub(r"<[^>]+>", "", text))) for kind, text in found]


def test_it_names_family_host_and_the_size_of_the_download(tmp_path):
    files = "layer_sd15_transparent_attn 350 MB, layer_sd15_vae_transparent_decoder 208 MB"
    html = status.describe(make_extension(tmp_path), "foreground")
    assert lines(html) == [
        ("good", "Checkpoint SD1.5 (Forge)"),
        ("note", "Download before the first run 558 MB"),
    ]
    assert f'title="{files}"' in html, "where the mouse rests"
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
    html = status.describe(make_extension(tmp_path, last_run=ended("together", outcome)), "together")
    assert lines(html)[-1] == (kind, f"Last run 09:05, together, weight 1: {outcome}")
    assert "<one>" not in html, "it is text, not HTML"


def test_the_last_run_of_another_mode_is_not_shown(tmp_path):
    extension = make_extension(tmp_path, last_run=ended("background_to_foreground", "No image: give one."))
    assert "Last run" not in status.describe(extension, "foreground")
    assert "Last run" in status.describe(extension, "background_to_foreground")


def ended(mode: str, outcome: str) -> SimpleNamespace:
    when = datetime(2025, 1, 2, 9, 5)
    return SimpleNamespace(when=when, mode=mode, host="Forge", plan=f"{mode}, weight 1", outcome=outcome)


# -- modes that can't run


def short_reasons(extension) -> dict[str, str]:
    """What the page shows in its list of modes, by name."""
    (data,) = re.findall(r'data-unavailable="([^"]*)"', status.describe(extension, "foreground"))
    return {from_label("mode", label): short for label, (short, _) in json.loads(unescape(data)).items()}


@pytest.mark.parametrize(("family", "other"), [("sd15", "SDXL"), ("sdxl", "SD1.5")])
def test_modes_of_the_other_family_are_marked_before_they_are_chosen(tmp_path, family, other):
    own = {mode.name for mode in MODES if mode.family == family}
    assert short_reasons(make_extension(tmp_path, family=family)) == {
        name: f"needs {other}" for name in MODE_NAMES if name not in own
    }


def test_modes_without_their_file_are_marked_where_it_can_not_be_downloaded(tmp_path):
    reasons = short_reasons(FakeExtension(WeightStore([tmp_path], tmp_path, offline=True)))
    assert {name for name, short in reasons.items() if short == "file missing"} == {
        mode.name for mode in MODES if mode.family == "sd15"
    }
    assert set(reasons) == set(MODE_NAMES)
    assert "file missing" not in short_reasons(make_extension(tmp_path)).values(), "it is downloaded"


def test_a_mode_with_a_damaged_file_is_marked(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "layer_sd15_fg2bg.safetensors")
    assert short_reasons(make_extension(tmp_path))["foreground_to_background"] == "file damaged"


def test_modes_that_do_not_fit_the_checkpoint_are_marked(tmp_path):
    extension = make_extension(tmp_path)
    host = SimpleNamespace(family="sd15", name="Forge", why_not=lambda mode, store: mode == "together" and "Too wide.")
    extension.current_host = lambda: host
    assert short_reasons(extension)["together"] == "not for this checkpoint"
    assert ("bad", "Layer mode Too wide.") in lines(status.describe(extension, "together"))


def test_without_a_model_every_mode_may_be_chosen(tmp_path):
    assert short_reasons(make_extension(tmp_path, family=NO_MODEL)) == {}


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
