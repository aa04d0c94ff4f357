"""The commands on a tiny random model: what they write, print and return."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from psd_tools import PSDImage
from safetensors.torch import save_file

from lib_layerdiffusion import embedded
from lib_layerdiffusion.cli import commands
from lib_layerdiffusion.edges import Edges, clean_edges
from lib_layerdiffusion.export.names import slug
from lib_layerdiffusion.hosts import pipelines
from lib_layerdiffusion.latent_file import FORMAT, LatentFile, read_latent
from lib_layerdiffusion.layers import Layer, composite, fit

pytestmark = pytest.mark.slow


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


class TestGenerate:
    def test_writes_one_png_per_prompt_and_seed(self, run: Any, tmp_path: Path) -> None:
        out = tmp_path / "new" / "out"
        outcome = run.generate("A cat!", "a/dog", "--seed", 7, "--batch", 2, "--out", out)
        assert outcome.code == 0, outcome.err
        assert [path.name for path in outcome.paths] == ["7-a-cat.png", "8-a-cat.png", "7-a-dog.png", "8-a-dog.png"]
        assert sorted(outcome.paths) == sorted(out.iterdir())
        for path in outcome.paths:
            assert Image.open(path).mode == "RGBA"
            assert Image.open(path).size == (64, 64)
        assert len({path.read_bytes() for path in outcome.paths}) == 4

    def test_same_seed_gives_the_same_bytes(self, run: Any, tmp_path: Path) -> None:
        first = run.generate("a cat", "--seed", 1, "--out", tmp_path / "a").paths[0]
        second = run.generate("a cat", "--seed", 1, "--out", tmp_path / "b").paths[0]
        assert first.read_bytes() == second.read_bytes()

    def test_never_overwrites(self, run: Any, tmp_path: Path) -> None:
        (tmp_path / "5-a-cat.png").write_text("mine")
        names = [run.generate("a cat", "--seed", 5, "--out", tmp_path).paths[0].name for _ in range(2)]
        assert names == ["5-a-cat-2.png", "5-a-cat-3.png"]
        assert (tmp_path / "5-a-cat.png").read_text() == "mine"

    def test_infotext_is_in_the_file(self, run: Any, tmp_path: Path) -> None:
        words = ["--seed", 3, "--negative", "blurry", "--cfg", 4.5, "--weight", 0.5, "--out", tmp_path]
        path = run.generate("a cat", *words).paths[0]
        text = Image.open(path).info["parameters"]
        assert text.startswith("a cat\nNegative prompt: blurry\n")
        for part in ("Steps: 2", "CFG scale: 4.5", "Seed: 3", "Size: 64x64"):
            assert part in text
        assert text.endswith("layerdiffusion_mode: foreground, layerdiffusion_weight: 0.5, layerdiffusion_views: 1")

    @pytest.mark.parametrize(("model", "guidance"), [("embedded", 3), ("a/folder", 7)])
    def test_guidance_is_what_suits_the_model(self, model: str, guidance: float) -> None:
        assert embedded.usual_guidance(model) == guidance

    def test_any_size(self, run: Any, tmp_path: Path) -> None:
        path = run.generate("a cat", "--width", 100, "--height", 70, "--out", tmp_path).paths[0]
        assert Image.open(path).size == (100, 70)

    def test_checker_preview_only_when_asked(self, run: Any, tmp_path: Path) -> None:
        outcome = run.generate("a cat", "--seed", 1, "--checker", "--out", tmp_path)
        assert [path.name for path in outcome.paths] == ["1-a-cat.png", "1-a-cat-checker.png"]
        assert Image.open(outcome.paths[1]).mode == "RGB"
        longer = run.generate("a cat", "--seed", 1, "--outputs", "rgba", "checker", "--out", tmp_path / "longer")
        assert [path.read_bytes() for path in longer.paths] == [path.read_bytes() for path in outcome.paths]

    def test_previews_and_files_hold_the_made_and_the_given_layers(self, run: Any, tmp_path: Path) -> None:
        Image.new("RGB", (30, 90), (10, 20, 30)).save(tmp_path / "room.png")
        outputs = ["--outputs", "rgba", "alpha", "recomposite", "ora", "psd"]
        words = ["--seed", 1, "--background", tmp_path / "room.png", "--resize-mode", "stretch", *outputs]
        outcome = run.generate("a cat", *words, "--out", tmp_path / "out")
        assert outcome.code == 0, outcome.err
        names = ["1-a-cat.png", "1-a-cat-alpha.png", "1-a-cat-recomposite.png", "1-a-cat.psd", "1-a-cat.ora"]
        assert [path.name for path in outcome.paths] == names
        assert sorted(outcome.paths) == sorted((tmp_path / "out").iterdir())
        rgba, alpha, whole = (read(path) for path in outcome.paths[:3])
        assert np.array_equal(alpha, np.dstack([rgba[..., 3]] * 3))
        share = rgba[..., 3:] / 255
        assert np.abs(whole - (rgba[..., :3] * share + np.array([10, 20, 30]) * (1 - share))).max() <= 1
        assert Image.open(outcome.paths[1]).info["parameters"].endswith(", layerdiffusion_preview: alpha")
        psd = PSDImage.open(outcome.paths[3])
        assert [layer.name for layer in psd] == ["background", "foreground"]
        with zipfile.ZipFile(outcome.paths[4]) as ora:
            merged = np.asarray(Image.open(io.BytesIO(ora.read("mergedimage.png"))))
        assert np.array_equal(merged[..., :3], whole)

    @pytest.mark.parametrize("resize_mode", ["crop", "fill"])
    def test_previews_over_colours_and_an_image(self, resize_mode: str, run: Any, tmp_path: Path) -> None:
        room = np.random.default_rng(0).integers(0, 256, (90, 30, 3), np.uint8)
        Image.fromarray(room).save(tmp_path / "room.png")
        outputs = ["--outputs", "rgba", "over_image", "over_white", "over_black"]
        words = ["--preview-image", tmp_path / "room.png", "--resize-mode", resize_mode, *outputs]
        outcome = run.generate("a cat", "--seed", 1, *words, "--out", tmp_path / "out")
        assert outcome.code == 0, outcome.err
        names = ["over_black", "over_white", "over_image"]
        assert [path.name for path in outcome.paths[1:]] == [f"1-a-cat-{name}.png" for name in names]
        rgba = read(outcome.paths[0])
        behind = fit(np.dstack([room, np.full((90, 30), 255, np.uint8)]), (64, 64), resize_mode)[..., :3]
        for path, name, background in zip(outcome.paths[1:], names, ("black", "white", behind), strict=True):
            assert np.array_equal(read(path), composite([Layer("layer", rgba, "foreground")], background))
            assert Image.open(path).info["parameters"].endswith(f", layerdiffusion_preview: {name}")
        plain = run.generate("a cat", "--seed", 1, "--out", tmp_path / "plain")
        assert np.array_equal(read(plain.paths[0]), rgba)

    def test_only_what_is_asked_for_is_written(self, run: Any, tmp_path: Path) -> None:
        outcome = run.generate("a cat", "--seed", 1, "--outputs", "ora", "--out", tmp_path / "out")
        assert [path.name for path in outcome.paths] == ["1-a-cat.ora"]
        assert [*(tmp_path / "out").iterdir()] == outcome.paths

    def test_layers_of_a_set_with_their_own_prompts(self, run: Any, joint_files: Path, tmp_path: Path) -> None:
        def make(*words: object) -> list[Path]:
            together = ["--mode", "together", "--weights", joint_files, "--seed", 1]
            outcome = run.generate("a cat", *together, *words, "--out", tmp_path / "out")
            assert outcome.code == 0, outcome.err
            return outcome.paths

        plain = make()
        assert [path.name for path in plain] == ["1-a-cat-blend.png", "1-a-cat-background.png", "1-a-cat.png"]
        prompted = make("--background-prompt", "a room", "--outputs", "background+rgba")
        assert [path.name for path in prompted] == ["1-a-cat-background-2.png", "1-a-cat-2.png"]
        assert read(prompted[0]).tobytes() != read(plain[1]).tobytes()
        assert "layerdiffusion_background_prompt: a room" in Image.open(prompted[0]).info["parameters"]

    @pytest.mark.parametrize(("batch", "counts", "sets"), [(3, "images", 1), (2, "sets", 2)])
    def test_batch_counts_sets_or_images(
        self, batch: int, counts: str, sets: int, run: Any, joint_files: Path, tmp_path: Path
    ) -> None:
        words = ["--mode", "together", "--weights", joint_files, "--batch", batch, "--batch-counts", counts]
        assert len(run.generate("a cat", *words, "--out", tmp_path).paths) == 3 * sets

    def test_settings_change_the_picture(self, run: Any, tmp_path: Path) -> None:
        def make(*words: object) -> bytes:
            return read(run.generate("a cat", "--seed", 1, "--out", tmp_path, *words).paths[0]).tobytes()

        plain = make()
        for words in (
            ("--steps", 3),
            ("--cfg", 1),
            ("--negative", "dog"),
            ("--weight", 0),
            ("--stop-at", 0.5),
            ("--views", 8),
        ):
            assert make(*words) != plain, words

    def test_random_seed_is_told_by_the_name(self, run: Any, tmp_path: Path) -> None:
        first = run.generate("a cat", "--out", tmp_path).paths[0]
        seed = first.name.partition("-")[0]
        again = run.generate("a cat", "--seed", seed, "--out", tmp_path / "again").paths[0]
        assert again.read_bytes() == first.read_bytes()


class TestImage:
    def test_inpainting_keeps_what_is_black_in_the_mask(self, run: Any, pictures: Path, tmp_path: Path) -> None:
        start = np.zeros((72, 100, 4), np.uint8)
        start[10:60, 10:80] = (200, 40, 90, 130)
        mask = np.zeros((72, 100), np.uint8)
        mask[:, 50:] = 255
        Image.fromarray(start).save(tmp_path / "start.png")
        Image.fromarray(mask).save(tmp_path / "mask.png")
        words = ["a cat", "--image", tmp_path / "start.png", "--seed", 1, "--out", tmp_path / "out"]
        whole = run.generate(*words)
        assert whole.code == 0, whole.err
        assert read(whole.paths[0]).shape == start.shape
        masked = run.generate(*words, "--mask", tmp_path / "mask.png", "--strength", 0.9)
        assert masked.code == 0, masked.err
        pixels = read(masked.paths[0])
        assert np.array_equal(pixels[:, :50], start[:, :50])
        assert not np.array_equal(pixels[:, 50:], start[:, 50:])
        assert not np.array_equal(read(whole.paths[0])[:, :50], start[:, :50])

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--mask", "rgba.png"], "--mask needs an image"),
            (["--strength", "0.5"], "--strength needs an image"),
            (["--image", "rgba.png", "--strength", "nan"], "--strength"),
            (["--image", "rgba.png", "--strength", "0.1"], "2 steps at strength 0.1 are none"),
            (["--image", "text.png"], "text.png"),
            (["--image", "rgba.png", "--mask", "nowhere.png"], "nowhere.png"),
            (["--image", "rgba.png", "--mode", "together"], "can't start from a transparent image"),
        ],
    )
    def test_what_can_not_be_started_from_is_refused(
        self, words: list[str], said: str, run: Any, joint_files: Path, pictures: Path, tmp_path: Path
    ) -> None:
        words = [str(pictures / word) if word.endswith(".png") else word for word in words]
        size = ["--width", 64, "--height", 64]
        outcome = run.generate("a cat", *words, *size, "--weights", joint_files, "--out", tmp_path / "out")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert said in outcome.err
        assert not (tmp_path / "out").exists()


class TestInterrupt:
    def test_leaves_only_whole_files(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save, calls = Image.Image.save, []

        def stop_in_the_second(image: Image.Image, file: Any, **settings: Any) -> None:
            calls.append(file)
            if len(calls) == 2:
                file.write(b"half")
                raise KeyboardInterrupt
            save(image, file, **settings)

        monkeypatch.setattr(Image.Image, "save", stop_in_the_second)
        outcome = run.generate("a cat", "--batch", 3, "--seed", 1, "--out", tmp_path / "out")
        assert outcome.code == 130
        assert outcome.err.count("\n") == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["1-a-cat.png"]
        assert read(tmp_path / "out" / "1-a-cat.png").shape == (64, 64, 4)

    def test_while_sampling(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("diffusers.UNet2DConditionModel.forward", stop)
        outcome = run.generate("a cat", "--out", tmp_path / "out")
        assert outcome.code == 130
        assert not (tmp_path / "out").exists()


class TestEncodeAndDecode:
    @pytest.mark.parametrize(
        "name",
        [
            "rgba.png",
            "rgb.jpg",
            "cmyk.jpg",
            "palette.png",
            "grey.png",
            "sixteen.png",
            "animated.gif",
            "1x1.png",
            "3x700.png",
        ],
    )
    def test_awkward_images_work(self, name: str, run: Any, pictures: Path, tmp_path: Path) -> None:
        width, height = Image.open(pictures / name).size
        model = ["--model", run.model, "--offline", "--out", tmp_path]
        encoded = run("encode", pictures / name, *model)
        assert encoded.code == 0, encoded.err
        latent = read_latent(encoded.paths[0])
        assert (latent.width, latent.height) == (width, height)
        decoded = run("decode", encoded.paths[0], "--views", 1, *model)
        assert decoded.code == 0, decoded.err
        assert Image.open(decoded.paths[0]).mode == "RGBA"
        assert Image.open(decoded.paths[0]).size == (width, height)

    def test_edges_are_cleaned_as_the_library_does_it(self, run: Any, pictures: Path, tmp_path: Path) -> None:
        model = ["--model", run.model, "--offline", "--out", tmp_path]
        latent = run("encode", pictures / "rgba.png", *model).paths[0]
        words = ["decode", latent, "--views", 1, *model]
        plain, hard = run(*words).paths[0], run(*words, "--threshold", 0.5, "--choke", 1).paths[0]
        assert np.array_equal(read(hard), clean_edges(read(plain), Edges(threshold=0.5, choke=1)))
        assert not np.array_equal(read(hard), read(plain))

    def test_transparency_changes_the_latent(self, run: Any, pictures: Path, tmp_path: Path) -> None:
        model = ["--model", run.model, "--offline", "--out", tmp_path]
        paths = run("encode", pictures / "rgba.png", pictures / "rgb.jpg", *model).paths
        assert [path.name for path in paths] == ["rgba.safetensors", "rgb.safetensors"]
        one, other = (read_latent(path).latent for path in paths)
        assert not torch.allclose(one, other)

    @pytest.mark.parametrize("size", [(8, 8), (16392, 64), (16384, 4104)])
    def test_sizes_that_no_model_takes_are_refused_before_it_is_loaded(
        self, size: tuple[int, int], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
        width, height = size
        picture, latent = tmp_path / "a.png", tmp_path / "a.safetensors"
        Image.new("1", size).save(picture)
        about = {"format": FORMAT}
        save_file({"latent": torch.zeros(1, 4, height // 8, width // 8, dtype=torch.float16)}, latent, about)
        words = [["decode", latent], ["generate", "a cat", "--width", width, "--height", height]]
        for each in words if min(size) < 64 else [["encode", picture], *words]:  # small images get room around them
            outcome = run(*each, "--out", tmp_path / "out", "--offline")
            assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
            assert not (tmp_path / "out").exists()

    def test_images_are_held_one_at_a_time(self, run: Any, tmp_path: Path) -> None:
        for number in range(6):
            Image.new("RGBA", (1024, 1024)).save(tmp_path / f"{number}.png")
        seen: list[int] = []
        tracemalloc.start()
        for names in ("0", "012345"):
            tracemalloc.reset_peak()
            paths = [tmp_path / f"{name}.png" for name in names]
            outcome = run("encode", *paths, "--model", run.model, "--offline", "--out", tmp_path / "out")
            assert outcome.code == 0, outcome.err
            seen.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert seen[1] < seen[0] + 2 * 4 * 2**20

    def test_latent_file_keeps_what_it_is_given(self, tmp_path: Path) -> None:
        latent = torch.randn(1, 4, 5, 3)
        LatentFile(latent, 20, 39).save(tmp_path / "a.safetensors")
        again = read_latent(tmp_path / "a.safetensors")
        assert torch.equal(again.latent, latent)
        assert (again.width, again.height) == (20, 39)


class TestComposite:
    @pytest.mark.parametrize(("over", "corner"), [("#102030", (16, 32, 48)), ("white", (255, 255, 255))])
    def test_over_a_colour(self, over: str, corner: tuple[int, ...], run: Any, pictures: Path, tmp_path: Path) -> None:
        outcome = run("composite", pictures / "rgba.png", "--over", over, "--out", tmp_path)
        assert outcome.code == 0, outcome.err
        pixels = read(outcome.paths[0])
        assert tuple(pixels[0, 0]) == corner
        assert tuple(pixels[10, 10]) == (200, 40, 90)

    def test_over_a_checkerboard(self, run: Any, pictures: Path, tmp_path: Path) -> None:
        pixels = read(run("composite", pictures / "rgba.png", "--out", tmp_path).paths[0])
        assert len(np.unique(pixels[:8].reshape(-1, 3), axis=0)) == 2

    def test_over_an_image_and_in_order(self, run: Any, pictures: Path, tmp_path: Path) -> None:
        top = np.zeros((48, 40, 4), np.uint8)
        top[:10] = (0, 0, 250, 255)
        Image.fromarray(top).save(tmp_path / "top.png")
        Image.new("RGB", (80, 96), (1, 2, 3)).save(tmp_path / "behind.png")
        layers = [pictures / "rgba.png", tmp_path / "top.png"]
        pixels = read(run("composite", *layers, "--over", tmp_path / "behind.png", "--out", tmp_path).paths[0])
        assert tuple(pixels[9, 10, :3]) == (0, 0, 250)
        assert tuple(pixels[12, 10, :3]) == (200, 40, 90)
        assert tuple(pixels[-1, -1, :3]) == (1, 2, 3)

    @pytest.mark.parametrize(
        ("sizes", "said"),
        [
            ([(1, 1)] * 65, "There are 65 layers, and up to 64 are put together"),
            ([(8192, 8192)] * 5, "The layers together are 335544320 pixels"),
        ],
        ids=["too many", "too large together"],
    )
    def test_too_much_is_refused_before_it_is_decoded(
        self, sizes: Any, said: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "read_image", lambda path: pytest.fail(f"{path} was decoded"))
        paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            Image.new("1", size).save(path)
        outcome = run("composite", *paths, "--out", tmp_path / "out")
        assert (outcome.code, outcome.err.startswith(said), outcome.err.count("\n")) == (2, True, 1), outcome.err


@pytest.mark.parametrize(("prompts", "unknown"), [(["red frog", "frog zebra"], "'zebra'"), (["(frog:1.2)"], None)])
def test_words_that_the_embedded_model_does_not_know_are_told(
    prompts: list[str], unknown: str | None, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows "red" by the red apple."""
    settings = ["--model", "embedded", "--steps", "1", "--views", "1", "--out", str(tmp_path)]
    assert run("generate", *prompts, *settings).code == 0
    told = [record.message for record in caplog.records if "doesn't know" in record.message]
    assert [text.partition(" and may draw")[0] for text in told] == (
        [f"The embedded model doesn't know {unknown}"] if unknown else []
    )


class TestDoctor:
    @pytest.fixture
    def model(self, run: Any, scene_files: Path, tmp_path: Path) -> Path:
        """The tiny model with a file of every mode."""
        model = tmp_path / "model"
        shutil.copytree(run.model, model)
        shutil.copytree(scene_files, model / "layer_model", dirs_exist_ok=True)
        return model

    def test_whole(self, run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("captions", "backgrounds"):
            (model / f"{name}.json").write_text("[]")
        monkeypatch.setattr("lib_layerdiffusion.cli.commands.EMBEDDED_FOLDER", model)
        outcome = run("doctor", "--weights", model / "layer_model")
        assert outcome.code == 0, outcome.out
        assert f"torch {torch.__version__}" in outcome.out
        assert "ok      layer_sd15_transparent_attn: found" in outcome.out
        missing = next(line for line in outcome.out.splitlines() if "layer_xl_fg2ble" in line)
        assert missing.startswith("absent")
        assert "layer_xl_fg2ble.safetensors" in missing.partition("->")[2]

    def test_damaged(self, run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lib_layerdiffusion.cli.commands.EMBEDDED_FOLDER", model)
        unet = next((model / "unet").glob("*.safetensors"))
        unet.write_bytes(unet.read_bytes()[:-9])
        (model / "layer_model" / "layer_sd15_transparent_attn.safetensors").write_bytes(b"")
        outcome = run("doctor", "--weights", model / "layer_model")
        assert outcome.code == 1
        broken = [line for line in outcome.out.splitlines() if line.startswith("broken")]
        assert len(broken) == 5
        assert all(" -> " in line for line in broken)


class TestProgram:
    def test_help_needs_no_heavy_import(self) -> None:
        code = (
            "import sys; from lib_layerdiffusion import cli; cli.main(['generate', '--help']);"
            "print([name for name in ('torch', 'numpy', 'PIL', 'cv2', 'diffusers') if name in sys.modules])"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert shown.endswith("[]\n")
        for flag in ("--stop-at", "--blend-prompt", "--resize-mode", "--outputs", "--batch-counts", "--foreground"):
            assert flag in shown

    def test_module_can_be_run(self) -> None:
        words = [sys.executable, "-m", "lib_layerdiffusion", "generate"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("name", ["train", "harmlessness"])
    def test_training_commands_get_their_words(self, name: str, run: Any) -> None:
        outcome = run(name, "--help")
        assert outcome.code == 0
        assert f"layerdiffusion {name}" in outcome.out

    def test_version(self, run: Any) -> None:
        assert run("--version").out.startswith("layerdiffusion ")

    def test_unexpected_error_is_one_sentence(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: object) -> int:
            raise RuntimeError("boom\nsecond line")

        monkeypatch.setattr(commands, "doctor", fail)
        outcome = run("doctor")
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == "Unexpected RuntimeError: boom; run the command again with --debug to see where.\n"

    def test_debug_shows_the_traceback(
        self, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_: object) -> int:
            raise RuntimeError("boom")

        monkeypatch.setattr(commands, "doctor", fail)
        assert run("doctor", "--debug").code == 1
        assert "Traceback" in caplog.text

    def test_missing_package_is_named(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "load_pipeline", pipelines.load_pipeline)
        monkeypatch.setitem(sys.modules, "diffusers", None)
        outcome = run.generate("a cat", "--out", tmp_path / "out")
        assert outcome.code == 2
        assert outcome.err == "The Python package diffusers is missing; install it with: pip install diffusers\n"

    def test_out_of_memory_is_a_refusal(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: object) -> int:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(commands, "doctor", fail)
        outcome = run("doctor")
        assert outcome.code == 2
        assert "--width" in outcome.err


@given(st.text())
def test_slug_is_safe_on_every_file_system(text: str) -> None:
    name = slug(text)
    assert name
    assert len(name.encode()) <= 80
    assert not set(name) & set('<>:"/\\|?* .')
    assert name == name.strip("-")
    assert name.isprintable()
