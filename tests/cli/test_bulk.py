"""Tables of prompts: what is made of them, each picture once, also when processes are killed."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from lib_layerdiffusion.cli import bulk, main
from lib_layerdiffusion.cli.destination import Folder
from lib_layerdiffusion.cli.table import Job, plan_jobs, read_common, read_table
from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.refusal import Refusal
from tests.cli.making import (
    FAST,
    PATIENCE,
    check_all,
    find_descendants,
    kill_one_of_two,
    start,
    wait_for,
    wait_for_end,
)

SETTINGS = {"negative_prompt": "", "steps": 20, "cfg": 3.0, "width": None, "height": None}
MODEL = {"name": "embedded", "weights": None, "sampler": None, "scheduler": "Automatic"}
COMMON = read_common(None, LayerOptions(), SETTINGS, MODEL)


class TestTables:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", b'\xef\xbb\xbfprompt,seed,width\n"apple, red",3,64\nstar,,\n'),
            ("a.jsonl", b'{"prompt": "apple, red", "seed": 3, "width": 64}\n\n{"prompt": "star", "seed": null}\n'),
            ("Standard input", b'{"prompt": "apple, red", "seed": "3", "width": "64"}\n{"prompt": "star"}'),
        ],
    )
    def test_forms_say_the_same(self, name: str, content: bytes) -> None:
        jobs = plan_jobs(read_table(name, content), COMMON)

        assert [(job.prompt, job.seed, job.settings["width"]) for job in jobs] == [
            ("apple, red", 3, 64),
            ("star", 0, None),
        ]

    def test_empty_columns_of_a_spreadsheet_are_nothing(self) -> None:
        assert read_table("a.csv", b"prompt,,\na,,\n") == [{"prompt": "a"}]

    def test_text_has_a_prompt_on_each_line(self) -> None:
        rows = read_table("a.txt", "red apple\n\n  {grün}  \n".encode())
        assert rows == [{"prompt": "red apple"}, {"prompt": "{grün}"}]

    def test_row_has_its_own_mode_and_prompts_for_layers(self) -> None:
        row = {"prompt": "a", "mode": "together", "background_prompt": "sea", "outputs": "rgba+psd", "negative": "blur"}
        (job,) = plan_jobs([row], COMMON)

        assert job.options["mode"] == "together"
        assert (job.options["background_prompt"], job.options["outputs"]) == ("sea", ["rgba", "psd"])
        assert job.settings["negative_prompt"] == "blur"

    def test_number_counts_seeds_up(self) -> None:
        jobs = plan_jobs([{"prompt": "a", "seed": 2**32 - 1, "number": 2, "name": "My hero"}, {"prompt": "b"}], COMMON)

        assert [(job.name, job.seed) for job in jobs] == [
            ("my-hero-01", 2**32 - 1),
            ("my-hero-02", 0),
            ("00002-0-b", 0),
        ]

    def test_template(self) -> None:
        (job,) = plan_jobs([{"prompt": "a cat", "seed": 7}], COMMON, "{mode}_{seed:04d}_{prompt}")
        assert job.name == "foreground_0007_a-cat"

    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            ([{"prompt": "a"}, {"seed": 1}], "Row 2 can't be made: It has no prompt"),
            ([{"prompt": "a", "sede": 1}], "There is no column 'sede': did you mean 'seed'"),
            ([{"prompt": "a", "seed": 1.5}], "seed must be a whole number from 0 to"),
            ([{"prompt": "a", "steps": "1e999"}], "steps must be a whole number from 1 to 1000, not '1e999'"),
            ([{"prompt": "a", "cfg": True}], "cfg must be a number from 1 to 30"),
            ([{"prompt": "a", "width": [64]}], "width must be a whole number"),
            ([{"prompt": "a", "mode": "forground"}], "There is no layer mode 'forground'"),
            ([{"prompt": 3}], "prompt must be text, not 3"),
            ([{"prompt": "a", "outputs": "rgba+over_image"}], "over_image can't be made for a table: ask for over_bl"),
            ([{"prompt": "a", "preview_image": "a.png"}], "There is no column 'preview_image'"),
            ([{"prompt": "a", "start_at": 0.5, "stop_at": "0.5"}], "Row 1 can't be made: start_at 0.5 is not before"),
            ([{"prompt": "a", "defringe": "greyish"}], "There is no colour 'greyish'"),
            ([{"prompt": "a", "name": "x"}, {"prompt": "b", "name": "X"}], "Rows 1 and 2 would both have the name 'x'"),
        ],
    )
    def test_rows_that_can_not_be_made_are_named(self, rows: list[dict[str, Any]], sentence: str) -> None:
        with pytest.raises(Refusal, match=sentence):
            plan_jobs(rows, COMMON)

    @pytest.mark.parametrize(
        ("first", "second", "file"),
        [
            ({"name": "a", "outputs": "rgba+checker"}, {"name": "a checker"}, "a-checker.png"),
            ({"name": "a checker"}, {"name": "a", "outputs": "checker"}, "a-checker.png"),
            ({"name": "a", "mode": "together", "outputs": "blend"}, {"name": "a blend"}, "a-blend.png"),
            ({"name": "λόγος", "outputs": "psd"}, {"name": "λόγοσ", "outputs": "psd"}, "λόγοσ"),
        ],
    )
    def test_files_of_two_rows_never_share_a_name(self, first: Any, second: Any, file: str) -> None:
        with pytest.raises(Refusal, match=f"Rows 1 and 2 would both have the name '{file}': give a row a name"):
            plan_jobs([{"prompt": "a", **first}, {"prompt": "b", **second}], COMMON)

    def test_files_of_other_endings_and_outputs_do_not_meet(self) -> None:
        rows = [
            {"prompt": "a", "name": "a", "outputs": "psd+ora+rgba"},
            {"prompt": "b", "name": "a checker", "outputs": "checker"},
        ]
        assert len(plan_jobs(rows, COMMON)) == 2

    def test_sets_of_one_row_never_share_a_name(self) -> None:
        with pytest.raises(Refusal, match="Two sets of row 1 would both have the name '00001'"):
            plan_jobs([{"prompt": "a", "number": 2}], COMMON, "{row:05d}")

    def test_a_name_is_as_long_as_file_systems_take(self) -> None:
        row = {"prompt": "a", "outputs": "rgba+checker"}
        assert len(plan_jobs([row], COMMON, "é" * 121 + "x")) == 1  # with -checker.png 255 bytes
        with pytest.raises(Refusal, match="A file of row 1 would have a name of 256 bytes, more than the 255"):
            plan_jobs([row], COMMON, "é" * 122)

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("a.csv", b"prompt\n", "a.csv has no prompts"),
            ("a.csv", b"prompt\na,b\n", "more cells than its heading"),
            ("a.csv", b"prompt,seed, prompt\na,1,b\n", "a.csv has the column 'prompt' twice: rename or delete one"),
            ("a.jsonl", b'{"prompt": "a"}\n["b"]\n', "Line 2 of a.jsonl isn't a JSON object"),
            ("a.jsonl", b"[" * 9999, "Line 1 of a.jsonl isn't a JSON object"),
            ("a.txt", b"\xff\xfe", "isn't a text in UTF-8"),
        ],
    )
    def test_tables_that_can_not_be_read_are_refused(self, name: str, content: bytes, sentence: str) -> None:
        with pytest.raises(Refusal, match=sentence):
            read_table(name, content)

    def test_a_table_that_is_not_there(self, tmp_path: Path, capsys: Any) -> None:
        path = tmp_path / "none.csv"
        assert main(["generate", "--prompts", str(path)]) == 2
        told = (
            f"There is no file {path} of prompts: name a .csv, .jsonl or text file after --prompts, or - for standard"
        )
        assert capsys.readouterr().err == f"{told} input.\n"

    @pytest.mark.parametrize("template", ["", "../{seed}", "{colour}", "{seed", "{seed:q}", "a/b", "{0}"])
    def test_templates_that_make_no_name_are_refused(self, template: str) -> None:
        with pytest.raises(Refusal, match="--name"):
            plan_jobs([{"prompt": "a"}], COMMON, template)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the prompt in place of a picture, without any model."""

    def make(group: Sequence[Job], model: bulk.Model, out: Folder) -> list[dict[str, Any]]:
        def write(job: Job) -> dict[str, Any]:
            return out.write(f"{job.name}.png", lambda path: path.write_text(job.prompt) and None)

        return [{**asdict(job), "key": job.key, "files": [write(job)], "time": "now"} for job in group]

    monkeypatch.setattr(bulk, "_make", make)


class Sprites:
    """A table of the sets a and b, the folder for them, and what the command says about them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self.table, self.capsys = folder / "out", folder / "t.csv", capsys
        self.manifest = self.out / "manifest.jsonl"
        self.table.write_text("prompt,name\nstar,a\nfrog,b\n")

    def make(self, *words: object) -> tuple[int, set[str], str]:
        """Exit code, the sets that were made, and what was told."""
        code = main(["generate", "--prompts", str(self.table), "--out", str(self.out), *map(str, words)])
        captured = self.capsys.readouterr()
        return code, {Path(line).stem for line in captured.out.splitlines()}, captured.err

    def names(self) -> list[str]:
        return [json.loads(line)["name"] for line in self.manifest.read_text("utf-8").splitlines()]


@pytest.fixture
def sprites(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sprites:
    return Sprites(tmp_path, capsys)


class TestManifest:
    @pytest.mark.parametrize("flag", ["--sampler", "--scheduler", "--weights", "--model"])
    def test_another_model_or_sampler_is_refused(self, flag: str, sprites: Sprites, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").touch()
        values = {"--sampler": "Euler", "--scheduler": "Karras"}
        assert sprites.make()[:2] == (0, {"a", "b"})

        code, made, told = sprites.make(flag, values.get(flag, tmp_path))

        assert (code, made) == (2, set())
        assert "has 'a' of another prompt, seed, setting, model or sampler" in told

    def test_lines_say_what_made_the_pictures(self, sprites: Sprites) -> None:
        assert sprites.make("--sampler", "euler a karras")[0] == 0

        (line, _) = map(json.loads, sprites.manifest.read_text("utf-8").splitlines())
        model = {"name": "embedded", "weights": None, "sampler": "Euler a", "scheduler": "Karras"}
        assert line["model"] == model
        assert sprites.make("--sampler", "Euler a", "--scheduler", "Karras")[:2] == (0, set())

    @pytest.mark.parametrize(
        ("damage", "lines"),
        [
            (lambda first: b'{"foo": 1}\n' + first, 1),
            (lambda first: b"[]\n1\n" + first, 2),
            (lambda first: b'{"name": ["a"], "key": "k", "files": []}\n' + first, 1),
            (lambda first: b'{"name": "c", "key": "k", "files": [{"name": 1}]}\n' + first, 1),
            (lambda first: b"\n\r\n" + first, 0),
        ],
    )
    def test_lines_that_can_not_be_read_cost_no_other(
        self, damage: Callable[[bytes], bytes], lines: int, sprites: Sprites, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert sprites.make()[0] == 0
        whole = sprites.manifest.read_bytes()
        sprites.manifest.write_bytes(damage(whole))

        assert sprites.make()[:2] == (0, set())

        assert sprites.manifest.read_bytes() == whole
        told = f"{lines} of the lines in the manifest of {sprites.out} can't be read: their pictures are made again."
        assert [record.message for record in caplog.records] == [told] * bool(lines)

    def test_the_set_of_an_overwritten_line_is_made_again(
        self, sprites: Sprites, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert sprites.make()[0] == 0
        with sprites.manifest.open("r+b") as manifest:
            manifest.seek(5)
            manifest.write(b"\xff\0\r")

        assert sprites.make()[:2] == (0, {"a"})

        assert sprites.names() == ["b", "a"]
        assert "1 of the lines in the manifest" in caplog.text

    def test_a_set_that_is_made_again_has_one_line(self, sprites: Sprites) -> None:
        assert sprites.make()[0] == 0
        for content in (b"damaged", None):
            if content:
                (sprites.out / "a.png").write_bytes(content)
            else:
                (sprites.out / "a.png").unlink()
            assert sprites.make()[:2] == (0, {"a"})
            assert sprites.names() == ["b", "a"]

    def test_earlier_lines_of_a_set_are_taken_out(self, sprites: Sprites) -> None:
        assert sprites.make()[0] == 0
        first, second = sprites.manifest.read_bytes().splitlines(keepends=True)
        sprites.manifest.write_bytes(first.replace(b'"now"', b'"before"') + second + first)
        assert sprites.make()[:2] == (0, set())
        assert sprites.manifest.read_bytes() == second + first

    def test_lines_of_another_table_stay(self, sprites: Sprites) -> None:
        assert sprites.make()[0] == 0
        (sprites.out / "a.png").unlink()
        sprites.table.write_text("prompt,name\nstar,c\n")
        assert sprites.make()[:2] == (0, {"c"})
        assert sprites.names() == ["a", "b", "c"]

    def test_a_manifest_that_can_not_be_written_anew_stays(
        self, sprites: Sprites, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert sprites.make()[0] == 0
        whole = sprites.manifest.read_bytes()
        (sprites.out / "a.png").unlink()

        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        code, made, told = sprites.make()
        assert (code, made) == (2, set())
        assert f"{sprites.manifest} can't be used (No space left on device)" in told
        assert sprites.manifest.read_bytes() == whole

    def test_lines_of_an_earlier_version_are_refused(self, sprites: Sprites) -> None:
        assert sprites.make()[0] == 0
        lines = list(map(json.loads, sprites.manifest.read_text("utf-8").splitlines()))
        for line in lines:
            del line["model"]
            line["key"] = "0" * 64  # of the fields without the model
        sprites.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

        code, _, told = sprites.make()

        assert code == 2
        assert "or of an earlier version" in told


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    words = ("red apple", "star", "frog")
    path.write_text("prompt,seed\n" + "".join(f"{words[n % 3]},{n}\n" for n in range(12)), "utf-8")
    return path


NAMES = [f"{n + 1:05d}-{n}-{('red-apple', 'star', 'frog')[n % 3]}" for n in range(12)]


@pytest.mark.slow
class TestMaking:
    def test_pictures_are_those_of_generate(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "t.jsonl").write_text('{"prompt": "star", "seed": 4, "name": "s"}\n')

        assert main(["generate", "--prompts", str(tmp_path / "t.jsonl"), *FAST, "--out", str(tmp_path / "a")]) == 0
        assert main(["generate", "star", "--seed", "4", *FAST, "--out", str(tmp_path / "b")]) == 0

        assert (tmp_path / "a" / "s.png").read_bytes() == (tmp_path / "b" / "4-star.png").read_bytes()
        assert str(tmp_path / "a" / "s.png") in capsys.readouterr().out.split()

    def test_only_what_is_missing_is_made_again(self, table: Path, tmp_path: Path, capsys: Any) -> None:
        words = ["generate", "--prompts", str(table), *FAST, "--batch", "5", "--out", str(tmp_path / "out")]
        assert main(words) == 0
        check_all(Folder(tmp_path / "out"), NAMES)
        first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
        capsys.readouterr()

        (tmp_path / "out" / f"{NAMES[2]}.png").unlink()
        (tmp_path / "out" / f"{NAMES[5]}.png").write_bytes(b"damaged")
        content = (tmp_path / "out" / "manifest.jsonl").read_bytes()
        (tmp_path / "out" / "manifest.jsonl").write_bytes(content[:-40])  # killed while it wrote the last line
        assert main(words) == 0

        assert {Path(line).stem for line in capsys.readouterr().out.split()} == {NAMES[2], NAMES[5], NAMES[11]}
        again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
        assert {name for name, when in again.items() if first[name] != when} == {f"{NAMES[n]}.png" for n in (2, 5, 11)}
        check_all(Folder(tmp_path / "out"), NAMES)

    def test_other_settings_under_the_same_names_are_refused(self, table: Path, tmp_path: Path, capsys: Any) -> None:
        words = ["generate", "--prompts", str(table), "--views", "1", "--batch", "12", "--out", str(tmp_path / "out")]
        assert main([*words, "--steps", "1"]) == 0
        assert main([*words, "--steps", "2"]) == 2
        assert "of another prompt, seed, setting, model or sampler" in capsys.readouterr().err

    def test_prompts_and_images_are_not_mixed_with_a_table(self, table: Path, capsys: Any) -> None:
        assert main(["generate", "star", "--prompts", str(table)]) == 2
        assert "Prompts are given twice" in capsys.readouterr().err
        assert main(["generate"]) == 2
        assert "There is no prompt" in capsys.readouterr().err

    def test_standard_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"star\n")))
        assert main(["generate", "--prompts", "-", *FAST, "--out", str(tmp_path / "out")]) == 0
        check_all(Folder(tmp_path / "out"), ["00001-0-star"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes' numbers from /proc")
class TestKilled:
    def test_a_worker(self, table: Path, tmp_path: Path) -> None:
        out = Folder(tmp_path / "out")
        process = start(table, out.path, "--workers", 2)
        wait_for(2, out, process)
        kill_one_of_two(process, "spawn_main")

        assert process.wait(PATIENCE) == 0
        check_all(out, NAMES)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_whole_command(self, workers: int, table: Path, tmp_path: Path) -> None:
        out = Folder(tmp_path / "out")
        process = start(table, out.path, "--workers", workers)
        wait_for(3, out, process)
        descendants = find_descendants(process.pid)
        process.kill()
        process.wait()

        wait_for_end(descendants)  # they end with it, and write nothing more
        assert start(table, out.path).wait(PATIENCE) == 0
        check_all(out, NAMES)

    def test_ctrl_c(self, table: Path, tmp_path: Path, capfd: Any) -> None:
        out = Folder(tmp_path / "out")
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, children ignore it too
        process = start(table, out.path, "--workers", 2)
        signal.signal(signal.SIGINT, before)
        wait_for(1, out, process)
        descendants = find_descendants(process.pid)
        for pid in (process.pid, *descendants):  # as a terminal does
            os.kill(pid, signal.SIGINT)

        assert process.wait(PATIENCE) == 130
        assert "Interrupted; every file that was written is whole." in capfd.readouterr().err
        wait_for_end(descendants)
        assert not [*out.path.glob(".*"), *out.path.glob("*.lock")]
        assert start(table, out.path).wait(PATIENCE) == 0
        check_all(out, NAMES)


def test_jobs_of_equal_settings_are_sampled_together() -> None:
    rows = [{"prompt": f"p{n}", "seed": n, "steps": 5 if n == 2 else 6} for n in range(6)]
    groups = list(bulk._group(plan_jobs(rows, COMMON), 3))  # pyright: ignore[reportPrivateUsage]

    assert [[job.seed for job in group] for group in groups] == [[0, 1, 3], [2], [4, 5]]
    assert isinstance(groups[0][0], Job)
