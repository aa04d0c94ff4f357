"""Paths that the system refuses, at every door that reads or writes: one sentence that names the path, exit code 2."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_layerdiffusion import cli
from lib_layerdiffusion.export import archive, ora, png, psd
from lib_layerdiffusion.export.output_folder import OutputFolder
from lib_layerdiffusion.hosts.pipelines import check_path
from lib_layerdiffusion.image_file import read_image, read_size
from lib_layerdiffusion.latent_file import LatentFile, read_latent
from lib_layerdiffusion.layers import Layer, LayerStack
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.command import train_stage
from lib_layerdiffusion.train.config import read_config
from lib_layerdiffusion.train.dataset import read_sprites
from lib_layerdiffusion.train.transparency import TransparencyConfig
from lib_layerdiffusion.weights import WeightStore

STACK = LayerStack((Layer("a", np.full((4, 4, 4), 99, np.uint8), "foreground"),), (4, 4))
LATENT = LatentFile(torch.zeros(1, 4, 8, 8), 64, 64)
FILE = "vae_transparent_encoder"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing answers

READERS: dict[str, Callable[[Path], Any]] = {
    "image": read_image,
    "size of an image": read_size,
    "latent": read_latent,
    "model": check_path,
    "weight file": lambda path: WeightStore().load(path),
    "configuration": lambda path: read_config(TransparencyConfig, path, []),
    "data set": read_sprites,
}
WRITERS: dict[str, Callable[[Path], Any]] = {
    **{f"{each.__name__} file": lambda path, each=each: each.write(STACK, path) for each in (png, psd, ora, archive)},
    "latent": LATENT.save,
}
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "output folder": lambda path: OutputFolder(path).__enter__(),
    "run": lambda path: train_stage("transparency", None, ["data='absent.zip'"], path),
    "cache": lambda path: WeightStore([], path, endpoint=NOWHERE).fetch(FILE),
}
COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "composite": lambda path, _: ["composite", str(path)],
    "composite over": lambda path, good: ["composite", str(good), "--over", str(path)],
    "composite --out": lambda path, good: ["composite", str(good), "--out", str(path)],
    "encode": lambda path, _: ["encode", str(path)],
    "decode": lambda path, _: ["decode", str(path)],
    "generate @": lambda path, _: ["generate", f"@{path}"],
    "generate --model": lambda path, _: ["generate", "a", "--model", str(path)],
    "generate --weights": lambda path, _: ["generate", "a", "--weights", str(path)],
    "generate --image": lambda path, _: ["generate", "a", "--image", str(path)],
    "demo --out": lambda path, _: ["demo", "--out", str(path)],
    "export-checkpoint": lambda path, _: ["export-checkpoint", str(path)],
    "train --config": lambda path, good: ["train", "base", "--config", str(path), "--out", str(good.with_name("run"))],
    "train --out": lambda path, _: ["train", "transparency", "--out", str(path), "data='absent.zip'"],
    "train evaluate --out": lambda path, good: ["train", "evaluate", str(good), str(good), "--out", str(path)],
}
IMPOSSIBLE = {"too long": "x" * 300, "NUL": "a\0b", "below a file": "file/a", "name too long inside": f"b/{'ü' * 200}"}


def check_sentence(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as error:
        call()
    sentence = str(error.value)
    assert sentence.endswith("."), sentence
    assert "\n" not in sentence
    assert "\0" not in sentence
    return sentence


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good image and what is in the way."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "file").write_text("in the way")
    Image.new("RGBA", (8, 8)).save(tmp_path / "good.png")
    return tmp_path


@pytest.fixture
def ordinary_rights() -> Iterator[None]:
    """Root may read and write everything; on Linux the thread can lay that right down for a while."""
    if os.name == "nt" or (os.geteuid() == 0 and sys.platform != "linux"):
        pytest.skip("this user may read and write everything")
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(version, rights) == 0
    before = rights[0]
    rights[0] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER
    assert libc.capset(version, rights) == 0
    yield
    rights[0] = before
    assert libc.capset(version, rights) == 0


@pytest.mark.parametrize("name", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("door", [*READERS, *WRITERS, *FOLDERS])
def test_impossible_names(door: str, name: str, place: Path) -> None:
    check_sentence(lambda: (READERS | WRITERS | FOLDERS)[door](place / name))


@pytest.mark.parametrize("name", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("door", COMMANDS)
def test_impossible_names_on_the_command_line(
    door: str, name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = COMMANDS[door](place / name, place / "good.png")
    run(words, capsys)
    assert not (place / "outputs").exists()


@pytest.mark.parametrize("door", [*READERS, *WRITERS, *FOLDERS])
def test_without_permission(door: str, place: Path, ordinary_rights: None) -> None:
    closed = place / "closed"
    closed.mkdir()
    (closed / "a").write_text("secret")
    (closed / "a").chmod(0)
    if door in READERS:
        check_sentence(lambda: READERS[door](closed / "a"))
    for mode in (0o555, 0):
        closed.chmod(mode)
        if door not in READERS or not mode:
            sentence = check_sentence(lambda: (READERS | WRITERS | FOLDERS)[door](closed / "b"))
            assert "Permission denied" in sentence
            assert str(closed / "b") in sentence
    closed.chmod(0o755)
    assert [path.name for path in closed.iterdir()] == ["a"]


@pytest.mark.parametrize("door", COMMANDS)
def test_without_permission_on_the_command_line(
    door: str,
    place: Path,
    ordinary_rights: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    closed = place / "closed"
    closed.mkdir(mode=0o555 if "--out" in door else 0)
    assert "ermission" in run(COMMANDS[door](closed / "b", place / "good.png"), capsys)


def test_weight_files_without_permission(place: Path, ordinary_rights: None) -> None:
    (place / f"{FILE}.safetensors").write_text("x" * 100)
    (place / f"{FILE}.safetensors").chmod(0)
    assert "Permission denied" in check_sentence(lambda: WeightStore([place]).load(FILE))
    closed = place / "closed"
    closed.mkdir(mode=0)
    assert "Permission denied" in check_sentence(lambda: WeightStore([closed]).load(FILE))


@pytest.mark.parametrize("door", [*WRITERS, "output folder", "run"])
def test_a_folder_or_file_is_in_the_way(door: str, place: Path) -> None:
    (place / "folder").mkdir()
    path = place / ("folder" if door in WRITERS else "file")
    sentence = check_sentence(lambda: (WRITERS | FOLDERS)[door](path))
    assert str(path) in sentence
    assert (place / "file").read_text() == "in the way"


@pytest.mark.parametrize("door", WRITERS)
def test_a_full_disk(door: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has a file that is always full."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("the system has no /dev/full")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r", *_: real(full, "wb") if "x" in mode else real(path, mode))
    sentence = check_sentence(lambda: WRITERS[door](place / "a"))
    assert "No space left on device): free some space" in sentence


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 1472 vs 1366"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "quota", "torch", "safetensors"],
)
def test_a_disk_that_fills_up_in_a_training(
    error: Exception, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lib_layerdiffusion.train.transparency.train", fail)
    assert "free some space" in run(["train", "transparency", "--out", str(place / "run")], capsys)
    assert not (place / "run").exists()
