"""Tasks on several processes and on Ray: shares of the cores, killed workers, refusals from where they arise."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from lib_layerdiffusion.cli import main, workers
from lib_layerdiffusion.cli.destination import Folder
from lib_layerdiffusion.cli.workers import run_in_processes
from lib_layerdiffusion.refusal import Refusal
from tests.cli.making import PATIENCE, check_all, kill_one_of_two, start, wait_for

NAMES = [f"{row:05d}-{row}-star" for row in range(1, 13)]


@pytest.mark.parametrize(
    ("nodes", "count", "gpu", "cores"),
    [
        ([{"CPU": 2}], 2, False, 1),
        ([{"CPU": 64}], 3, False, 21),
        ([{"CPU": 4}, {"CPU": 4}], 3, False, 2),
        ([{"CPU": 3}, {"CPU": 5}], 2, False, 3),
        ([{"CPU": 4}, {}], 1, False, 4),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], 3, True, 1),
    ],
)
def test_shares_of_a_cluster(nodes: list[dict[str, float]], count: int, gpu: bool, cores: int) -> None:
    assert workers._share_nodes(nodes, count, gpu) == cores


@pytest.mark.parametrize(
    ("nodes", "gpu", "sentence"),
    [
        ([{"CPU": 2}], False, "too few cores for 3 workers"),
        ([{"CPU": 9, "GPU": 2}], True, "too few graphics cards for 3 workers"),
    ],
)
def test_clusters_that_are_too_small_are_refused(nodes: list[dict[str, float]], gpu: bool, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        workers._share_nodes(nodes, 3, gpu)


def kill_itself(number: int) -> int:
    """What no process survives."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    raise Refusal(f"{number} can't be made: leave it out.")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="has no SIGKILL")
def test_processes_that_end_again_and_again_are_told() -> None:
    with pytest.raises(Refusal, match="The processes ended 3 times before they had made anything"):
        list(run_in_processes(kill_itself, [1, 2], 2))


def mark(folder: Path) -> str:
    """Leave the process's number in the folder; then be quick only in the one that is called so."""
    (folder / str(os.getpid())).touch()
    if folder.name != "quick":
        time.sleep(PATIENCE)
        (folder / "end").touch()
    return folder.name


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="asks for a process by a signal")
@pytest.mark.parametrize("error", [KeyboardInterrupt, Refusal])
def test_an_exception_ends_the_processes_and_keeps_what_is_finished(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, long, never = folders = [tmp_path / name for name in ("quick", "long", "never")]
    for folder in folders:
        folder.mkdir()

    def interrupt(running: Collection[Future[str]], return_when: str) -> None:
        """As if Ctrl-C came when the second task has begun."""
        until = time.monotonic() + PATIENCE
        while not any(long.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.05)
        wait(running, return_when=return_when)
        raise error("stop")

    monkeypatch.setattr(workers, "wait", interrupt)
    finished: list[str] = []
    with pytest.raises(error, match="stop"):
        finished.extend(run_in_processes(mark, folders, 1))

    assert finished == ["quick"]
    assert not any(never.iterdir())
    (process,) = quick.iterdir()
    with pytest.raises(ProcessLookupError):
        os.kill(int(process.name), 0)


@pytest.mark.slow
def test_results_that_nobody_reads_end_the_processes(tmp_path: Path) -> None:
    quick, long = tmp_path / "quick", tmp_path / "long"
    quick.mkdir()
    long.mkdir()
    with closing(run_in_processes(mark, [quick, long, long, long], 1)) as results:
        assert next(results) == "quick"
    assert not (long / "end").exists()


@pytest.mark.slow
def test_refusal_in_a_process_ends_the_command() -> None:
    with pytest.raises(Refusal, match="1 can't be made"):
        list(run_in_processes(refuse, [1], 2))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, which reports nothing over the network; each test starts one of its own."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return pytest.importorskip("ray", reason="needs the extra [ray]")


@pytest.mark.slow
class TestRay:
    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes' numbers from /proc")
    def test_a_worker_is_killed(self, ray: Any, tmp_path: Path) -> None:
        table, out = tmp_path / "table.csv", Folder(tmp_path / "out")
        table.write_text("prompt,seed\n" + "".join(f"star,{row}\n" for row in range(1, 13)), "utf-8")
        process = start(table, out.path, "--ray", "local", "--workers", 2)
        wait_for(2, out, process)
        kill_one_of_two(process, "ray::_Worker")

        assert process.wait(PATIENCE) == 0
        check_all(out, NAMES)

    def test_refusals_and_tasks_that_end_every_worker(self, ray: Any) -> None:
        with pytest.raises(Refusal, match="1 can't be made"):
            list(workers.run_on_ray(refuse, [1], 1, "local", gpu=None))
        with pytest.raises(Refusal, match="A worker ended 4 times with the same pictures"):
            list(workers.run_on_ray(kill_itself, [1], 1, "local", gpu=False))

    def test_without_a_cluster(self, ray: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        (tmp_path / "table.txt").write_text("star\n")
        words = ["generate", "--prompts", str(tmp_path / "table.txt"), "--ray", "auto", "--out", str(tmp_path / "out")]
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "No Ray cluster answers at 'auto'" in told
        assert "--ray local" in told


def test_without_the_package(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "table.txt").write_text("star\n")
    words = ["generate", "--prompts", str(tmp_path / "table.txt"), "--ray", "local", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "The Python package ray is missing; install it with: pip install ray" in capsys.readouterr().err
