"""What artists do over the API of a real WebUI with transparent pictures: what comes back, and what is said."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.server import encode
from tests.e2e.studio import FOREGROUND, TOGETHER, at_first, embedded, is_part, put_on, studio, unchanged
from tests.e2e.test_scripts import need_script, write_plot_arguments
from tests.masked_pictures import find_unmasked

if TYPE_CHECKING:
    from tests.e2e.studio import Studio

__all__ = ["at_first", "embedded", "studio", "unchanged"]  # fixtures

KINDS = {"RGB": "opaque", "RGBA": "transparent"}
BLUR = 4  # of masks, in pixels
AREAS = {"whole picture": False, "only masked": True}


def notes_of(answer: Any) -> list[str]:
    return answer.info["extra_generation_params"].get("layerdiffusion_notes", [])


@pytest.mark.parametrize(("kind", "picture"), KINDS.items(), ids=KINDS.values())
@pytest.mark.parametrize(("area", "only_masked"), AREAS.items(), ids=AREAS)
@pytest.mark.seen("foreground", "inpaint, {picture} picture, {area}: the rest unchanged")
def test_what_is_not_masked_keeps_its_bytes(
    studio: Studio, kind: str, picture: str, area: str, only_masked: bool
) -> None:
    start, mask = studio.draw(kind), studio.draw_mask()
    masked = {"mask": encode(mask), "mask_blur": BLUR, "inpaint_full_res": only_masked, "inpainting_fill": 1}
    answer = studio.img2img(start, denoising_strength=0.8, **masked)
    (made,) = answer.images
    assert (made.mode, made.size) == ("RGBA", start.size)
    painted, given, far = np.asarray(made), np.asarray(start.convert("RGBA")), find_unmasked(mask, BLUR)
    assert np.array_equal(painted[far], given[far])
    if kind == "RGB":
        assert (painted[far][:, 3] == 255).all()
    inside = np.asarray(mask) == 255
    assert (painted[inside] != given[inside]).any()


@pytest.mark.seen("foreground", "PSD and ORA without psd-tools in the WebUI")
def test_layered_files(studio: Studio, tmp_path: Path) -> None:
    psd_tools = pytest.importorskip("psd_tools")
    with studio.saving_in(tmp_path):
        answer = studio.txt2img(FOREGROUND | {"outputs": ["rgba", "checker", "psd", "ora"]}, save_images=True)
    transparent, checker = answer.images
    assert (transparent.mode, checker.mode) == ("RGBA", "RGB")
    assert np.array_equal(np.asarray(checker), put_on(transparent))
    assert not notes_of(answer)
    (layer,) = psd_tools.PSDImage.open(tmp_path / "picture.psd")
    opened = layer.topil()
    assert (layer.name, opened.mode) == ("foreground", "RGBA")
    assert opened.getchannel("A").tobytes() == transparent.crop(layer.bbox).getchannel("A").tobytes()
    assert (tmp_path / "picture.ora").read_bytes().startswith(b"PK")


@pytest.mark.seen("foreground", "PSD that can't be written")
def test_a_layered_file_that_fails_is_told(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "picture.psd").mkdir()
    with studio.saving_in(tmp_path):
        answer = studio.txt2img(FOREGROUND | {"outputs": ["rgba", "checker", "psd", "ora"]}, save_images=True)
    assert [image.mode for image in answer.images] == ["RGBA", "RGB"]
    (sentence,) = notes_of(answer)
    assert "picture.psd" in sentence
    assert sentence in studio.server.read_log()
    assert (tmp_path / "picture.ora").is_file()


SCRIPTS: dict[str, list[Any]] = {
    "SD upscale": [None, 16, "None", 2.0],
    "Outpainting mk2": [None, 32, 4, ["left"], 1.0, 0.05],
    "Poor man's outpainting": [32, 4, "original", ["left"]],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.seen("foreground", "img2img with {script}, refused")
def test_scripts_with_opaque_tiles_are_refused(studio: Studio, script: str) -> None:
    answer = studio.img2img(studio.draw("RGB"), script_name=script, script_args=SCRIPTS[script])
    assert answer.status == 422, answer.body
    assert f"{script!r} puts its picture together from opaque tiles" in answer.body["detail"]


def check_grid(grid: Image.Image, cells: list[Image.Image], background: str = "checker") -> None:
    """Opaque, with every cell composited over the background."""
    pixels = np.asarray(grid.convert("RGBA"))
    assert pixels[..., 3].min() >= 254  # Forge can hide the infotext in the lowest bit
    assert [cell.mode for cell in cells] == len(cells) * ["RGBA"]
    for cell in cells:
        assert is_part(put_on(cell, background), pixels[..., :3])


@pytest.mark.seen("foreground", "X/Y/Z plot, grid over the background")
def test_grid_of_a_plot(studio: Studio) -> None:
    script = need_script(studio.server, "x/y/z plot")
    arguments = write_plot_arguments(studio.server, script, "[LayerDiffusion] Weight", ["0.5", "1"])
    with studio.server.options(layerdiffusion_grid_background="#204060"):
        grid, *cells = studio.txt2img(script_name=script, script_args=arguments).images
    check_grid(grid, [cell for cell in cells if cell.size == (studio.size, studio.size)], "#204060")


@pytest.mark.seen("foreground", "Prompt matrix, grid over the background")
def test_grid_of_prompts(studio: Studio) -> None:
    arguments = [False, False, "positive", "comma", 0]
    answer = studio.txt2img(script_name="Prompt matrix", script_args=arguments, prompt="red apple|leaf")
    grid, *cells = answer.images
    assert len(cells) == 2
    check_grid(grid, cells)


@pytest.mark.seen("foreground", "Loopback, grid over the background")
def test_grid_of_loops(studio: Studio) -> None:
    arguments = [2, 0.5, "Linear", "None"]
    answer = studio.img2img(studio.draw(), script_name="Loopback", script_args=arguments, denoising_strength=0.5)
    grid, *cells = answer.images
    assert len(cells) == 2
    check_grid(grid, cells)


def replay(studio: Studio, infotext: str) -> list[bytes]:
    """The pictures for an API client that sends only an infotext, and the size of the batch, which no text has."""
    if studio.is_forge:
        pytest.skip("Forge's own API fails at every infotext: it asks whether something is of the type list[str]")
    answer = studio.server.post("/sdapi/v1/txt2img", {"infotext": infotext, "batch_size": 1, "n_iter": 1})
    return [image.tobytes() for image in answer.images]


@pytest.mark.seen("foreground", "infotext by the API")
def test_infotext_makes_the_picture_again(studio: Studio) -> None:
    answer = studio.txt2img(FOREGROUND | {"weight": 0.9}, n_iter=2)
    for image, text in zip(answer.images, answer.info["infotexts"], strict=True):
        assert replay(studio, text) == [image.tobytes()]


@pytest.mark.seen("together", "infotext of every layer by the API")
def test_infotext_makes_the_set_again(studio: Studio) -> None:
    layers = TOGETHER | {"background_prompt": "a meadow"}
    with studio.seeded_files():
        answer = studio.txt2img(layers, n_iter=2, width=64, height=64, steps=2)
        made = [image.tobytes() for image in answer.images]
        texts = answer.info["infotexts"]
        assert len(made) == len(texts) == 6
        for index in (1, 5):
            assert replay(studio, texts[index]) == made[index - index % 3 :][:3]


@pytest.mark.seen("together", "infotext of a grid by the API")
def test_infotext_of_a_grid_makes_its_first_cell_again(studio: Studio) -> None:
    script = need_script(studio.server, "x/y/z plot")
    arguments = write_plot_arguments(studio.server, script, "[LayerDiffusion] Weight", ["0.5"])
    with studio.seeded_files():
        small = {"width": 64, "height": 64, "steps": 2}
        text = studio.txt2img(TOGETHER, script_name=script, script_args=arguments, **small).info["infotexts"][0]
        cell = studio.txt2img(TOGETHER | {"weight": 0.5}, **small).images
        assert "Script: X/Y/Z plot" in text
        assert replay(studio, text) == [image.tobytes() for image in cell]


@pytest.mark.seen("any", "continued without layers: told in the answer")
def test_an_ordinary_picture_says_why(studio: Studio) -> None:
    with studio.server.options(layerdiffusion_go_on=True):
        answer = studio.txt2img({"mode": "foreground_conv"})
    assert [image.mode for image in answer.images] == ["RGB"]
    (sentence,) = notes_of(answer)
    assert "SDXL" in sentence
    assert "layerdiffusion_mode" not in answer.info["infotexts"][0]


@pytest.mark.seen("foreground", "opaque picture: told in the answer")
def test_an_opaque_picture_says_what_to_do(studio: Studio) -> None:
    studio.server.fail_at("decoding", "opaque")
    answer = studio.txt2img()
    (sentence,) = notes_of(answer)
    assert sentence.startswith("The transparent image is practically opaque: prompt for")
    assert "notes" not in answer.info["infotexts"][0]


@pytest.mark.seen("any", "embedded model, a mode whose file can't fit: told before any download")
def test_a_mode_that_cannot_fit_is_told_before_any_download(studio: Studio) -> None:
    if studio.is_forge:
        pytest.skip("Forge and its forks only load checkpoints of full shape")
    with studio.unfit_file():
        answer = studio.txt2img(TOGETHER)
        with urllib.request.urlopen(f"{studio.server.address}/layerdiffusion/v1/doctor", timeout=60) as reply:
            report = reply.read().decode()
        modes = studio.server.get("/layerdiffusion/v1/modes")["modes"]
    assert answer.status == 422
    sentence = answer.body["detail"]
    assert "made for a UNet of 320 channels" in sentence
    assert "load an ordinary SD1.5 checkpoint, or choose foreground" in sentence
    (line,) = [line for line in report.splitlines() if line[8:].startswith("layer_sd15_joint")]
    assert "made for a UNet of 320 channels" in line
    assert "download" not in line
    offered = [mode["name"] for mode in modes if mode["offered"]]
    assert offered == ["foreground", "foreground_to_background", "background_to_foreground"]
