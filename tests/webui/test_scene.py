"""Scenes in the stand-in, by page values and by HTTP: the library's bytes, files, infotexts, and early ends."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion import layer_scene
from lib_layerdiffusion.hosts.samplers import make_scheduler
from lib_layerdiffusion.scene import KEY, SCENE_FIELDS, TITLE, read
from lib_layerdiffusion.scene_run import MadeScene
from tests.core.test_exports import read_ora, read_psd
from tests.webui.families import Families, given, modes_of
from tests.webui.jobs import decode_image

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"steps": 2, "seed": 5, "prompt": "oil", "sampler_name": "DDIM", "cfg_scale": 3.0}
TWO: dict[str, Any] = {"background": "a table", "foregrounds": ["an apple", "a glass"], "views": 1}
ONE: dict[str, Any] = {"background": "a table", "foregrounds": ["an apple"], "views": 1}


def ask(families: Families, *args: Any, **body: Any) -> Any:
    return families.ask(script_name=TITLE, script_args=list(args), **SETTINGS | body)


def images_of(answer: Any) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text[:500]
    return [decode_image(image) for image in answer.json()["images"]]


def notes_of(answer: Any) -> list[str]:
    return json.loads(answer.json()["info"])["extra_generation_params"].get("layerdiffusion_notes", [])


def end_in_pass(families: Families, monkeypatch: pytest.MonkeyPatch, number: int, end: Any) -> None:
    """Call `end` when the sampling of that pass begins."""
    samplers = families.webui.module("sd_samplers")
    original, passes = samplers.Sampler.sample, []

    def sample(self: Any, *args: Any, **named: Any) -> Any:
        passes.append(self)
        if len(passes) == number:
            end()
        return original(self, *args, **named)

    monkeypatch.setattr(samplers.Sampler, "sample", sample)


def digests(images: Any) -> list[str]:
    """Short, since a failing comparison of many bytes takes minutes to be shown."""
    return [hashlib.sha256(image.tobytes()).hexdigest()[:12] for image in images]


def make_in_library(families: Families, family: str, scene: dict[str, Any]) -> MadeScene:
    """The same scene by the library, with the sampler that SETTINGS name."""
    pipe, webui = families.pipes[family], families.webui
    own, pipe.scheduler = pipe.scheduler, make_scheduler(pipe.scheduler, SETTINGS["sampler_name"])
    settings: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "cfg": 3.0, "seed": 5}
    try:
        return layer_scene(pipe, "oil", weights=webui.extension.store(webui.model), **settings, **scene)
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize(
    ("family", "scene"),
    [
        ("sd15", ONE),
        ("sd15", TWO),
        ("sd15", {**TWO, "first": "foreground"}),
        ("sdxl", TWO),
        ("sd15", {**TWO, "threshold": 0.5, "choke": 1}),
    ],
    ids=["joint", "chain", "foreground first", "SDXL", "edges"],
)
def test_a_scene_has_the_bytes_of_the_library(families: Families, family: str, scene: dict[str, Any]) -> None:
    families.load(family)
    wanted = ["layers", "recomposite", "blend"]
    made = images_of(ask(families, {**scene, "outputs": wanted}))
    pictures = dict(make_in_library(families, family, scene).pictures(wanted))
    assert modes_of(made)[:2] == ["RGB", "RGBA"]
    assert digests(made) == digests(pictures.values())


def test_infotexts_make_the_scene_again(families: Families) -> None:
    first = ask(families, {**ONE, "match_blend": True})
    texts = [image.info["parameters"] for image in images_of(first)]
    params = families.webui.module("infotext_utils").parse_generation_parameters(texts[1])
    assert (params["Prompt"], params["Seed"], params["Script"]) == ("oil", "5", TITLE)
    assert params["layerdiffusion_layer"] == "an apple"
    assert read(params)["foregrounds"] == ["an apple"]
    assert "layerdiffusion_mode" not in params
    again = families.webui.post("txt2img", infotext=texts[1], script_name=TITLE, seed=None, prompt=None, steps=None)
    assert digests(images_of(again)) == digests(images_of(first))


def test_the_page_pastes_and_makes_the_same(families: Families) -> None:
    webui = families.webui
    first = images_of(ask(families, ONE))
    fields = webui.module("infotext_utils").paste_fields["txt2img"]["fields"]
    updates = webui.module("infotext_utils").paste(first[0].info["parameters"], fields)
    runner = webui.scripts.scripts_txt2img
    values = {id(field.component): update.get("value") for field, update in zip(fields, updates, strict=True)}
    assert values[id(runner.inputs[0])] == TITLE
    script = next(each for each in runner.selectable_scripts if each.title() == TITLE)
    p = webui.job("txt2img", is_api=False, **SETTINGS)
    args = list(p.script_args)
    args[0] = runner.selectable_scripts.index(script) + 1
    for place, control in enumerate(runner.inputs[script.args_from : script.args_to], start=script.args_from):
        value = values[id(control)]
        args[place] = control.value if value is None else value
    p.script_args = tuple(args)
    webui.shared.state.begin("test")
    processed = runner.run(p, *args)
    webui.shared.state.end()
    assert digests(processed.images) == digests(first)


def test_layers_and_files_are_saved_under_their_names(
    families: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"outdir_txt2img_samples": str(tmp_path), "samples_format": "jpg"}
    for name, value in options.items():
        monkeypatch.setitem(families.webui.shared.opts.data, name, value)
    wanted = ["layers", "recomposite", "psd", "ora"]
    answer = ask(families, {**ONE, "outputs": wanted}, save_images=True, outpath_samples=str(tmp_path))
    images = images_of(answer)
    assert modes_of(images) == ["RGB", "RGBA", "RGB"]
    files = {path.suffix: path for path in tmp_path.rglob("*")}
    names = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert [name.rpartition("-a table-")[2] for name in names] == ["background.png", "an-apple.png", "recomposite.png"]
    saved = [Image.open(tmp_path / name) for name in names]
    assert digests(saved) == digests(images)
    for rows in (read_ora(files[".ora"])[1], read_psd(io.BytesIO(files[".psd"].read_bytes()))[1]):
        assert [name for name, _, _ in rows] == ["background", "an apple"]
        assert np.array_equal(rows[1][2], np.asarray(images[1]))
    assert notes_of(ask(families, {**ONE, "outputs": wanted}))[-1].startswith("No PSD or ORA was written")


@pytest.mark.parametrize("how", ["interrupt", "skip", "stop_generating"])
def test_one_interrupt_keeps_what_is_complete(families: Families, monkeypatch: Any, how: str) -> None:
    whole = images_of(ask(families, TWO))
    end_in_pass(families, monkeypatch, 2, getattr(families.webui.shared.state, how))
    answer = ask(families, TWO)
    kept = images_of(answer)
    layers = 2 if how == "stop_generating" else 1  # that lets the pass be finished
    assert digests(kept[:layers]) == digests(whole[:layers])
    assert len(kept) == layers + (layers > 1)  # no recomposite of one layer
    named = "background kept, an apple, a glass not made" if layers == 1 else "background, an apple kept, a glass not"
    assert named in notes_of(answer)[-1 if layers == 1 else 0]


def test_an_interrupt_in_the_first_pass_leaves_nothing_and_says_so(families: Families, monkeypatch: Any) -> None:
    end_in_pass(families, monkeypatch, 1, families.webui.shared.state.interrupt)
    answer = ask(families, TWO)
    assert images_of(answer) == []
    assert notes_of(answer) == ["The scene was interrupted before its first layer was complete."]


def test_a_pass_that_fails_keeps_what_is_complete(families: Families, monkeypatch: Any) -> None:
    def fail() -> None:
        raise ValueError("odd weather")

    end_in_pass(families, monkeypatch, 2, fail)
    answer = ask(families, TWO)
    assert len(images_of(answer)) == 1
    assert "odd weather" in notes_of(answer)[0]


def test_progress_counts_all_passes(families: Families, monkeypatch: Any) -> None:
    state, seen = families.webui.shared.state, []
    original = state.nextjob
    monkeypatch.setattr(state, "nextjob", lambda: seen.append((state.job_no, state.job_count)) or original())
    images = images_of(ask(families, TWO, n_iter=2))
    assert seen == [(number, 6) for number in range(6)]
    assert len(images) == 8
    assert len({image.tobytes() for image in images}) == 8
    assert images[0].tobytes() == images_of(ask(families, TWO))[0].tobytes()


@pytest.mark.parametrize(
    ("args", "body", "match"),
    [
        ([{"foregrounds": ["x"] * 9, "background": "y"}], {}, "at most 8 foregrounds, not 9"),
        ([{"background": "y"}], {}, "needs a foreground"),
        ([], {}, "needs a foreground"),
        ([{**TWO, "prompt": "z"}], {}, "no option 'prompt'"),
        ([{**TWO, "background_image": "no picture"}], {}, "background_image is not base64"),
        ([TWO, "more"], {}, "one object is read"),
        (["x"] * 40, {}, "script_args has 40 entries"),
        ([TWO], {"enable_hr": True}, "switch Hires. fix off"),
        ([{**TWO, "views": 3}], {}, "views can't be 3"),
    ],
)
def test_what_cannot_be_made_is_refused(webui: Any, args: Any, body: Any, match: str) -> None:
    answer = webui.post("txt2img", script_name=TITLE, script_args=args, **SETTINGS | body)
    assert answer.status_code == 422, answer.text[:300]
    assert match in answer.json()["detail"]


def test_a_file_that_can_not_fit_is_named(webui: Any, only_foreground: None) -> None:
    answer = webui.post("txt2img", script_name=TITLE, script_args=[ONE], **SETTINGS)
    assert answer.status_code == 422
    assert "layer_sd15_joint is made for a UNet of 320 channels" in answer.json()["detail"]


def test_given_images_are_taken(families: Families) -> None:
    made = images_of(ask(families, {"foregrounds": "an apple", "background_image": given("RGB"), "views": 1}))
    assert modes_of(made) == ["RGB", "RGBA", "RGB"]
    assert made[0].tobytes() == decode_image(given("RGB")).tobytes()
    made = images_of(ask(families, {"background": "a table", "foreground_image": given(), "views": 1}))
    assert made[1].tobytes() == decode_image(given()).tobytes()


def test_a_missing_file_is_named_before_any_pass(families: Families, layer_files: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(families.webui.shared.cmd_opts, "layerdiffusion_dir", str(layer_files))
    monkeypatch.setattr(families.webui.module("paths"), "models_path", str(layer_files))
    end_in_pass(families, monkeypatch, 1, lambda: pytest.fail("a pass began"))
    answer = ask(families, TWO)
    assert answer.status_code == 422
    assert "layer_sd15_bg2fg" in answer.json()["detail"]


def test_the_script_is_described(webui: Any) -> None:
    info = webui.request("GET", "/sdapi/v1/script-info").json()
    (about,) = [each for each in info if each["name"] == TITLE.lower()]
    assert not about["is_img2img"]
    assert [each["label"] for each in about["args"]] == [each.metadata["label"] for each in SCENE_FIELDS.values()]
    assert KEY.startswith("layerdiffusion_")
