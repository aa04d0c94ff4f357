"""Commands on folders: what is found there, that nothing is overwritten, and that a bad file costs no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_layerdiffusion.cli import commands
from lib_layerdiffusion.cli.files import Attempts, find_files
from lib_layerdiffusion.edges import Edges, clean_edges
from lib_layerdiffusion.image_file import ENDINGS
from lib_layerdiffusion.refusal import Refusal


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """Three good images, a cut off one, what isn't looked at, and an unfinished file of another command."""
    made = tmp_path / "in"
    made.mkdir()
    for source, name in (
        ("rgba.png", "b.png"),
        ("rgb.jpg", "c.JPG"),
        ("rgba.png", "a.png"),
        ("truncated.png", "d.png"),
    ):
        shutil.copy(pictures / source, made / name)
    (made / "notes.txt").write_text("not looked at")
    (made / ".1f.png").write_bytes(b"half")
    (made / "below.png").mkdir()
    return made


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


class TestFinding:
    def test_visible_images_by_their_names(self, folder: Path) -> None:
        assert names(find_files([folder], ENDINGS, "images")) == ["a.png", "b.png", "c.JPG", "d.png"]

    def test_numbers_in_names_count(self, tmp_path: Path) -> None:
        ordered = ["1.png", "2-10.png", "10-2.png", "10-10.png", "f.png", "f01.png", "f1.png", "f2.png", "f10.png"]
        for name in ordered:
            (tmp_path / name).touch()
        assert names(find_files([tmp_path], ENDINGS, "images")) == ordered

    def test_files_are_taken_as_they_are(self, folder: Path) -> None:
        found = find_files([folder / "notes.txt", folder, folder / "absent"], ENDINGS, "images")
        assert names(found) == ["notes.txt", "a.png", "b.png", "c.JPG", "d.png", "absent"]


class TestAttempts:
    def test_others_are_done_when_memory_is_short_for_one(self, capsys: Any) -> None:
        attempts, done = Attempts([Path("a"), Path("b"), Path("c")]), []
        for path, _ in attempts.read(str):
            with attempts.trying(path):
                if path.name == "b":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                done.append(path.name)

        assert done == ["a", "c"]
        assert capsys.readouterr().err == "b: There is not enough memory for it: make it smaller.\n"
        with pytest.raises(Refusal, match="1 of 3 failed"):
            attempts.finish()

    def test_what_nobody_expected_ends_the_command(self) -> None:
        attempts = Attempts([Path("a"), Path("b")])
        with pytest.raises(RuntimeError, match="a bug"), attempts.trying(Path("a")):
            raise RuntimeError("a bug")

    def test_what_is_said_of_a_second_item_while_it_is_made_ends_the_command(self, capsys: Any) -> None:
        attempts = Attempts([Path("1.png"), Path("2.png"), Path("3.png")])
        with pytest.raises(Refusal, match="No space"):
            for path, _ in attempts.read(str):
                with attempts.trying(path):
                    raise Refusal("No space.")
        assert (path.name, capsys.readouterr().err) == ("2.png", "1.png: No space.\n")

    def test_what_is_said_of_what_is_read_has_its_name(self, capsys: Any) -> None:
        def refuse(_: Path) -> None:
            raise Refusal("It is too large.")

        assert list(Attempts([Path("1.png"), Path("2.png")]).read(refuse)) == []
        assert capsys.readouterr().err == "1.png: It is too large.\n2.png: It is too large.\n"

    def test_the_refusal_of_a_single_item_is_the_only_sentence(self, capsys: Any) -> None:
        def refuse(_: Path) -> None:
            raise Refusal("No.")

        with pytest.raises(Refusal, match=r"^No\.$"):
            list(Attempts([Path("a")]).read(refuse))
        assert capsys.readouterr().err == ""


@pytest.mark.slow
class TestCommands:
    def test_encode_and_decode(self, folder: Path, run: Any, tmp_path: Path) -> None:
        model = ["--model", run.model, "--offline", "--out", tmp_path / "out"]
        encoded = run("encode", folder, *model)
        assert (encoded.code, names(encoded.paths)) == (2, ["a.safetensors", "b.safetensors", "c.safetensors"])
        told, closing = encoded.err.splitlines()
        assert told.startswith(f"{folder / 'd.png'} is damaged or cut off")
        assert closing.startswith("1 of 4 failed")

        (tmp_path / "out" / "bad.safetensors").write_bytes(b"")
        decoded = run("decode", tmp_path / "out", "--views", 1, *model)
        assert (decoded.code, names(decoded.paths)) == (2, ["a.png", "b.png", "c.png"])
        assert Image.open(decoded.paths[0]).size == (40, 48)
        assert "bad.safetensors" in decoded.err

    def test_a_model_that_can_not_be_loaded_is_told_once(self, folder: Path, run: Any, tmp_path: Path) -> None:
        outcome = run("encode", folder, "--model", tmp_path / "absent", "--out", tmp_path / "out")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert not (tmp_path / "out").exists()

    def test_the_model_is_loaded_once(self, folder: Path, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
        load, calls = commands.load_pipeline, []
        monkeypatch.setattr(commands, "load_pipeline", lambda *a, **b: (calls.append(a), load(*a, **b))[1])
        run("encode", folder, "--model", run.model, "--offline", "--out", tmp_path / "out")
        assert len(calls) == 1


class TestUpscale:
    def test_files_of_a_folder(self, folder: Path, run: Any, tmp_path: Path) -> None:
        words = ["upscale", folder, "--out", tmp_path / "out"]
        outcome = run(*words)
        assert (outcome.code, names(outcome.paths)) == (2, ["a-80x96.png", "b-80x96.png", "c-80x96.png"])
        (folder / "d.png").unlink()
        again = run(*words)
        assert (again.code, names(again.paths)) == (0, ["a-80x96-2.png", "b-80x96-2.png", "c-80x96-2.png"])

    def test_again_in_its_own_folder_it_takes_the_same(self, folder: Path, run: Any, caplog: Any) -> None:
        (folder / "d.png").unlink()
        Image.new("RGBA", (4, 4)).save(folder / "b-9x9.png")  # has the name of a result, not its size
        words = ["upscale", folder, "--out", folder]
        first = run(*words)
        assert run(*words, "--by", "3").code == 0
        caplog.set_level("INFO")
        again = run(*words)
        assert names(first.paths) == ["a-80x96.png", "b-80x96.png", "b-9x9-8x8.png", "c-80x96.png"]
        assert names(again.paths) == ["a-80x96-2.png", "b-80x96-2.png", "b-9x9-8x8-2.png", "c-80x96-2.png"]
        assert "a-120x144.png" in caplog.text
        named = run(*words[:-2], folder / "a-80x96.png", "--out", folder)
        assert "a-80x96-160x192.png" in names(named.paths)

    def test_too_large_is_refused_and_the_others_are_enlarged(self, folder: Path, run: Any, tmp_path: Path) -> None:
        Image.new("1", (30000, 1500)).save(folder / "d.png")
        outcome = run("upscale", folder, "--out", tmp_path / "out")
        assert (outcome.code, len(outcome.paths)) == (2, 3)
        assert f"{folder / 'd.png'} would have 60000x3000 pixels" in outcome.err


class TestEdges:
    def test_files_of_a_folder_have_the_librarys_bytes(self, folder: Path, run: Any, tmp_path: Path) -> None:
        Image.new("RGB", (9, 9)).save(folder / "c.JPG")
        soft = np.full((9, 9, 4), 60, np.uint8)
        soft[2:7, 2:7, 3] = np.arange(100, 200, 4).reshape(5, 5)
        Image.fromarray(soft).save(folder / "a.png")
        words = ["edges", folder, "--defringe", "white", "--black-point", 0.1, "--choke", 0.5, "--out", tmp_path]
        outcome = run(*words)
        assert (outcome.code, names(outcome.paths)) == (2, ["a-edges.png", "b-edges.png"])
        opaque, damaged, closing = outcome.err.splitlines()
        assert (
            opaque == f"{folder / 'c.JPG'} has no transparency, so it has no edges to clean: name a picture with alpha."
        )
        assert damaged.startswith(f"{folder / 'd.png'} is damaged or cut off")
        assert closing.startswith("2 of 4 failed")
        wanted = clean_edges(soft, Edges(defringe="white", black_point=0.1, choke=0.5))
        assert np.array_equal(np.asarray(Image.open(outcome.paths[0])), wanted)
        assert not np.array_equal(wanted, soft)
        before = outcome.paths[0].read_bytes()
        assert names(run(*words).paths) == ["a-edges-2.png", "b-edges-2.png"]
        assert outcome.paths[0].read_bytes() == before

    def test_again_in_its_own_folder_it_takes_the_same(self, folder: Path, run: Any, caplog: Any) -> None:
        for name in ("c.JPG", "d.png"):
            (folder / name).unlink()
        shutil.copy(folder / "a.png", folder / "soft-edges.png")  # not made of another file: soft.png isn't here
        words = ["edges", folder, "--feather", 2, "--out", folder]
        assert names(run(*words).paths) == ["a-edges.png", "b-edges.png", "soft-edges-edges.png"]
        caplog.set_level("INFO")
        assert names(run(*words).paths) == ["a-edges-2.png", "b-edges-2.png", "soft-edges-edges-2.png"]
        assert "Left out, since an earlier run of this command wrote it" in caplog.text
        named = run("edges", folder / "a-edges.png", "--gamma", 2, "--out", folder)
        assert names(named.paths) == ["a-edges-edges.png"]


class TestComposite:
    def test_each_image_of_a_folder(self, folder: Path, run: Any, tmp_path: Path) -> None:
        outcome = run("composite", folder, "--over", "white", "--out", tmp_path / "out")
        assert outcome.code == 2
        assert names(outcome.paths) == ["a-composite.png", "b-composite.png", "c-composite.png"]

    def test_images_of_one_name_with_one_that_all_share(self, folder: Path, run: Any, tmp_path: Path) -> None:
        backgrounds = tmp_path / "backgrounds"
        backgrounds.mkdir()
        for number, name in enumerate(("a.jpg", "b.png", "d.png")):
            Image.new("RGB", (40, 48), (10 * number, 0, 0)).save(backgrounds / name, quality=100)
        frame = np.zeros((48, 40, 4), np.uint8)
        frame[0] = (0, 0, 250, 255)
        Image.fromarray(frame).save(tmp_path / "frame.png")

        outcome = run("composite", backgrounds, folder, tmp_path / "frame.png", "--out", tmp_path / "out")

        assert names(outcome.paths) == ["a-frame-composite.png", "b-frame-composite.png"]
        pixels = np.asarray(Image.open(outcome.paths[1]))[..., :3]
        assert [tuple(pixels[y, x]) for y, x in ((0, 10), (10, 10), (47, 0))] == [
            (0, 0, 250),
            (200, 40, 90),
            (10, 0, 0),
        ]
        assert outcome.code == 2
        first, second, closing = outcome.err.splitlines()
        assert str(backgrounds / "c.JPG") in first  # there is none
        assert str(folder / "d.png") in second  # cut off
        assert closing.startswith("2 of 4 failed")

    def test_again_in_its_own_folder_it_takes_the_same(self, folder: Path, run: Any, tmp_path: Path) -> None:
        (folder / "d.png").unlink()
        shutil.copy(folder / "a.png", tmp_path / "frame.png")
        words = ["composite", folder, tmp_path / "frame.png", "--out", folder]
        assert run(*words).code == 0
        again = run(*words)
        assert names(again.paths) == [f"{stem}-frame-composite-2.png" for stem in "abc"]
        named = run("composite", folder / "a-frame-composite.png", "--out", folder)
        assert names(named.paths) == ["a-frame-composite-composite.png"]

    def test_two_of_one_name_in_a_folder_are_refused(self, folder: Path, run: Any, tmp_path: Path) -> None:
        shutil.copy(folder / "c.JPG", folder / "a.jpg")
        outcome = run("composite", folder, "--out", tmp_path / "out")
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert f"Two images in {folder} are called a" in outcome.err


@pytest.mark.parametrize("command", ["atlas", "animate"])
def test_one_file_of_all_is_made_of_all_or_not(command: str, folder: Path, run: Any, tmp_path: Path) -> None:
    (folder / "e.png").write_text("not an image")
    outcome = run(command, folder, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert [name in line for name, line in zip(("d.png", "e.png", "2 of 5"), outcome.err.splitlines(), strict=True)]
    assert not (tmp_path / "out").exists()

    (folder / "d.png").unlink()
    (folder / "e.png").unlink()
    assert run(command, folder, "--out", tmp_path / "out").code == 0
