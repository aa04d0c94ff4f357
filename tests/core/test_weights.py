"""The weight store: finding, recognising, downloading from a server on this machine, loading."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from lib_layerdiffusion import weights
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from lib_layerdiffusion.weights import WEIGHTS, WeightStore, cache_folder, download
from lib_layerdiffusion.weights.download import Download
from lib_layerdiffusion.weights.header import describe_bytes, read_header, recognise

NAME = "vae_transparent_encoder"
FILE = f"{NAME}.safetensors"
WHERE = f"/LayerDiffusion/layerdiffusion-v1/resolve/main/{FILE}"


def make_encoder(value: float = 0.0) -> dict[str, torch.Tensor]:
    """Keys of a transparent encoder, far smaller than the published one."""
    sides = {0: (2, 4), 16: (4, 2)}
    state = {f"blocks.{2 * i}.weight": torch.full((*sides.get(2 * i, (2, 2)), 3, 3), value) for i in range(9)}
    return state | {f"blocks.{2 * i}.bias": torch.zeros(2) for i in range(9)}


def make_sharing(frames: int, control: bool) -> dict[str, torch.Tensor]:
    """Keys of an attention-sharing file: 32 layers, all tensors tiny."""
    names = [f"temporal_{part}.{kind}" for part in "iqkvon" for kind in ("weight", "bias")]
    for frame in range(frames):
        names += [f"to_{part}_lora.{frame}.{way}.weight" for part in ("q", "k", "v", "out") for way in ("down", "up")]
        if control:
            names += [f"control_convs.{frame}.{conv}.{kind}" for conv in (0, 2) for kind in ("weight", "bias")]
    state = {f"hookers.layers.{layer}.{name}": torch.zeros(1) for layer in range(32) for name in names}
    if control:
        state |= {
            f"kwargs_encoder.blocks_0.{conv}.{kind}": torch.zeros(1) for conv in range(8) for kind in ("weight", "bias")
        }
        state |= {
            f"kwargs_encoder.blocks_{block}.{conv}.{kind}": torch.zeros(1)
            for block in (1, 2, 3)
            for conv in range(2)
            for kind in ("weight", "bias")
        }
    return state


def make_patches(channels: int) -> dict[str, torch.Tensor]:
    state = {"diffusion_model.input_blocks.4.1.proj_in.weight::lora::0": torch.zeros(2, 1)}
    if channels != 4:
        state["diffusion_model.input_blocks.0.0.weight::diff::0"] = torch.zeros(2, channels, 3, 3)
    return state


def make_decoder(*widths: int) -> dict[str, torch.Tensor]:
    """A real transparent decoder, small; equal widths in a row need fewer shortcuts."""
    return TransparentDecoder(widths=widths, head_dim=4, groups=2).state_dict()


def rename(state: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {new if name == old else name: value for name, value in state.items()}


BODY = save(make_encoder())
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


# -- a server with every fault


@dataclass
class Behaviour:
    """What the server does; `log` gets the Range of each GET of the file."""

    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": f'"{SHA256}"'})
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, per GET
    statuses: list[int] = field(default_factory=list)  # answered first, one per GET
    redirect_to: str = ""
    redirect_status: int = 302
    redirect_headers: dict[str, str] = field(default_factory=dict)
    silence: float = 0.0  # seconds before the answer
    length: bool = True
    log: list[str | None] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        rules: Behaviour = self.server.behaviour
        if self.path not in (WHERE, "/storage/1"):
            self.send_error(404)
            return
        if self.path == WHERE and rules.redirect_to:
            self.send_response(rules.redirect_status)
            for key, value in rules.redirect_headers.items():
                self.send_header(key, value)
            self.send_header("Location", rules.redirect_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rules.log.append(self.headers.get("Range"))
        rules.agents.append(self.headers.get("User-Agent"))
        if rules.silence and self.server.closing.wait(rules.silence):
            return
        if rules.statuses:
            self.send_error(rules.statuses.pop(0))
            return
        first = 0
        if rules.ranges and (found := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            first = int(found[1])
        if first > len(rules.body):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(rules.body) - 1}/{len(rules.body)}")
        if rules.length:
            self.send_header("Content-Length", str(len(rules.body) - first))
        for key, value in rules.headers.items():
            self.send_header(key, value)
        self.end_headers()
        rest = rules.body[first:]
        cut = rules.break_after.pop(0) if rules.break_after else len(rest)
        self.wfile.write(rest[:cut])

    def log_message(self, *_):
        pass


@contextmanager
def serve(**rules) -> Iterator[tuple[str, Behaviour]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behaviour = Behaviour(**rules)
    server.closing = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.behaviour
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Second attempts come at once; the waits between them are the only sleeps of a download."""
    monkeypatch.setattr(download, "PAUSE", 0.0)


@pytest.fixture
def known_body(monkeypatch):
    """Let the table know what the server sends as the published file."""

    def know(body: bytes = BODY) -> None:
        file = weights.WeightFile(NAME, len(body), WEIGHTS[NAME].contents, 18, hashlib.sha256(body).hexdigest())
        monkeypatch.setattr(weights, "WEIGHTS", {**WEIGHTS, NAME: file})

    return know


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(call, *args) -> str:
    with pytest.raises(Refusal) as refusal:
        call(*args)
    sentence = str(refusal.value)
    assert re.fullmatch(r"(?!.*\. [A-Z])[^\n]+\.", sentence), "one sentence"
    return sentence


# -- download


def test_download_and_progress(tmp_path):
    seen = []
    with serve() as (endpoint, rules):
        store = WeightStore([], tmp_path / "new" / "folder", endpoint=endpoint + "/")
        path = store.fetch(NAME, lambda done, total: seen.append((done, total)))
        assert store.fetch(NAME) == path
    assert path == tmp_path / "new" / "folder" / FILE
    assert path.read_bytes() == BODY
    assert list_files(path.parent) == [FILE]
    assert (seen[0][0], seen[-1]) == (0, (len(BODY), len(BODY)))
    assert rules.log == [None]
    assert rules.agents[0].startswith("layerdiffusion/")


def test_endpoint_from_the_environment(tmp_path, monkeypatch):
    with serve() as (endpoint, _):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert WeightStore([], tmp_path).fetch(NAME).read_bytes() == BODY


def test_a_cut_connection_is_resumed_where_it_broke(tmp_path):
    with serve(break_after=[100, 50]) as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert rules.log == [None, "bytes=100-", "bytes=150-"]
    assert (tmp_path / FILE).read_bytes() == BODY


def test_attempts_count_only_while_nothing_comes(tmp_path):
    pieces = [10] * (2 * Download("", tmp_path, 0).attempts)
    with serve(break_after=pieces) as (endpoint, _):
        assert WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME).read_bytes() == BODY


def test_a_weak_tag_is_the_same_file(tmp_path):
    with serve(headers={"ETag": f'W/"{SHA256}"'}, break_after=[100]) as (endpoint, rules):
        rules.break_after += [0, 0, 0]
        store = WeightStore([], tmp_path, endpoint=endpoint)
        refuse(store.fetch, NAME)
        rules.break_after.clear()
        rules.headers = {"ETag": f'"{SHA256}"'}
        store.fetch(NAME)
    assert rules.log[-1] == "bytes=100-"


def test_the_part_is_kept_and_the_next_run_goes_on(tmp_path):
    with serve(break_after=[100, 0, 0, 0, 0]) as (endpoint, rules):
        store = WeightStore([], tmp_path, endpoint=endpoint)
        sentence = refuse(store.fetch, NAME)
        assert f"{endpoint}{WHERE}" in sentence
        assert "run again to go on (100 bytes are kept)" in sentence
        assert str(tmp_path) in sentence
        assert (tmp_path / f"{FILE}.part").stat().st_size == 100
        assert not (tmp_path / FILE).exists()
        rules.break_after.clear()
        store.fetch(NAME)
    assert rules.log[-1] == "bytes=100-"
    assert (tmp_path / FILE).read_bytes() == BODY
    assert list_files(tmp_path) == [FILE]


def test_a_server_without_ranges_starts_over(tmp_path):
    with serve(ranges=False, break_after=[100]) as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert rules.log == [None, "bytes=100-"]
    assert (tmp_path / FILE).read_bytes() == BODY


def test_another_file_on_the_server_starts_over(tmp_path, known_body):
    other = save(make_encoder(1.0))
    known_body(other)
    with serve(break_after=[100]) as (endpoint, rules):
        store = WeightStore([], tmp_path, endpoint=endpoint)
        rules.break_after += [0, 0, 0]
        refuse(store.fetch, NAME)
        rules.break_after.clear()
        rules.body, rules.headers = other, {"ETag": '"changed"'}
        store.fetch(NAME)
    assert rules.log[-2:] == ["bytes=100-", None]
    assert (tmp_path / FILE).read_bytes() == other


def test_without_a_validator_nothing_is_resumed(tmp_path, known_body):
    known_body()
    with serve(headers={}, break_after=[100]) as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert rules.log == [None, None]


def test_a_part_longer_than_the_file_starts_over(tmp_path):
    (tmp_path / f"{FILE}.part").write_bytes(b"x" * (len(BODY) + 5))
    (tmp_path / f"{FILE}.part.json").write_text(json.dumps({"validator": SHA256, "sha256": SHA256, "size": 0}))
    with serve() as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert rules.log == [f"bytes={len(BODY) + 5}-", None]
    assert (tmp_path / FILE).read_bytes() == BODY


def test_a_complete_part_is_checked_without_asking_again(tmp_path):
    (tmp_path / f"{FILE}.part").write_bytes(BODY)
    note = {"validator": SHA256, "sha256": SHA256, "size": len(BODY)}
    (tmp_path / f"{FILE}.part.json").write_text(json.dumps(note))
    with serve() as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert rules.log == []
    assert list_files(tmp_path) == [FILE]


@pytest.mark.parametrize("note", ["", "[]", '{"validator": 1}', "\x00"])
def test_a_part_with_a_damaged_note_starts_over(tmp_path, note):
    (tmp_path / f"{FILE}.part").write_bytes(b"x" * 50)
    (tmp_path / f"{FILE}.part.json").write_text(note)
    with serve() as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert rules.log == [None]
    assert (tmp_path / FILE).read_bytes() == BODY


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_followed_and_the_hub_s_checksum_on_it_counts(tmp_path, status):
    redirect_headers = {"X-Linked-Etag": f'"{SHA256}"', "X-Linked-Size": str(len(BODY))}
    rules = {"redirect_to": "/storage/1", "redirect_status": status, "redirect_headers": redirect_headers}
    with serve(headers={"ETag": '"of the storage"'}, break_after=[100], **rules) as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert (tmp_path / FILE).read_bytes() == BODY
    assert rules.log == [None, "bytes=100-"]


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
def test_a_checksum_other_than_the_hub_s_is_refused_and_deleted(tmp_path, header):
    with serve(headers={header: f'"{"0" * 64}"'}) as (endpoint, _):
        sentence = refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert f"has the checksum {SHA256[:12]}..., not 000000000000... as the hub says" in sentence
    assert f"{endpoint}{WHERE}" in sentence
    assert list_files(tmp_path) == []


def test_a_checksum_of_a_storage_server_is_no_checksum_of_the_file(tmp_path, known_body):
    known_body()
    with serve(headers={"ETag": f'"{"0" * 64}"'}) as (storage, _), serve() as (endpoint, rules):
        rules.redirect_to = f"{storage}/storage/1"
        assert WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME).read_bytes() == BODY


def test_a_checksum_other_than_the_table_s_warns_only(tmp_path, caplog, known_body):
    with serve() as (endpoint, _):
        WeightStore([], tmp_path / "one", endpoint=endpoint).fetch(NAME)
        assert f"is not the file known as {NAME}" in caplog.text
        caplog.clear()
        known_body()
        WeightStore([], tmp_path / "two", endpoint=endpoint).fetch(NAME)
        assert "is not the file known" not in caplog.text


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_final_status_is_refused_at_once(tmp_path, status):
    with serve(statuses=[status]) as (endpoint, rules):
        sentence = refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert f"{endpoint}{WHERE} answers {status}" in sentence
    assert "check HF_ENDPOINT" in sentence
    assert str(tmp_path) in sentence
    assert len(rules.log) == 1
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_status_is_tried_again(tmp_path, status):
    with serve(statuses=[status, status]) as (endpoint, rules):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert len(rules.log) == 3


def test_a_silent_server_is_given_up(tmp_path):
    with serve(silence=30) as (endpoint, rules):
        sentence = refuse(WeightStore([], tmp_path, endpoint=endpoint, timeout=0.1).fetch, NAME)
    assert "broke off (no answer in time)" in sentence
    assert len(rules.log) == Download("", tmp_path, 0).attempts


def test_a_closed_port_is_given_up(tmp_path):
    with serve() as (endpoint, _):
        pass
    assert "broke off" in refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)


def test_a_host_without_an_address_is_refused_at_once(tmp_path):
    sentence = refuse(WeightStore([], tmp_path, endpoint="http://nowhere.invalid").fetch, NAME)
    assert "nowhere.invalid can't be reached" in sentence
    assert "HF_ENDPOINT" in sentence


@pytest.mark.parametrize("endpoint", ["mirror.example", "file:///etc", "https://", "ftp://x"])
def test_an_endpoint_that_is_no_web_address_is_refused(tmp_path, endpoint):
    assert f"HF_ENDPOINT '{endpoint.rstrip('/')}" in refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)


def test_a_login_page_is_refused_and_nothing_is_written(tmp_path):
    with serve(body=b"<html>log in</html>", headers={"Content-Type": "text/html"}) as (endpoint, _):
        assert "answers with a web page" in refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert list_files(tmp_path) == []


def test_a_wrong_file_from_the_server_is_refused_and_deleted(tmp_path):
    body = save(make_sharing(3, control=False))
    with serve(body=body, headers={}) as (endpoint, _):
        sentence = refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert "like layer_sd15_joint, not a transparent encoder, and was deleted" in sentence
    assert list_files(tmp_path) == []


def test_an_answer_without_length_that_breaks_off_is_not_taken_for_whole(tmp_path):
    with serve(length=False, break_after=[200]) as (endpoint, _):
        assert "is cut off" in refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert list_files(tmp_path) == []


def test_other_bytes_than_the_published_are_kept_apart_where_no_checksum_vouches_for_them(tmp_path):
    with serve(headers={}) as (endpoint, _):
        store = WeightStore([], tmp_path, endpoint=endpoint)
        sentence = refuse(store.fetch, NAME)
    assert f"isn't the published {FILE}" in sentence
    assert f"kept as {tmp_path / FILE}.unverified" in sentence
    assert list_files(tmp_path) == [f"{FILE}.unverified"]
    assert store.find(NAME) is None
    (tmp_path / f"{FILE}.unverified").rename(tmp_path / FILE)
    assert store.fetch(NAME) == tmp_path / FILE


@contextmanager
def answer(*parts: bytes, pause: float = 0.0) -> Iterator[str]:
    """A server that sends these bytes as they are to each request, with a pause after each part."""
    closing = threading.Event()

    class Raw(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.close_connection = True
            for part in parts:
                self.wfile.write(part)
                if closing.wait(pause):
                    return

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Raw)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"HTTP/1.1 302 x\r\nLocation: http://[::1\r\n\r\n", "leads to an address that isn't one"),
        (b"HTTP/1.1 200 x\r\nContent-Length: \xb2\r\n\r\nx", "is cut off"),
        (b"HTTP/1.1 200 x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx", "is cut off"),
        (b"HTTP/1.1 200 x\r\nContent-Range: bytes 0-1/" + b"9" * 5000 + b"\r\n\r\nx", "is cut off"),
        (b"HTTP/1.1 999999 x\r\n\r\n", "broke off"),
    ],
)
def test_odd_headers_end_in_a_sentence(tmp_path, head, said):
    with answer(head) as endpoint:
        assert said in refuse(WeightStore([], tmp_path, endpoint=endpoint, timeout=5).fetch, NAME)
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("size", ["1e999", '"a"', "[]", "9" * 5000, "-1e999"])
def test_a_damaged_note_starts_over(tmp_path, size):
    (tmp_path / f"{FILE}.part").write_bytes(b"x")
    (tmp_path / f"{FILE}.part.json").write_text(f'{{"validator": "a", "sha256": "", "size": {size}}}')
    with serve() as (endpoint, _):
        assert WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME).read_bytes() == BODY


@pytest.mark.slow
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"])
def test_a_server_that_drips_is_given_up(tmp_path, head):
    seen = []
    with answer(head, *[b"X"] * 500, pause=0.05) as endpoint:
        store = WeightStore([], tmp_path, endpoint=endpoint, timeout=0.2)
        assert "broke off" in refuse(store.fetch, NAME, lambda done, total: seen.append(done))
    assert len(seen) > 3  # so that an interrupt is seen, in the headers too


def test_a_body_without_end_is_cut_off_at_twice_the_known_size(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "WEIGHTS", {NAME: weights.WeightFile(NAME, 100, WEIGHTS[NAME].contents, 18, SHA256)})
    with answer(b"HTTP/1.1 200 OK\r\n\r\n", *[bytes(2**20)] * 8) as endpoint:
        assert "sends more than twice the 100 bytes" in refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert list_files(tmp_path) == []


def test_interrupting_keeps_the_part(tmp_path):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with serve() as (endpoint, _):
        store = WeightStore([], tmp_path, endpoint=endpoint)
        with pytest.raises(KeyboardInterrupt):
            store.fetch(NAME, interrupt)
        kept = (tmp_path / f"{FILE}.part").stat().st_size
        assert kept > 0
        assert not (tmp_path / FILE).exists()
        assert not (tmp_path / f"{FILE}.lock").exists()
        store.fetch(NAME)
    assert (tmp_path / FILE).read_bytes() == BODY


def test_too_little_space_is_refused_before_the_transfer(tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with serve() as (endpoint, _):
        sentence = refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert f"{tmp_path} has 10 bytes free, and {FILE} needs {describe_bytes(len(BODY))}" in sentence
    assert list_files(tmp_path) == []


def test_a_disk_that_fills_up_is_refused_and_the_part_kept(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            self.file.write(chunk[:64])
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *a, **k: (Full if mode == "wb" else lambda f: f)(real(path, mode, *a, **k))
    )
    with serve() as (endpoint, _):
        sentence = refuse(WeightStore([], tmp_path, endpoint=endpoint).fetch, NAME)
    assert f"{tmp_path / FILE} can't be used (No space left on device): free some space" in sentence
    assert (tmp_path / f"{FILE}.part").stat().st_size == 64
    assert not (tmp_path / FILE).exists()


def test_a_folder_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with serve() as (endpoint, _):
        sentence = refuse(WeightStore([], tmp_path / "file" / "weights", endpoint=endpoint).fetch, NAME)
    assert "can't be used (Not a directory): a file is in the way, so choose another name" in sentence


def test_two_threads_download_once(tmp_path):
    with serve(silence=0.2) as (endpoint, rules):
        stores = [WeightStore([], tmp_path, endpoint=endpoint) for _ in range(3)]
        paths = []
        threads = [threading.Thread(target=lambda store=store: paths.append(store.fetch(NAME))) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert paths == [tmp_path / FILE] * 3
    assert len(rules.log) == 1
    assert list_files(tmp_path) == [FILE]


HOLD = """
import sys, time
from pathlib import Path
from lib_layerdiffusion.weights.download import Download
with Download("", Path(sys.argv[1]), 0)._alone(None):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_another_process_that_gets_nowhere_is_reported(tmp_path):
    root = Path(download.__file__).parents[2]
    command = [sys.executable, "-c", HOLD, str(tmp_path / FILE)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout.readline() == "held\n"
        (tmp_path / f"{FILE}.part").write_bytes(b"123")
        seen = []
        waiting = Download("http://127.0.0.1:1/x", tmp_path / FILE, 0, patience=0.0)
        sentence = refuse(waiting.run, lambda part, source: None, lambda done, total: seen.append(done))
        assert "Another process has been downloading" in sentence
        assert set(seen) == {3}  # the other one's progress
        other.communicate("\n")
    assert not (tmp_path / f"{FILE}.lock").exists()


def test_a_lock_left_by_a_killed_process_does_not_block(tmp_path):
    (tmp_path / f"{FILE}.lock").write_text("")
    with serve() as (endpoint, _):
        WeightStore([], tmp_path, endpoint=endpoint).fetch(NAME)
    assert list_files(tmp_path) == [FILE]


# -- offline


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_says_which_file_goes_where(tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with serve() as (endpoint, rules):
        store = WeightStore([tmp_path / "a"], tmp_path / "b", offline=how == "argument", endpoint=endpoint)
        sentence = refuse(store.load, NAME)
    assert rules.log == []
    assert f"download {endpoint}{WHERE} (2.4 MB) and put it into {tmp_path / 'b'}" in sentence
    assert str(tmp_path / "a") in sentence


def test_without_a_download_folder_nothing_is_downloaded(tmp_path):
    sentence = refuse(WeightStore([tmp_path]).fetch, NAME)
    assert f"no folder for downloads is set: download https://huggingface.co{WHERE}" in sentence


# -- find


def test_folders_are_searched_in_order_and_downloads_last(tmp_path):
    folders = [tmp_path / name for name in ("missing", "My layer models", "downloads")]
    for folder in folders[1:]:
        folder.mkdir()
        (folder / FILE).write_bytes(BODY)
    assert WeightStore(folders[:2], folders[2]).find(NAME) == folders[1] / FILE
    assert WeightStore([], folders[2]).find(FILE) == folders[2] / FILE
    assert WeightStore(folders[:1]).find(NAME) is None


INTEGERS = save({name: value.int() for name, value in make_encoder().items()})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BODY[:-1], "is cut off"),
        (INTEGERS, "holds whole numbers"),
        (save(make_patches(4)), "is the wrong file"),
        (b"", "is empty"),
    ],
)
def test_a_damaged_file_is_refused_though_a_later_folder_has_an_intact_one(tmp_path, body, said):
    """A file that someone put there is what they mean: another one instead of it would make another picture."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, content in ((first, body), (second, BODY)):
        folder.mkdir()
        (folder / FILE).write_bytes(content)
    store = WeightStore([first], second)
    for call in (store.fetch, store.load):
        assert f"{first / FILE} {said}" in refuse(call, NAME)
    (row,) = store.check([NAME])
    assert (row.state, row.path) == ("damaged", first / FILE)
    (first / FILE).unlink()
    assert store.fetch(NAME) == second / FILE


def test_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(BODY)
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    store = WeightStore([tmp_path])
    assert store.find(NAME) == tmp_path / FILE
    assert len(store.load(NAME)) == 18
    (tmp_path / "elsewhere").unlink()
    assert store.find(NAME) is None


def test_an_unknown_name_is_refused():
    assert "did you mean 'layer_sd15_joint'" in refuse(WeightStore().find, "layer_sd15_jont")
    assert "did you mean 'layer_sd15_joint'" in refuse(WeightStore().load, "layer_sd15_jont")


def test_the_user_s_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "layerdiffusion"


# -- recognise


@pytest.mark.parametrize("entry", WEIGHTS.values(), ids=WEIGHTS)
def test_each_published_structure_is_accepted_at_any_size(tmp_path, entry):
    """What counts are the keys: small models have the same."""
    contents = entry.contents
    match contents.kind:
        case "decoder":
            state = make_decoder(4, 4, 8, 8, 8, 8, 8)
        case "encoder":
            state = TransparentEncoder(widths=(2, 2, 4, 4)).state_dict()
        case "attention_sharing":
            state = make_sharing(contents.frames, contents.control)
        case _:
            state = make_patches(contents.channels)
    save_file(state, tmp_path / entry.file_name)
    store = WeightStore([tmp_path])
    assert recognise(read_header(tmp_path / entry.file_name)) == contents
    assert store.load(entry.name).keys() == state.keys()
    (row,) = store.check([entry.name])
    assert (row.state, row.cure, row.size) == ("found", "", (tmp_path / entry.file_name).stat().st_size)


def test_the_published_widths_give_the_published_number_of_tensors():
    with torch.device("meta"):
        state = TransparentDecoder().state_dict()
    assert len(state) == 538
    assert sum("shortcut" not in name for name in state) == WEIGHTS["vae_transparent_decoder"].tensors


WRONG_FILES = [
    ("layer_sd15_transparent_attn", make_sharing(3, False), "attention sharing for 3 frames like layer_sd15_joint"),
    ("layer_sd15_joint", make_sharing(1, False), "attention sharing for 1 frame like layer_sd15_transparent_attn"),
    (
        "layer_sd15_joint",
        make_sharing(2, True),
        "2 frames and a control encoder like layer_sd15_fg2bg or layer_sd15_bg2fg",
    ),
    ("layer_sd15_fg2bg", make_encoder(), "a transparent encoder like vae_transparent_encoder or"),
    ("layer_xl_fg2ble", make_patches(12), "12 input channels like layer_xl_fgble2bg or layer_xl_bgble2fg"),
    (
        "layer_xl_fgble2bg",
        make_patches(4),
        "4 input channels like layer_xl_transparent_attn or layer_xl_transparent_conv",
    ),
    ("layer_xl_transparent_attn", make_sharing(1, False), "like layer_sd15_transparent_attn, not weight patches"),
    (
        "vae_transparent_decoder",
        {"model.diffusion_model.x": torch.zeros(1)},
        "it holds a Stable Diffusion checkpoint, not",
    ),
    ("vae_transparent_decoder", {"first_stage_model.decoder.x": torch.zeros(1)}, "it holds an ordinary VAE, not"),
    ("layer_xl_fg2ble", {"lora_unet_down.lora_up.weight": torch.zeros(1)}, "it holds an ordinary LoRA, not"),
    ("layer_xl_fg2ble", {"control_model.x": torch.zeros(1)}, "it holds a ControlNet, not"),
    ("layer_xl_fg2ble", {"diffusion_model.out.2.bias": torch.zeros(1)}, "it holds a UNet, not"),
    ("layer_xl_fg2ble", {"x": torch.zeros(1)}, "it holds none of the LayerDiffusion files, not"),
    ("layer_xl_fg2ble", {}, "it holds an empty file, not"),
    (
        "vae_transparent_encoder",
        dict(list(make_encoder().items())[:-1]),
        "incomplete or altered (17 tensors instead of 18)",
    ),
    (
        "layer_sd15_vae_transparent_decoder",
        rename(make_decoder(4, 4, 8, 8, 8, 8, 8), "conv_out.bias", "conv_last.bias"),
        "has a tensor 'conv_last.bias', which a transparent decoder doesn't have",
    ),
    (
        "layer_sd15_joint",
        rename(make_sharing(3, False), "hookers.layers.7.temporal_q.bias", "hookers.layers.7.temporal_Q.bias"),
        "has a tensor 'hookers.layers.7.temporal_Q.bias', which attention sharing for 3 frames doesn't have",
    ),
    (
        "layer_xl_transparent_conv",
        make_patches(4) | {"diffusion_model.x::full::0": torch.zeros(1)},
        "has a tensor 'diffusion_model.x::full::0'",
    ),
    (
        "vae_transparent_decoder",
        dict(list(make_decoder(4, 4, 8, 8, 8, 8, 8).items())[:-1]),
        "incomplete or altered (487 tensors instead of 488)",
    ),
    (
        "layer_sd15_joint",
        {name: value for name, value in make_sharing(3, False).items() if ".31." not in name},
        "incomplete or altered (1116 tensors instead of 1152)",
    ),
]


@pytest.mark.parametrize(("name", "state", "sentence"), WRONG_FILES, ids=[case[2][:50] for case in WRONG_FILES])
def test_a_wrong_file_is_named_for_what_it_is(tmp_path, name, state, sentence):
    path = tmp_path / f"{name}.safetensors"
    save_file(state, path)
    store = WeightStore([tmp_path], tmp_path)
    said = refuse(store.load, name)
    assert said.startswith(f"{path} ")
    assert sentence in said
    assert f"delete it and run again, which downloads {WEIGHTS[name].url()}" in said
    (row,) = store.check([name])
    assert (row.state, row.path) == ("damaged", path)
    assert sentence in row.cure


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DAMAGED = {
    "empty": (b"", "is empty (0 bytes)"),
    "five bytes": (b"hello", "is cut off (5 bytes)"),
    "cut in the header": (BODY[:100], "is cut off (its header claims"),
    "cut in the data": (BODY[:-1], f"is cut off ({len(BODY) - 1:,} of {len(BODY):,} bytes)"),
    "too long": (BODY + b"x", f"has a wrong length ({len(BODY) + 1:,} bytes instead of {len(BODY):,})"),
    "zip pickle": (b"PK\x03\x04" + bytes(500), "is a PyTorch pickle"),
    "pickle": (b"\x80\x02}q\x00." + bytes(500), "is a Python pickle"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>" * 5, "is a web page, not weights"),
    "web page, indented": (b"\n  <HTML><body>404</body></html>" * 5, "is a web page, not weights"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(100), "is a GGUF file"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "is a gzip archive"),
    "error message": (b'{"error": "Repository not found"}', "is a JSON text"),
    "zeros": (bytes(1000), "has a damaged header"),
    "absurd header length": (b"\xff" * 7 + b"\x7f" + b"x" * 50, "has a damaged header (its header claims"),
    "header is no JSON": (with_header(b"{nonsense"), "has a damaged header"),
    "header is a list": (with_header([1, 2]), "has a damaged header"),
    "header is not text": (with_header(b'{"\xff\xfe": 1}'), "has a damaged header"),
    "header nests deeply": (with_header(b"[" * 100_000), "has a damaged header"),
    "entry is no object": (with_header({"a": 5}), "has a damaged header"),
    "entry without offsets": (with_header({"a": {"dtype": "F32", "shape": [1]}}), "has a damaged header"),
    "shape is no list": (with_header({"a": ONE | {"shape": 1}}, bytes(4)), "has a damaged header"),
    "metadata is no object": (with_header({"__metadata__": 3, "a": ONE}, bytes(4)), "has a damaged header"),
    "unknown type of numbers": (with_header({"a": ONE | {"dtype": "Q7"}}, bytes(4)), "holds numbers of the type 'Q7'"),
    "bytes used twice": (with_header({"a": ONE, "b": ONE}, bytes(4)), "has a damaged header"),
    "bytes left out": (with_header({"a": ONE | {"data_offsets": [4, 8]}}, bytes(8)), "has a damaged header"),
    "ends before it starts": (with_header({"a": ONE | {"data_offsets": [4, 0]}}, bytes(4)), "has a damaged header"),
    "one offset": (with_header({"a": ONE | {"data_offsets": [4]}}, bytes(4)), "has a damaged header"),
    "a million axes": (with_header({"a": ONE | {"shape": [9] * 1_000_000}}, bytes(4)), "has a damaged header"),
    "header larger than any": (with_header(b"{" + b" " * 2**24, b""), "has a damaged header (its header claims"),
    "shape and length disagree": (with_header({"a": ONE | {"shape": [3]}}, bytes(4)), "has a damaged header"),
}


@pytest.mark.parametrize(("body", "sentence"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", [NAME, "my_encoder"])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, body, sentence, name):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(body)
    said = refuse(WeightStore([tmp_path]).load, path)
    assert said.startswith(f"{path} {sentence}")
    cure = f"replace it by https://huggingface.co{WHERE} (2.4 MB)." if name == NAME else "replace it by an intact copy."
    assert said.endswith(cure)
    assert "\n" not in said


def test_a_folder_or_a_missing_path_is_refused(tmp_path):
    assert f"{tmp_path} is a folder: name a .safetensors file" in refuse(WeightStore().load, tmp_path)
    assert f"{tmp_path / 'x.safetensors'} isn't there" in refuse(WeightStore().load, tmp_path / "x.safetensors")


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(BODY)
    (tmp_path / FILE).chmod(0)
    assert "can't be read (Permission denied)" in refuse(WeightStore([tmp_path]).load, NAME)


def test_reading_errors_are_refused(tmp_path, monkeypatch):
    (tmp_path / FILE).write_bytes(BODY)
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    assert "can't be read (Input/output error)" in refuse(WeightStore([tmp_path]).load, NAME)


# -- load


def test_loading_is_cached_until_the_file_changes(tmp_path):
    path = tmp_path / FILE
    save_file(make_encoder(1.0), path)
    store = WeightStore([tmp_path])
    first = store.load(NAME)
    assert store.load(path) is first
    save_file(make_encoder(2.0), tmp_path / "new")
    os.utime(tmp_path / "new", ns=(0, path.stat().st_mtime_ns + 1))
    (tmp_path / "new").replace(path)
    second = store.load(NAME)
    assert (float(first["blocks.0.weight"][0, 0, 0, 0]), float(second["blocks.0.weight"][0, 0, 0, 0])) == (1.0, 2.0)
    store.release()
    assert store.load(NAME) is not second


def test_single_precision_is_kept_in_half_where_that_is_asked_for(tmp_path):
    """All but a control encoder, which computes in single precision; the file is read anew for another precision."""
    path = tmp_path / "own.safetensors"
    values = torch.rand(4, dtype=torch.float64).float()
    save_file({"a": values, "b": values.half(), "kwargs_encoder.blocks_0.0.weight": values.clone()}, path)
    store = WeightStore()
    single, half, rough = (store.load(path, half=dtype) for dtype in (None, torch.float16, torch.bfloat16))
    again = store.load(path)
    names = ("a", "b", "kwargs_encoder.blocks_0.0.weight")
    assert [tuple(state[name].dtype for name in names) for state in (single, half, rough, again)] == [
        (dtype, torch.float16, torch.float32) for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float32)
    ]
    assert torch.equal(again["a"], values)
    assert torch.equal(half["a"], values.half())
    assert again is not single
    assert store.load(path) is again
    assert len(store._loaded) == 1, "one copy of a file is kept"


def test_a_file_in_half_precision_is_read_once_for_all(tmp_path):
    path = tmp_path / "own.safetensors"
    save_file({"a": torch.rand(4).half()}, path)
    store = WeightStore()
    assert store.load(path, half=torch.bfloat16) is store.load(path) is store.load(path, half=torch.float16)


def test_files_of_both_families_are_kept_apart(tmp_path):
    """The encoders of SD1.5 and SDXL have the same keys and shapes: only the path tells them apart."""
    for value, name in ((1.0, "vae_transparent_encoder"), (2.0, "layer_sd15_vae_transparent_encoder")):
        save_file(make_encoder(value), tmp_path / f"{name}.safetensors")
    store = WeightStore([tmp_path])
    for _ in range(2):
        assert float(store.load("vae_transparent_encoder")["blocks.0.weight"].mean()) == 1.0
        assert float(store.load("layer_sd15_vae_transparent_encoder")["blocks.0.weight"].mean()) == 2.0


def test_the_loaded_mapping_can_not_be_changed(tmp_path):
    (tmp_path / FILE).write_bytes(BODY)
    with pytest.raises(TypeError):
        WeightStore([tmp_path]).load(NAME)["new"] = torch.zeros(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_a_file_that_is_cut_off_while_its_tensors_are_in_use(tmp_path, dtype):
    """What was read stays; were the file mapped, touching the tensors would end the process."""
    path = tmp_path / "own.safetensors"
    state = {"a": torch.randn(300, 7).to(dtype), "b": torch.randn(()).to(dtype), "empty": torch.zeros(0, 3).to(dtype)}
    save_file(state, path)
    loaded = WeightStore().load(path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text()
    os.truncate(path, 16)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert (loaded[name].dtype, loaded[name].shape) == (dtype, tensor.shape)
        assert torch.equal(loaded[name].double(), tensor.double())


def test_a_file_that_is_cut_off_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    save_file({"a": torch.randn(300, 7), "b": torch.randn(300, 7)}, path)
    header = read_header(path)
    monkeypatch.setattr(weights, "read_header", lambda _: os.truncate(path, 9000) or header)
    with pytest.raises(Refusal, match=r"was cut off while it was read: replace it by an intact copy"):
        WeightStore().load(path)


# -- doctor's rows


def test_rows_of_all_files_with_a_cure_each(tmp_path):
    (tmp_path / FILE).write_bytes(BODY)
    (tmp_path / "layer_sd15_joint.safetensors").write_bytes(BODY[:50])
    rows = {row.name: row for row in WeightStore([tmp_path], offline=True).check()}
    assert list(rows) == list(WEIGHTS)
    assert [row.name for row in rows.values() if row.state == "found"] == [NAME]
    assert [row.name for row in rows.values() if row.state == "damaged"] == ["layer_sd15_joint"]
    for row in rows.values():
        assert (WEIGHTS[row.name].url() in row.cure) == (row.state != "found")
    missing = rows["layer_sd15_bg2fg"]
    assert missing.path is None
    assert missing.cure.startswith("download https://")
    assert f"(563 MB) and put it into {tmp_path}" in missing.cure


def test_a_row_says_when_a_file_will_be_downloaded(tmp_path):
    (row,) = WeightStore([], tmp_path).check([NAME])
    assert row.cure.startswith("it is downloaded when a mode needs it, or put https://")


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 bytes"), (4_200, "4.2 kB"), (2_370_000, "2.4 MB"), (350e6, "350 MB"), (3.62e9, "3.6 GB")],
)
def test_sizes_as_people_read_them(count, text):
    assert describe_bytes(count) == text


def test_a_header_is_read_once_until_the_file_changes(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(weights, "read_header", lambda path: reads.append(path) or read_header(path))
    (tmp_path / FILE).write_bytes(BODY)
    store = WeightStore([tmp_path])
    store.check([NAME])
    store.fetch(NAME)
    store.load(NAME)
    assert reads == [tmp_path / FILE]
    (tmp_path / FILE).write_bytes(BODY[:-1])
    assert "is cut off" in refuse(store.load, NAME)


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "holds NaN or infinite values"), (float("inf"), "NaN")])
def test_damaged_numbers_show_where_values_are_asked_for(tmp_path, value, said):
    state = make_encoder()
    state["blocks.8.bias"][1] = value
    save_file(state, tmp_path / FILE)
    store = WeightStore([tmp_path])
    assert store.check([NAME])[0].state == "found"
    (row,) = store.check([NAME], values=True)
    assert row.state == "damaged"
    assert said in row.cure


def test_whole_numbers_are_no_weights(tmp_path):
    save_file({name: value.long() for name, value in make_encoder().items()}, tmp_path / FILE)
    assert "holds whole numbers instead of weights" in refuse(WeightStore([tmp_path]).load, NAME)


@pytest.mark.parametrize("side", ["1e999", "-3", "2.5", '"4"', "true", "9" * 5000, "null", "[[1]]"])
def test_odd_shapes_in_a_header_are_damage(tmp_path, side):
    text = f'{{"a":{{"dtype":"F32","shape":[{side}],"data_offsets":[0,4]}}}}'.encode()
    (tmp_path / FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert "has a damaged header" in refuse(WeightStore([tmp_path]).load, NAME)
