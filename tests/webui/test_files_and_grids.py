"""What a WebUI shows and writes of a job with layers: grids of batches, other formats, first passes, refused cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.layers import Layer, composite

pytestmark = pytest.mark.slow

LAYERS = {"enabled": True, "views": "1 (fastest)"}


def from_the_page(webui: Any, **fields: Any) -> Any:
    return webui.run(webui.job("txt2img", page=LAYERS, is_api=False, steps=2, **fields))


@pytest.mark.parametrize("batch", [{"batch_size": 2}, {"n_iter": 2}], ids=str)
def test_a_batch_has_a_grid_over_the_background_of_grids(webui, tmp_path, batch):
    made = from_the_page(webui, do_not_save_grid=False, outpath_grids=str(tmp_path), **batch)
    assert made.index_of_first_image == 1
    assert [image.mode for image in made.images] == ["RGB", "RGBA", "RGBA"]
    grid = np.asarray(made.images[0])
    first = np.asarray(made.images[1])
    over_checker = composite([Layer("image", first, "foreground")], "checker")[..., :3]
    assert np.array_equal(grid[:64, :64], over_checker)
    assert len(list(tmp_path.glob("grid-*.png"))) == 1


def test_a_single_set_has_no_grid(webui, tmp_path):
    made = from_the_page(webui, do_not_save_grid=False, outpath_grids=str(tmp_path))
    assert [image.mode for image in made.images] == ["RGBA"]


def test_a_grid_that_is_not_wanted_is_not_made(webui):
    assert len(from_the_page(webui, batch_size=2, do_not_save_grid=True).images) == 2


def test_clients_find_the_images_first(webui, tmp_path):
    made = webui.txt2img({"views": 1}, steps=2, batch_size=2, do_not_save_grid=False, outpath_grids=str(tmp_path))
    assert [image.mode for image in made.images] == ["RGBA", "RGBA"]


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_saving_ours_in_a_format_without_alpha_writes_a_png(webui, tmp_path, ending, caplog):
    """As the button "Save" does."""
    images = webui.module("images")
    picture = Image.new("RGBA", (8, 8), (1, 2, 3, 7))
    text = "frog\nSteps: 2, layerdiffusion_mode: foreground"
    webui.shared.opts.set("stealth_pnginfo_option", "None")
    path, _ = images.save_image(picture, str(tmp_path), "", 1, "frog", ending, info=text)
    saved = tmp_path / "00000-1-frog.png"
    assert [each.name for each in tmp_path.iterdir()] == [saved.name]
    assert Image.open(saved).mode == "RGBA"
    assert f"saved as PNG, since .{ending} has no transparency" in caplog.text
    assert path == str(saved)


LAYER = "frog\nSteps: 2, layerdiffusion_mode: together, layerdiffusion_layer: blend"


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (Image.new("RGBA", (8, 8)), "frog\nSteps: 2"),
        (Image.new("RGB", (8, 8)), LAYER),
        (Image.new("RGBA", (8, 8), (1, 2, 3, 255)), LAYER),
    ],
    ids=["not ours", "opaque", "opaque with an alpha channel, as Forge's grids"],
)
def test_other_pictures_are_saved_as_asked(webui, tmp_path, picture, text):
    images = webui.module("images")
    images.save_image(picture, str(tmp_path), "", 1, "frog", "jpg", info=text)
    assert [path.suffix for path in tmp_path.iterdir()] == [".jpg"]


@pytest.mark.parametrize("saves", [True, False])
def test_first_passes_that_are_saved_opaque_are_told(webui, saves):
    webui.shared.opts.set("save_images_before_highres_fix", saves)
    made = from_the_page(webui, enable_hr=True, hr_scale=1.5)
    assert ("-before-highres-fix are opaque" in made.comments) == saves


def test_previews_of_the_page_lie_next_to_the_picture(webui, tmp_path):
    page = LAYERS | {"outputs_checker": True, "outputs_psd": True}
    job = webui.job(
        "txt2img", page=page, is_api=False, steps=2, do_not_save_samples=False, outpath_samples=str(tmp_path)
    )
    made = webui.run(job)
    stem = Path(made.images[0].already_saved_as).stem
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}-checker.png", f"{stem}.png", f"{stem}.psd"]
    jobs = webui.module("ui_jobs")
    paths = jobs.name_files(made.images)
    assert [Path(path).name for path in paths] == [f"{stem}.png", f"{stem}-checker.png"]
    assert [Path(path).name for path in jobs.find_files(paths)] == [f"{stem}.psd"]
