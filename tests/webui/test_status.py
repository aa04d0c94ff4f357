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
from lib_layerdiffusion.weights.header import describe_bytes
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


# -- scenes

SCENE = {
    "background": "",
    "foregrounds": "",
    "background_image": None,
    "foreground_image": None,
    "first": "auto",
    "controlnet_units": "",
}


def scene_lines(extension, **options) -> list[tuple[str, str]]:
    return lines(status.describe_scene(extension, SCENE | options))


def make_offline(folder) -> FakeExtension:
    return FakeExtension(WeightStore([folder], folder, offline=True))


def test_a_scene_names_its_passes_and_the_size_of_the_download(tmp_path):
    extension = make_extension(tmp_path)
    joint, added, decoder = (
        WEIGHTS[f"layer_sd15_{name}"].size for name in ("joint", "bg2fg", "vae_transparent_decoder")
    )
    assert scene_lines(extension) == [
        ("good", "Checkpoint SD1.5 (Forge)"),
        ("good", "Passes 1 foreground, background, blend with foreground"),
        ("note", f"Download before the first run {describe_bytes(joint + decoder)}"),
    ], "before anything is named"
    assert scene_lines(extension, foregrounds="an apple\na glass")[1:] == [
        ("good", "Passes 1 background; 2 an apple, blend with an apple; 3 a glass, blend with a glass"),
        ("note", f"Download before the first run {describe_bytes(added + decoder)}"),
    ]
    extension.family = "sdxl"
    assert scene_lines(extension, foregrounds="an apple")[:2] == [
        ("good", "Checkpoint SDXL (Forge)"),
        ("good", "Passes 1 background; 2 blend with an apple; 3 an apple"),
    ]
    assert list(tmp_path.iterdir()) == [], "nothing is downloaded to find out"


def test_a_scene_says_which_file_is_missing_and_what_else_can_not_be_made_first(tmp_path):
    html = status.describe_scene(make_offline(tmp_path), SCENE)
    found = lines(html)
    assert [kind for kind, _ in found] == ["good", "good", "bad", "bad", "note", "note"]
    assert "layer_sd15_joint" in found[2][1]
    assert "layer_sd15_vae_transparent_decoder" in found[3][1]
    assert [text for _, text in found[4:]] == [
        "Made first Background: file missing",
        "Made first Foreground: file missing",
    ]
    titles = re.findall('title="([^"]*)"', html)
    assert ["layer_sd15_bg2fg" in titles[0], "layer_sd15_transparent_attn" in titles[1]] == [True, True]


def test_only_what_can_not_run_is_named_of_what_else_could_be_made_first(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "layer_sd15_fg2bg.safetensors")
    found = scene_lines(make_extension(tmp_path))
    assert found[3:] == [("note", "Made first Foreground: file damaged")]
    found = scene_lines(make_extension(tmp_path), first="foreground")
    assert [kind for kind, _ in found[2:]] == ["note", "bad"]
    assert "fg2bg.safetensors" in found[3][1]


def test_a_scene_on_a_checkpoint_that_a_file_does_not_fit(tmp_path):
    extension = make_extension(tmp_path)
    host = SimpleNamespace(family="sd15", name="Forge", why_not=lambda mode, store: mode == "together" and "Too wide.")
    extension.current_host = lambda: host
    assert scene_lines(extension)[2:] == [("bad", "Layer mode Too wide.")], "whose files aren't asked for"
    assert scene_lines(extension, first="background")[-1] == (
        "note",
        "Made first Automatic: not for this checkpoint",
    )


def test_a_scene_on_another_family_says_what_to_load(tmp_path):
    assert scene_lines(make_extension(tmp_path, family="flux")) == [
        ("good", "Checkpoint flux (Forge)"),
        ("bad", "There are no LayerDiffusion weights for flux models: load an SD1.5 or SDXL checkpoint."),
    ]


def test_a_scene_in_an_unknown_host_says_so_and_names_the_files_of_each_family(tmp_path):
    unknown = Refusal("LayerDiffusion doesn't know this WebUI yet.")
    found = scene_lines(make_extension(tmp_path, family=unknown))
    assert found[0] == ("note", "Checkpoint LayerDiffusion doesn't know this WebUI yet.")
    assert [text.split(":")[0] for _, text in found[1:]] == [
        "Passes SD1.5",
        "Download before the first run SD1.5",
        "Passes SDXL",
        "Download before the first run SDXL",
    ]


def test_options_that_do_not_fit_together_are_said_before_the_scene_is_made(tmp_path):
    found = scene_lines(make_extension(tmp_path), controlnet_units="0; -")
    assert found[1][0] == "bad"
    assert found[1][1].startswith("controlnet_units is for 2 passes and the scene has 1 pass")


@pytest.mark.parametrize("error", [RuntimeError("a <b> gone"), AttributeError("forge_objects")])
def test_whatever_goes_wrong_with_a_scene_becomes_text(tmp_path, error):
    assert scene_lines(make_extension(tmp_path, family=error)) == [("bad", str(error))]


def test_the_last_run_of_a_pass_is_shown_with_scenes(tmp_path):
    extension = make_extension(tmp_path, last_run=ended("together", "ok"))
    assert scene_lines(extension)[-1] == ("good", "Last run 09:05, together, weight 1: ok")
    assert "Last run" not in scene_lines(extension, first="background")[-1][1]
