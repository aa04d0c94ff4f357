"""Everything that a user can get wrong: one sentence on stderr, exit code 2, and nothing left in the output folder."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_layerdiffusion.cli import commands
from lib_layerdiffusion.latent_file import FORMAT

ATTENTION = "layer_sd15_transparent_attn.safetensors"
DECODER = "layer_sd15_vae_transparent_decoder.safetensors"
ENCODER = "layer_sd15_vae_transparent_encoder.safetensors"
GENERATE = ["generate", "a cat", "--model", "MODEL", "--steps", "1", "--views", "1", "--offline", "--device", "cpu"]

SCENE = ["scene", "--background", "a table", "--foregrounds", "a cat", "--model", "TMP/nowhere"]

# What is wrong, the words, and what the sentence must name. Capitals stand for what the fixtures make.
ARGUMENTS: list[tuple[str, list[str], str]] = [
    ("no command", [], "COMMAND"),
    ("unknown command", ["paint"], "paint"),
    ("no prompt", ["generate"], "There is no prompt"),
    ("unknown option", [*GENERATE, "--tiles", "x"], "--tiles"),
    ("a value that argparse loses", [*GENERATE, "--seed=--"], "Argument --seed: '--' is not a value"),
    ("an output folder that argparse loses", ["composite", "PICTURES/rgba.png", "--out=--"], "Argument --out"),
    ("more steps than there are timesteps", [*GENERATE, "--steps", "1001"], "--steps"),
    ("unknown sampler", [*GENERATE, "--sampler", "Eular"], "did you mean 'Euler'"),
    ("unknown schedule type", [*GENERATE, "--scheduler", "x"], "schedule type 'x'"),
    ("file of prompts missing", ["generate", "@TMP/nowhere.txt"], "nowhere.txt"),
    ("file of prompts is binary", ["generate", "@PICTURES/rgba.png"], "UTF-8"),
    ("half a character in a prompt", ["generate", "caf\udce9"], "The prompt has half of a character at position 4"),
    ("half a character in the negative", [*GENERATE, "--negative", "\udce9"], "half of a character"),
    ("weight in a prompt too large", [*GENERATE[:1], "(a:9999)", *GENERATE[2:]], "9999"),
    ("model's name too long", [*GENERATE, "--model", "m" * 300], "too long"),
    ("model with NUL", [*GENERATE, "--model", "a\0b"], "a NUL in the name"),
    ("model of nobody", [*GENERATE, "--model", "~nobody-there/x"], "nobody-there"),
    ("weights' name too long", [*GENERATE, "--weights", "w" * 300], "too long"),
    ("given image's name too long", [*GENERATE, "--foreground", "f" * 300], "too long"),
    ("background's name too long", ["composite", "PICTURES/rgba.png", "--over", "o" * 300], "too long"),
    ("output folder's name too long", ["composite", "PICTURES/rgba.png", "--out", "o" * 300], "too long"),
    ("output folder with NUL", ["composite", "PICTURES/rgba.png", "--out", "a\0b"], "NUL"),
    ("unknown mode", [*GENERATE, "--mode", "foregroundd"], "foregroundd"),
    ("mode of the other family", [*GENERATE, "--mode", "foreground_conv"], "SDXL"),
    ("batch 0", [*GENERATE, "--batch", "0"], "--batch"),
    ("negative batch", [*GENERATE, "--batch", "-2"], "--batch"),
    ("batch in words", [*GENERATE, "--batch", "two"], "two"),
    ("negative seed", [*GENERATE, "--seed", "-1"], "--seed"),
    ("seed too large", [*GENERATE, "--seed", "4294967296"], "4294967295"),
    ("seed with a fraction", [*GENERATE, "--seed", "1.5"], "1.5"),
    ("no steps", [*GENERATE, "--steps", "0"], "--steps"),
    ("no width", [*GENERATE, "--width", "0"], "--width"),
    ("too narrow", [*GENERATE, "--width", "32"], "64"),
    ("too high", [*GENERATE, "--height", "99999"], "--height"),
    ("guidance 0", [*GENERATE, "--cfg", "0"], "--cfg"),
    ("guidance NaN", [*GENERATE, "--cfg", "nan"], "--cfg"),
    ("weight 3", [*GENERATE, "--weight", "3"], "--weight"),
    ("weight NaN", [*GENERATE, "--weight", "nan"], "--weight"),
    ("weight empty", [*GENERATE, "--weight", ""], "--weight"),
    ("start after stop", [*GENERATE, "--start-at", "0.8", "--stop-at", "0.2"], "start"),
    ("prompt among the outputs", ["generate", "--outputs", "rgba", "a cat"], "'a cat'"),
    ("output that the mode doesn't make", [*GENERATE, "--outputs", "background"], "rgba, checker, over_black"),
    ("preview over no image", [*GENERATE, "--outputs", "rgba", "over_image"], "give preview_image"),
    ("no such preview image", [*GENERATE, "--preview-image", "TMP/nowhere.png"], "nowhere.png"),
    ("black point above white", [*GENERATE, "--black-point", "0.6", "--white-point", "0.5"], "black_point 0.6"),
    ("no such resize mode", [*GENERATE, "--resize-mode", "bend"], "--resize-mode"),
    ("batch of images", [*GENERATE, "--mode", "together", "--batch", "4", "--batch-counts", "images"], "use 6"),
    ("three views", [*GENERATE, "--views", "3"], "--views"),
    ("no such device", [*GENERATE, "--device", "toaster"], "toaster"),
    ("no such model", [*GENERATE, "--model", "TMP/nowhere"], "nowhere"),
    ("model folder without a model", [*GENERATE, "--model", "PICTURES"], "model_index.json"),
    ("checkpoint is a pickle", [*GENERATE, "--model", "TMP/pickle.ckpt"], "pickle"),
    ("checkpoint is a renamed pickle", [*GENERATE, "--model", "TMP/pickle.safetensors"], "pickle.safetensors"),
    ("checkpoint is cut off", [*GENERATE, "--model", "TMP/cut.safetensors"], "cut.safetensors"),
    ("checkpoint is empty", [*GENERATE, "--model", "TMP/empty.safetensors"], "empty.safetensors"),
    ("checkpoint is a picture", [*GENERATE, "--model", "PICTURES/rgba.png"], "rgba.png"),
    ("checkpoint is a layer file", [*GENERATE, "--model", f"MODEL/layer_model/{ENCODER}"], ENCODER),
    ("no such weights folder", [*GENERATE, "--weights", "TMP/nowhere"], "nowhere"),
    ("file of a mode missing offline", [*GENERATE, "--mode", "together"], "layer_sd15_joint.safetensors"),
    ("no background given", [*GENERATE, "--mode", "background_to_foreground"], "background"),
    ("given image missing", [*GENERATE, "--foreground", "TMP/nowhere.png"], "nowhere.png"),
    ("given image cut off", [*GENERATE, "--foreground", "PICTURES/truncated.png"], "truncated.png"),
    ("image missing", ["encode", "TMP/nowhere.png"], "nowhere.png"),
    ("image is empty", ["encode", "PICTURES/empty.png"], "empty.png"),
    ("image is cut off", ["encode", "PICTURES/truncated.png"], "truncated.png"),
    ("image is a text", ["encode", "PICTURES/text.png"], "text.png"),
    ("image is a folder", ["encode", "PICTURES/folder.png"], "folder.png"),
    ("image claims a huge size", ["encode", "PICTURES/huge.png"], "huge.png"),
    ("folder without images", ["upscale", "PICTURES/folder.png"], "There are no images in the folder"),
    ("no option for edges", ["edges", "PICTURES/rgba.png"], "give one or more of --defringe, --black-point"),
    ("edges that change nothing", ["edges", "PICTURES/rgba.png", "--gamma", "1"], "No option says what to do"),
    ("edges of an opaque picture", ["edges", "PICTURES/rgb.jpg", "--choke", "1"], "rgb.jpg has no transparency"),
    ("edges out of bounds", ["edges", "PICTURES/rgba.png", "--choke", "65"], "choke must be a number from -64 to 64"),
    ("edges of no colour", ["edges", "PICTURES/rgba.png", "--defringe", "greyish"], "greyish"),
    ("decoded with a wrong point", ["decode", "x.safetensors", "--black-point", "1"], "must be below white_point"),
    ("scene with a wrong point", [*SCENE, "--black-point", "1"], "must be below white_point"),
    ("latent missing", ["decode", "TMP/nowhere.safetensors"], "nowhere"),
    ("latent is a folder", ["decode", "PICTURES"], "pictures"),
    ("latent is empty", ["decode", "TMP/empty.safetensors"], "empty.safetensors"),
    ("latent is cut off", ["decode", "TMP/cut.safetensors"], "cut.safetensors"),
    ("latent is a pickle", ["decode", "TMP/pickle.safetensors"], "pickle"),
    ("latent is a picture", ["decode", "PICTURES/rgba.png"], "rgba.png"),
    ("latent is a weight file", ["decode", f"MODEL/layer_model/{ENCODER}"], ENCODER),
    ("latent is NaN", ["decode", "TMP/nan.safetensors"], "NaN"),
    ("latent has 3 channels", ["decode", "TMP/channels.safetensors"], "(1, 3, 8, 8)"),
    ("latent has no size", ["decode", "TMP/flat.safetensors"], "(1, 4, 0, 8)"),
    ("layers of two sizes", ["composite", "PICTURES/rgba.png", "PICTURES/1x1.png"], "1x1"),
    ("layer is a text", ["composite", "PICTURES/text.png"], "text.png"),
    ("no such colour", ["composite", "PICTURES/rgba.png", "--over", "#12"], "#12"),
    ("no such background", ["composite", "PICTURES/rgba.png", "--over", "TMP/nowhere.png"], "nowhere.png"),
    ("output folder is a file", ["composite", "PICTURES/rgba.png", "--out", "TMP/file"], "file"),
    ("output folder below a file", [*GENERATE, "--out", "TMP/file/below"], "below"),
]


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty.safetensors").touch()
    for name in ("pickle.ckpt", "pickle.safetensors"):
        torch.save({"latent": torch.zeros(1, 4, 8, 8)}, tmp_path / name)
    about = {"format": FORMAT}
    save_file({"latent": torch.full((1, 4, 8, 8), float("nan"))}, tmp_path / "nan.safetensors", about)
    save_file({"latent": torch.zeros(1, 3, 8, 8)}, tmp_path / "channels.safetensors", about)
    save_file({"latent": torch.zeros(1, 4, 0, 8)}, tmp_path / "flat.safetensors", about)
    save_file({"latent": torch.zeros(1, 4, 8, 8)}, tmp_path / "cut.safetensors", about)
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    return tmp_path


def check_refused(outcome: Any, names: str, out: Path) -> None:
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert names in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.endswith(".\n")
    assert "Traceback" not in outcome.err
    assert not out.exists(), list(out.iterdir())


@pytest.mark.parametrize(("words", "names"), [row[1:] for row in ARGUMENTS], ids=[row[0] for row in ARGUMENTS])
def test_bad_arguments(words: list[str], names: str, run: Any, pictures: Path, bad_files: Path) -> None:
    stand_ins = {"MODEL": run.model, "PICTURES": pictures, "TMP": bad_files}
    for name, path in stand_ins.items():
        words = [word.replace(name, str(path), 1) if word.lstrip("@").startswith(name) else word for word in words]
    out = bad_files / "out"
    if words and words[0] in ("encode", "decode"):
        words = [*words, "--model", str(run.model), "--offline"]
    if len(words) > 1 and "--out" not in words and words[0] != "paint":
        words = [*words, "--out", str(out)]
    check_refused(run(*words), names, out)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def make_pickle(path: Path) -> None:
    torch.save({"hookers.layers.0": torch.zeros(1)}, path)


def make_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"hookers.layers.0": 1}))


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>login</html>")


def make_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def rename_key(path: Path) -> None:
    state = load_file(path)
    state["renamed"] = state.pop(next(iter(state)))
    path.unlink()
    save_file(state, path)


def drop_key(path: Path) -> None:
    state = load_file(path)
    state.pop(sorted(state)[-1])
    path.unlink()
    save_file(state, path)


def widen(path: Path) -> None:
    state = {key: torch.zeros([2 * side for side in value.shape]) for key, value in load_file(path).items()}
    path.unlink()
    save_file(state, path)


def take_other_family(path: Path) -> None:
    key = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight::lora::"
    save_file({f"{key}0": torch.zeros(640, 4), f"{key}1": torch.zeros(4, 640)}, path)


def take_encoder(path: Path) -> None:
    shutil.copy(path.with_name(ENCODER), path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", [ATTENTION, DECODER])
@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        make_pickle,
        make_plain_pickle,
        make_empty,
        make_web_page,
        make_pointer,
        rename_key,
        drop_key,
        widen,
        take_other_family,
        take_encoder,
        remove,
    ],
)
def test_bad_weight_files(
    spoil: Callable[[Path], None],
    name: str,
    run: Any,
    bare_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model has no intact files of its own, which would step in for the spoilt one."""
    monkeypatch.setattr(commands, "cache_folder", lambda: tmp_path / "cache")
    layer_model = tmp_path / "layer_model"
    shutil.copytree(run.model / "layer_model", layer_model)
    spoil(layer_model / name)
    out = tmp_path / "out"
    words = ["--model", bare_model, "--weights", layer_model, "--steps", 1, "--views", 1, "--offline", "--out", out]
    outcome = run("generate", "a cat", *words)
    check_refused(outcome, "attention-sharing file" if "attention-sharing file" in outcome.err else name, out)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_model_folder_with_a_broken_part(part: str, run: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    truncate(next((model / part).glob("*.safetensors")))
    words = ["generate", "a cat", "--model", model, "--offline", "--out", tmp_path / "out"]
    check_refused(run(*words), str(model), tmp_path / "out")


def test_model_index_is_not_json(run: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    (model / "model_index.json").write_text("{")
    check_refused(run("generate", "a cat", "--model", model, "--out", tmp_path / "out"), str(model), tmp_path / "out")


def test_output_folder_is_read_only(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the system's answer is simulated."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    out = tmp_path / "out"
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    check_refused(run.generate("a cat", "--out", out), str(out), out)


def test_disk_is_full(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(image: Image.Image, file: Any, **_: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    out = tmp_path / "out"
    check_refused(run.generate("a cat", "--out", out), "space", out)
