"""Sets of a table at addresses of fsspec: pictures, manifest, what is made again; also with a real S3 server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

pytest.importorskip("diffusers")

from lib_layerdiffusion.cli import destination, main
from lib_layerdiffusion.cli.destination import Folder, Store, open_destination
from lib_layerdiffusion.refusal import Refusal
from tests.cli.making import FAST, PATIENCE, check_all, kill_one_of_two, read_files, read_lines, start, wait_for

NAMES = [f"{row:05d}-{row}-star" for row in range(1, 7)]


@pytest.fixture
def store() -> Store:
    """A new store in this process's memory."""
    return Store(f"memory://{secrets.token_hex(8)}/folder")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("prompt,seed\n" + "".join(f"star,{row}\n" for row in range(1, 7)), "utf-8")
    return path


def put(store: Store, name: str, content: bytes) -> dict[str, Any]:
    return store.write(name, lambda path: path.write_bytes(content) and None)


class TestStore:
    def test_a_file_is_known_again_by_its_size(self, store: Store) -> None:
        file = put(store, "a.png", b"12345")
        absent = {**file, "name": "b.png"}
        assert [store.compare()(each) for each in (file, absent, {**file, "size": 4})] == [True, False, False]
        assert (store.has("a.png"), store.has("b.png")) == (True, False)

    def test_the_manifest_is_in_parts(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(destination, "PART_LINES", 3)
        monkeypatch.setattr(destination, "PART_SECONDS", 0.0)
        with store.recording() as record:
            for number in range(8):
                record([{"name": f"ü{number}"}])
                assert len(read_lines(store)) == number + 1

        assert sorted(json.loads(line)["name"] for line in read_lines(store)) == [f"ü{n}" for n in range(8)]
        files, folder = fsspec.core.url_to_fs(f"{store.address}/manifest")
        assert len(files.find(folder)) == 3

    def test_parts_are_written_once_a_second_and_at_the_end(self, store: Store) -> None:
        with pytest.raises(KeyboardInterrupt), store.recording() as record:
            record([{"name": "a"}])
            record([{"name": "b"}])
            record([{"name": "c"}])
            assert len(read_lines(store)) == 1
            raise KeyboardInterrupt
        assert len(read_lines(store)) == 3

    def test_two_commands_write_parts_of_their_own(self, store: Store) -> None:
        with store.recording() as one, store.recording() as other:
            one([{"name": "a"}])
            other([{"name": "b"}])
        assert len(read_lines(store)) == 2

    def test_half_a_line_is_left_out(self, store: Store) -> None:
        files, folder = fsspec.core.url_to_fs(store.address)
        files.pipe_file(f"{folder}/manifest/1.jsonl", b'{"name": "a"}\n{"na')
        assert [json.loads(line) for line in read_lines(store)] == [{"name": "a"}]

    def test_a_part_is_written_anew(self, store: Store) -> None:
        for name in "ab":
            with store.recording() as record:
                record([{"name": name}, {"name": f"{name}2"}])
        lines = read_lines(store)
        part, (gone, _) = next(iter(store.read_manifest().items()))
        store.rewrite(part, [line for line in store.read_manifest()[part] if line != gone])
        assert read_lines(store) == [line for line in lines if line != gone]

    def test_the_check_leaves_nothing(self, store: Store) -> None:
        store.check()
        files, folder = fsspec.core.url_to_fs(store.address)
        assert files.find(folder) == []

    def test_what_a_store_says_is_one_sentence(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError("Access\nDenied.")

        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
        with pytest.raises(Refusal, match=r"can't be used \(Access Denied\): check"):
            store.check()


def test_addresses_of_files_are_folders(tmp_path: Path) -> None:
    with open_destination(f"file://{tmp_path}/new/folder") as place:
        assert place == Folder(tmp_path / "new" / "folder")
        place.write("a", lambda path: path.write_bytes(b"1") and None)
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"1"


class TestTwoCommandsInOneFolder:
    def test_the_second_is_refused_and_takes_nothing_away(self, table: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        with open_destination(out):
            half = {"manifest.jsonl": b'{"name": ', ".a.png.01234567.part": b"half"}
            for name, content in half.items():
                (out / name).write_bytes(content)
            assert main(["generate", "--prompts", str(table), "--out", str(out)]) == 2
            told = f"Another command is making the pictures of a table in {out}: wait for its end, or choose another"
            assert capsys.readouterr().err == f"{told} place with --out.\n"
            assert {name: (out / name).read_bytes() for name in half} == half

    def test_the_next_begins_with_what_is_whole(self, tmp_path: Path) -> None:
        left = {
            "manifest.jsonl": b'{"name": "a"}\n{"na',
            "manifest.jsonl.lock": b"",  # of a killed command
            ".a.png.01234567.part": b"half",
            "..0123456789abcdef.png.01234567.part": b"of `generate` without a table, which needs no lock",
        }
        for name, content in left.items():
            (tmp_path / name).write_bytes(content)
        with open_destination(tmp_path) as place:
            assert read_lines(place) == [b'{"name": "a"}']
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
            "manifest.jsonl": b'{"name": "a"}\n',
            "..0123456789abcdef.png.01234567.part": left["..0123456789abcdef.png.01234567.part"],
        }

    def test_parts_of_ended_processes_are_removed_and_no_folder_stays_empty(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), open_destination(tmp_path / "out"):
            (tmp_path / "out" / ".a.png.01234567.part").touch()
            raise KeyboardInterrupt
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["encode", "a.png", "--out", "s3://bucket"], "s3://bucket is an address"),
        (["generate", "star", "--out", "s3://bucket"], "put the prompts into a table"),
        (["generate", "star", "--ray", "local"], "put the prompts into a table"),
        (["generate", "--prompts", "TABLE", "--out", "nowhere://bucket"], "nowhere://bucket can't be used"),
    ],
)
def test_addresses_that_can_not_be_written_to_are_refused(
    words: list[str], sentence: str, table: Path, capsys: Any
) -> None:
    assert main([str(table) if word == "TABLE" else word for word in words]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_pictures_in_a_store_are_those_of_a_folder(store: Store, table: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["generate", "--prompts", str(table), *FAST, "--batch", "3", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main([*words, store.address]) == 0
    assert set(capsys.readouterr().out.split()) == {f"{store.address}/{name}.png" for name in NAMES}
    check_all(store, NAMES)
    assert read_files(store) == read_files(Folder(tmp_path / "out"))

    files, folder = fsspec.core.url_to_fs(store.address)
    files.rm_file(f"{folder}/{NAMES[1]}.png")
    files.pipe_file(f"{folder}/{NAMES[4]}.png", b"cut off")
    assert main([*words, store.address]) == 0
    assert set(capsys.readouterr().out.split()) == {store.name(f"{NAMES[n]}.png") for n in (1, 4)}
    check_all(store, NAMES)

    assert main([*words, store.address, "--steps", "2"]) == 2
    assert "of another prompt, seed, setting, model or sampler" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_that_write_elsewhere_are_noticed(store: Store, table: Path, capsys: Any) -> None:
    """The memory of another process is such a place, as is another machine's folder."""
    assert main(["generate", "--prompts", str(table), *FAST, "--workers", "2", "--out", store.address]) == 2
    assert "The workers don't write where this process finds it" in capsys.readouterr().err
    assert read_lines(store) == []


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket of a real server on this machine, which speaks S3's protocol."""
    pytest.importorskip("s3fs", reason="needs the extra [cloud]")
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = f"pictures-{secrets.token_hex(8)}"  # all servers of a process hold the same buckets
    fsspec.filesystem("s3").mkdir(bucket)
    yield Store(f"s3://{bucket}/sprites")
    running.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.slow
class TestS3:
    def test_pictures_and_what_is_missing(self, s3: Store, table: Path, capsys: Any) -> None:
        words = ["generate", "--prompts", str(table), *FAST, "--batch", "2", "--out", s3.address]
        assert main(words) == 0
        check_all(s3, NAMES)
        files, folder = fsspec.core.url_to_fs(s3.address)
        files.rm_file(f"{folder}/{NAMES[2]}.png")
        capsys.readouterr()

        assert main(words) == 0

        assert capsys.readouterr().out.split() == [s3.name(f"{NAMES[2]}.png")]
        assert read_files(s3).keys() == {f"{name}.png" for name in NAMES}

    def test_a_bucket_that_is_not_there_is_refused_and_not_made(self, s3: Store, table: Path, capsys: Any) -> None:
        assert main(["generate", "--prompts", str(table), *FAST, "--out", "s3://absent/folder"]) == 2
        assert "s3://absent/folder can't be used" in capsys.readouterr().err
        assert not fsspec.filesystem("s3").exists("absent")

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes' numbers from /proc")
    def test_a_worker_and_then_the_command_are_killed(self, s3: Store, table: Path) -> None:
        process = start(table, s3.address, "--workers", 2)
        wait_for(1, s3, process)
        kill_one_of_two(process, "spawn_main")
        wait_for(3, s3, process)
        process.kill()
        process.wait()

        assert start(table, s3.address, "--workers", 2).wait(PATIENCE) == 0

        check_all(s3, NAMES)
