"""The sheet and the animation of all transparent pictures of a job: in the gallery, as files, and in API answers."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lib_layerdiffusion import infotext
from tests.core.test_atlas import cut_out
from tests.webui.jobs import decode_image, read_png

pytest.importorskip("rectpack")
pytestmark = pytest.mark.slow

LAYERS = {"enabled": True, "views": "1 (fastest)"}
BOTH = {"atlas": True, "animation": True}


def from_the_page(webui: Any, tmp_path: Path, page: dict[str, Any], **fields: Any) -> Any:
    """A job of the page whose pictures are saved to `tmp_path`."""
    usual = {"steps": 2, "do_not_save_samples": False, "outpath_samples": str(tmp_path)}
    return webui.run(webui.job("txt2img", page=LAYERS | page, is_api=False, **usual | fields))


def ask(webui: Any, layers: dict[str, Any], **body: Any) -> tuple[list[Image.Image], dict[str, Any]]:
    """Images of an API answer, and what its info says of them."""
    answer = webui.post("txt2img", {"views": 1, **layers}, steps=2, **body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    return [decode_image(image) for image in made["images"]], json.loads(made["info"])["extra_generation_params"]


def read_sheet(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The pictures that a sheet's JSON finds on it, by name."""
    about = json.loads(path.with_suffix(".json").read_text("utf-8"))
    sheet = np.asarray(read_png(path.with_name(about["meta"]["image"])))
    return {name: cut_out(sheet, frame) for name, frame in about["frames"].items()}


def read_frames(file: Any) -> list[np.ndarray[Any, Any]]:
    with Image.open(file) as image:
        return [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]


def shown(image: Any) -> bytes:
    """An image's bytes without the colour of invisible pixels, which trimming and WebP drop."""
    rgba = np.asarray(image)
    return np.where(rgba[..., 3:] > 0, rgba, 0).tobytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_in_batch(webui: Any, number: int) -> None:
    """Interrupt the job while its batch of that number (from 1 on) is sampled."""
    seen: list[int] = []

    def look(params: Any) -> None:
        seen.append(params.sampling_step)
        if seen.count(0) == number:
            webui.shared.state.interrupt()

    webui.module("script_callbacks").callback_map["cfg_denoiser"] = [look]


@pytest.mark.parametrize("batch", [{"batch_size": 3}, {"n_iter": 3}, {"batch_size": 2, "n_iter": 2}], ids=str)
def test_all_pictures_of_a_job_are_on_the_sheet_and_in_the_animation(webui, tmp_path, batch):
    made = from_the_page(webui, tmp_path, BOTH | {"animation_fps": 20}, **batch)

    pictures = made.images[:-2]
    paths = [Path(image.already_saved_as) for image in pictures]
    assert len(pictures) == batch.get("batch_size", 1) * batch.get("n_iter", 1)
    stem = paths[0].stem
    added = [f"{stem}-animation.png", f"{stem}-sheet.json", f"{stem}-sheet.png"]
    assert names_in(tmp_path) == sorted([*(path.name for path in paths), *added])
    found = read_sheet(tmp_path / f"{stem}-sheet.png")
    assert list(found) == [path.name for path in paths]
    for image, path in zip(pictures, paths, strict=True):
        assert shown(found[path.name]) == shown(read_png(path)) == shown(image)
    frames = read_frames(tmp_path / f"{stem}-animation.png")
    assert [frame.tobytes() for frame in frames] == [image.tobytes() for image in pictures]
    assert Image.open(tmp_path / f"{stem}-animation.png").info["duration"] == 50


def test_the_gallery_ends_with_them_and_the_page_names_their_files(webui, tmp_path):
    made = from_the_page(webui, tmp_path, BOTH | {"outputs": ["rgba", "checker"]}, batch_size=2)

    stem = Path(made.images[0].already_saved_as).stem
    assert len(made.images) == len(made.infotexts) == 6  # two pictures, two previews
    files = [Path(image.already_saved_as).name for image in made.images[4:]]
    assert files == [f"{stem}-sheet.png", f"{stem}-animation.png"]
    assert [text.rpartition(", ")[2] for text in made.infotexts[4:]] == [
        "layerdiffusion_preview: atlas",
        "layerdiffusion_preview: animation",
    ]
    sentence = f"Written beside the pictures: {stem}-sheet.png, {stem}-sheet.json, {stem}-animation.png."
    assert made.comments == f"{sentence}\n"
    assert webui.extension.last_run.outcome == f"ok. {sentence}"
    assert infotext.NOTES not in made.extra_generation_params
    assert infotext.SHEETS not in made.extra_generation_params
    assert read_png(made.images[4].already_saved_as).info["parameters"] == made.info
    jobs = webui.module("ui_jobs")
    assert [Path(path).name for path in jobs.find_files(jobs.name_files(made.images[4:]))] == [f"{stem}-sheet.json"]


def test_switched_off_nothing_changes(webui, tmp_path):
    plain, off = tmp_path / "plain", tmp_path / "off"
    for folder, page in ((plain, {}), (off, {"atlas": False, "animation": False, "atlas_padding": 9})):
        made = from_the_page(webui, folder, page, batch_size=2)
        assert len(made.images) == 2
        assert made.comments == ""
        assert webui.extension.last_run.outcome == "ok"
    assert names_in(plain) == names_in(off)
    first = names_in(plain)[0]
    assert np.array_equal(read_png(plain / first), read_png(off / first))
    assert "atlas" not in read_png(plain / first).info["parameters"]
    text = read_png(off / first).info["parameters"].replace(", layerdiffusion_atlas_padding: 9", "")
    assert text == read_png(plain / first).info["parameters"]


def test_the_sheet_is_made_as_the_options_say(webui, tmp_path):
    page = {"atlas": True, "atlas_form": "JSON (Array)", "atlas_trim": False, "atlas_padding": 5, "atlas_extrude": 2}
    page |= {"atlas_pivot_x": 0.25, "atlas_pivot_y": 1, "atlas_power_of_two": True, "atlas_common_canvas": True}

    made = from_the_page(webui, tmp_path, page | {"animation": True, "animation_format": "WebP (smaller)"}, n_iter=2)

    sheet, animation = (Path(image.already_saved_as) for image in made.images[2:])
    about = json.loads(sheet.with_suffix(".json").read_text("utf-8"))
    assert [frame["filename"] for frame in about["frames"]] == [
        Path(image.already_saved_as).name for image in made.images[:2]
    ]
    assert [frame["pivot"] for frame in about["frames"]] == [{"x": 0.25, "y": 1}] * 2
    assert [frame["trimmed"] for frame in about["frames"]] == [False, False]
    assert about["frames"][0]["frame"] == {"x": 7, "y": 7, "w": 64, "h": 64}
    assert about["meta"]["size"] in ({"w": 128, "h": 256}, {"w": 256, "h": 128})
    assert animation.suffix == ".webp"
    assert [shown(frame) for frame in read_frames(animation)] == [shown(image) for image in made.images[:2]]


def test_one_picture_is_enough(webui, tmp_path):
    made = from_the_page(webui, tmp_path, BOTH)

    picture, sheet, animation = (Path(image.already_saved_as) for image in made.images)
    assert {name: shown(found) for name, found in read_sheet(sheet).items()} == {
        picture.name: shown(made.images[0]),
    }
    assert [frame.tobytes() for frame in read_frames(animation)] == [made.images[0].tobytes()]


def test_several_sheets_name_each_other(webui, tmp_path):
    made = from_the_page(webui, tmp_path, {"atlas": True, "atlas_trim": False, "atlas_max_side": 80}, n_iter=2)

    sheets = [Path(image.already_saved_as) for image in made.images[2:]]
    assert [path.name[-12:] for path in sheets] == ["-sheet-0.png", "-sheet-1.png"]
    found = [read_sheet(path) for path in sheets]
    names = [Path(image.already_saved_as).name for image in made.images[:2]]
    assert [list(each) for each in found] == [[name] for name in names]
    about = json.loads(sheets[0].with_suffix(".json").read_text("utf-8"))
    assert about["meta"]["related_multi_packs"] == [sheets[1].with_suffix(".json").name]


def test_no_file_is_replaced(webui, tmp_path, monkeypatch):
    monkeypatch.setattr(webui.module("images"), "_name", lambda *_: "always-the-same")
    from_the_page(webui, tmp_path, BOTH)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    made = from_the_page(webui, tmp_path, BOTH, prompt="green star")

    sheet, animation = (Path(image.already_saved_as) for image in made.images[1:])
    assert sheet.name == "always-the-same-sheet-2.png"
    assert animation.name == "always-the-same-animation-2.png"
    for name in ("sheet.png", "sheet.json", "animation.png"):
        assert (tmp_path / f"always-the-same-{name}").read_bytes() == before[f"always-the-same-{name}"]
    assert shown(read_sheet(sheet)["always-the-same.png"]) == shown(made.images[0])


def test_a_set_gives_its_transparent_picture_only(webui, tmp_path):
    made = from_the_page(webui, tmp_path, {**BOTH, "mode": "Foreground and background together · SD1.5"}, batch_size=2)

    assert [image.mode for image in made.images] == ["RGBA", "RGB", "RGB"] * 2 + ["RGBA"] * 2
    found = read_sheet(Path(made.images[6].already_saved_as))
    own = [made.images[0], made.images[3]]
    assert list(found) == [Path(image.already_saved_as).name for image in own]
    assert [shown(each) for each in found.values()] == [shown(image) for image in own]
    assert [frame.tobytes() for frame in read_frames(made.images[7].already_saved_as)] == [
        image.tobytes() for image in own
    ]


def test_an_interrupted_job_uses_what_is_complete(webui, tmp_path):
    stop_in_batch(webui, 3)
    made = from_the_page(webui, tmp_path, BOTH, n_iter=4)

    complete = made.images[:2]
    assert [getattr(image, "already_saved_as", None) for image in made.images].count(None) == 1  # the third
    found = read_sheet(Path(made.images[3].already_saved_as))
    assert [shown(each) for each in found.values()] == [shown(image) for image in complete]
    assert [frame.tobytes() for frame in read_frames(made.images[4].already_saved_as)] == [
        image.tobytes() for image in complete
    ]


def test_interrupted_before_the_first_is_complete_there_is_none_and_it_is_said(webui, tmp_path):
    stop_in_batch(webui, 1)
    made = from_the_page(webui, tmp_path, BOTH, n_iter=2)

    assert len(made.images) == 1
    assert "There is no sheet and no animation, since no transparent picture is complete" in made.comments
    assert names_in(tmp_path) == []


def test_what_is_not_saved_has_no_file_and_the_page_says_so(webui, tmp_path):
    made = from_the_page(webui, tmp_path, BOTH, do_not_save_samples=True)

    assert len(made.images) == 1
    assert "No sheet and no animation was written, since these images aren't saved" in made.comments


def test_a_mode_without_a_transparent_picture_leaves_them_out(webui, tmp_path):
    page = {**BOTH, "mode": "Background for my foreground · SD1.5", "foreground_image": Image.new("RGBA", (64, 64))}
    made = from_the_page(webui, tmp_path, page)

    assert [image.mode for image in made.images] == ["RGB", "RGB"]
    assert "makes no transparent picture, so there is no sheet and no animation: switch that off" in made.comments


@pytest.mark.parametrize("layers", [{"atlas": True}, BOTH], ids=str)
def test_without_the_package_a_sheet_is_refused_before_anything_is_sampled(webui, layers, monkeypatch):
    monkeypatch.setitem(sys.modules, "rectpack", None)
    steps: list[int] = []
    webui.module("script_callbacks").callback_map["cfg_denoiser"] = [lambda params: steps.append(params.sampling_step)]

    answer = webui.post("txt2img", layers, steps=2)

    assert answer.status_code == 422
    assert (
        "needs the Python package rectpack, which isn't installed: install it with `pip install rectpack`"
        in (answer.json()["detail"])
    )
    assert steps == []
    images, _ = ask(webui, {"animation": True})
    assert len(images) == 2  # an animation needs no package


def test_a_failure_costs_no_picture(webui, tmp_path, monkeypatch):
    from lib_layerdiffusion.export import animation, atlas

    def fail(*_args: Any, **_named: Any) -> None:
        raise ValueError("the disk sings")

    monkeypatch.setattr(atlas, "write", fail)
    made = from_the_page(webui, tmp_path, BOTH, n_iter=2)
    assert len(made.images) == 3
    assert "The atlas can't be made (ValueError: the disk sings): please report it." in made.comments
    assert "Written beside the pictures: " in made.comments

    monkeypatch.setattr(animation, "write", fail)
    made = from_the_page(webui, tmp_path, BOTH, n_iter=2)
    assert len(made.images) == 2
    assert "The animation can't be made (ValueError" in made.comments


def test_a_picture_that_no_sheet_holds_is_told(webui, tmp_path):
    made = from_the_page(webui, tmp_path, {"atlas": True, "atlas_trim": False, "atlas_max_side": 32})
    assert len(made.images) == 1
    assert "which doesn't fit on a sheet of 32x32" in made.comments


class TestAPI:
    @pytest.mark.parametrize("saves", [False, True])
    @pytest.mark.parametrize("kind", ["png", "webp"])
    def test_the_answer_ends_with_sheet_and_animation(self, webui, saves, kind):
        images, params = ask(webui, BOTH | {"animation_format": kind}, n_iter=2, save_images=saves)

        assert [image.mode for image in images[:3]] == ["RGBA"] * 3
        assert images[3].format == {"png": "PNG", "webp": "WEBP"}[kind]
        frames = [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(images[3])]
        assert [shown(frame) for frame in frames] == [shown(image) for image in images[:2]]
        (about,) = params[infotext.SHEETS]
        sheet = np.asarray(images[2])
        assert [shown(cut_out(sheet, frame)) for frame in about["frames"].values()] == [
            shown(image) for image in images[:2]
        ]
        if not saves:
            assert list(about["frames"]) == ["picture-1.png", "picture-2.png"]
            assert about["meta"]["image"] == "sheet.png"
        assert infotext.NOTES not in params

    def test_another_file_format_changes_no_pixel(self, webui):
        webui.shared.opts.set("samples_format", "jpg")
        images, _ = ask(webui, BOTH, n_iter=2)
        assert [image.format for image in images] == ["PNG"] * 4
        assert [image.n_frames for image in images] == [1, 1, 1, 2]

    def test_an_interrupted_job_uses_what_is_complete(self, webui):
        stop_in_batch(webui, 2)
        images, params = ask(webui, BOTH, n_iter=3)
        assert list(params[infotext.SHEETS][0]["frames"]) == ["picture-1.png"]
        assert images[3].n_frames == 1

    @pytest.mark.parametrize(
        ("layers", "sentence"),
        [
            ({"atlas": 1}, "atlas must be true or false, not 1"),
            ({"atlas_padding": 65}, "atlas_padding must be a whole number from 0 to 64, not 65"),
            ({"atlas_padding": 1.5}, "atlas_padding must be a whole number from 0 to 64, not 1.5"),
            ({"atlas_form": "xml"}, "allowed are hash, array"),
            ({"animation_fps": 0}, "animation_fps must be a number from 0.1 to 100, not 0"),
        ],
    )
    def test_bad_values_are_refused(self, webui, layers, sentence):
        answer = webui.post("txt2img", layers)
        assert answer.status_code == 422
        assert sentence in answer.json()["detail"]


def test_what_an_infotext_says_is_made_again(webui, tmp_path):
    first = from_the_page(webui, tmp_path, BOTH | {"atlas_padding": 7, "animation_format": "WebP (smaller)"})
    assert "layerdiffusion_atlas: True" in first.info
    answer = webui.request("POST", "/sdapi/v1/txt2img", json={"infotext": first.infotexts[0], "save_images": False})
    images = [decode_image(image) for image in answer.json()["images"]]
    assert [image.format for image in images] == ["PNG", "PNG", "WEBP"]
    (about,) = json.loads(answer.json()["info"])["extra_generation_params"][infotext.SHEETS]
    (frame,) = about["frames"].values()
    assert (frame["frame"]["x"], frame["frame"]["y"]) == (7, 7)


def rounds(webui: Any, tmp_path: Path, count: int, run: int | None = None, **page: Any) -> list[Any]:
    """Image to image from what the last round made, with one `p`, as Loopback and the tab Batch do.

    count: of jobs, as the WebUI counts them; run: how many of them there are.
    """
    usual = {"steps": 2, "do_not_save_samples": False, "outpath_samples": str(tmp_path), "is_api": False}
    p = webui.job("img2img", page=LAYERS | page, init_images=[Image.new("RGB", (64, 64), "red")], **usual)
    state, made = webui.shared.state, []
    state.begin("test")
    state.job_count = count
    for number in range(run or count):
        made.append(webui.module("processing").process_images(p))
        p.init_images, p.seed = [made[-1].images[0]], number + 2
    state.end()
    return made


def test_the_rounds_of_one_job_are_put_together_at_its_end(webui, tmp_path):
    made = rounds(webui, tmp_path, 3, **BOTH)

    assert [len(each.images) for each in made] == [1, 1, 3]
    pictures = [each.images[0] for each in made]
    sheet, animation = (Path(image.already_saved_as) for image in made[2].images[1:])
    assert sheet.name == f"{Path(pictures[0].already_saved_as).stem}-sheet.png"
    found = read_sheet(sheet)
    assert [shown(each) for each in found.values()] == [shown(image) for image in pictures]
    assert [frame.tobytes() for frame in read_frames(animation)] == [image.tobytes() for image in pictures]
    assert len(names_in(tmp_path)) == 6


@pytest.mark.parametrize("button", ["interrupt", "skip", "stop_generating"])
def test_a_button_ends_the_rounds_with_what_is_complete(webui, tmp_path, button):
    rounds_seen: list[int] = []

    def press_in_second(params: Any) -> None:
        rounds_seen.append(params.sampling_step)
        if rounds_seen.count(0) == 2:
            getattr(webui.shared.state, button)()

    webui.module("script_callbacks").callback_map["cfg_denoiser"] = [press_in_second]
    made = rounds(webui, tmp_path, 5, 2, **BOTH)

    complete = [each.images[0] for each in made][: 2 if button == "stop_generating" else 1]
    found = read_sheet(Path(made[1].images[1].already_saved_as))
    assert [shown(each) for each in found.values()] == [shown(image) for image in complete]


def test_more_rounds_than_were_counted_renew_the_files(webui, tmp_path, monkeypatch):
    state = webui.shared.state
    monkeypatch.setattr(type(state), "nextjob", lambda self: setattr(self, "job_no", 99))
    made = rounds(webui, tmp_path, 3, **BOTH)

    assert [len(read_sheet(Path(made[2].images[1].already_saved_as)))] == [3]
    assert len(read_frames(made[2].images[2].already_saved_as)) == 3
    assert len(names_in(tmp_path)) == 6


def test_a_cell_of_a_plot_has_none_and_says_why(webui, tmp_path, monkeypatch):
    plot = SimpleNamespace(filename="scripts/xyz_grid.py", title=lambda: "X/Y/Z plot")
    monkeypatch.setattr(webui.scripts.ScriptRunner, "selectable_scripts", [plot])
    usual = {"steps": 2, "do_not_save_samples": False, "outpath_samples": str(tmp_path)}
    job = webui.job("txt2img", page=LAYERS | BOTH, is_api=False, **usual)
    job.script_args = (1, *job.script_args[1:])

    made = webui.run(job)

    assert len(made.images) == 1
    assert "A plot has no sheet and no animation, since each of its cells is a job of its own" in made.comments


def test_the_files_content_is_what_a_client_gets(webui, tmp_path):
    webui.shared.opts.set("outdir_txt2img_samples", str(tmp_path))
    answer = webui.post("txt2img", {"views": 1, "animation": True}, steps=2, n_iter=2, save_images=True)
    (path,) = tmp_path.glob("*-animation.png")
    assert base64.b64decode(answer.json()["images"][2]) == path.read_bytes()
    assert len(read_frames(io.BytesIO(path.read_bytes()))) == 2
