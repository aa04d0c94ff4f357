"""Runs a function on many tasks, in processes or on a Ray cluster: a worker that ends is replaced, no task is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

from ..refusal import Refusal

Task = TypeVar("Task")
Result = TypeVar("Result")

FAILURES = 3  # times that workers may end without a finished task between them, before the command gives up


def run_in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Generator[Result, None, None]:
    """The results as they are finished. At most two tasks for each process are handed out at a time.

    On any exception the processes end at once, and what they have finished comes before it is raised. Close what isn't
    read to its end.
    """
    left, failures = dict(enumerate(tasks)), 0
    while left:
        before = len(left)
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_process, (workers,)) as pool:
            running: dict[Future[Result], int] = {}
            todo = iter(list(left))
            try:
                while True:
                    while len(running) < 2 * workers and (number := next(todo, None)) is not None:
                        running[pool.submit(work, left[number])] = number
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del left[running.pop(future)]
                        yield result
            except BaseException as error:
                _end_processes(pool)
                if isinstance(error, GeneratorExit):  # nobody takes anything more
                    raise
                for future, number in running.items():
                    if future.done() and not future.cancelled() and future.exception() is None:
                        del left[number]
                        yield future.result()
                if not isinstance(error, BrokenProcessPool):
                    raise
        failures = 0 if len(left) < before else failures + 1
        if failures == FAILURES:
            raise Refusal(
                f"The processes ended {FAILURES} times before they had made anything: use fewer --workers, since "
                "memory may not suffice for so many models."
            )


def run_on_ray(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, address: str, gpu: bool | None
) -> Iterator[Result]:
    """The results as they are finished, by actors, each of which has one task at a time.

    Ray places them, starts one that ended anew, and gives it its task again.

    address: of a cluster, `auto` for the one that Ray finds, or `local` for one here that ends with the call.
    gpu: give each worker a graphics card; None does so where the cluster has any.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use over the network
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayActorError, RayTaskError  # pyright: ignore[reportMissingImports]
    from ray.util import ActorPool  # pyright: ignore[reportMissingImports]

    with _connected(address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpu = any(node.get("GPU") for node in nodes) if gpu is None else gpu
        make: Any = ray.remote(
            num_cpus=_share_nodes(nodes, workers, gpu), num_gpus=int(gpu), max_restarts=-1, max_task_retries=FAILURES
        )
        actor = make(_Worker)
        pool = ActorPool([actor.remote(work) for _ in range(workers)])
        try:
            yield from pool.map_unordered(lambda worker, task: worker.run.remote(task), list(tasks))
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise Refusal(
                f"A worker ended {FAILURES + 1} times with the same pictures: use fewer --workers or a smaller "
                "--batch, since its memory may not suffice."
            ) from error


class _Worker:
    """What an actor is: a process that keeps what it has loaded."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def run(self, task: Any) -> Any:
        return self._work(task)


def _end_processes(pool: ProcessPoolExecutor) -> None:
    """End a pool in the middle of its tasks, and begin no more of them."""
    for process in list(pool._processes.values()):  # pyright: ignore[reportPrivateUsage]
        process.terminate()
    pool.shutdown(cancel_futures=True)


def _start_process(workers: int) -> None:
    """Take a share of the cores, and end with the command, also when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the command ends these
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a Ray cluster for the length of the block; Refusal when there is none."""
    import ray  # pyright: ignore[reportMissingImports]

    settings = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level="error", **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise Refusal(
            f"No Ray cluster answers at {address!r} ({reason}): start one with `ray start --head`, or take "
            "--ray local, which needs none."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _share_nodes(nodes: Sequence[dict[str, float]], workers: int, gpu: bool) -> int:
    """The cores of each worker, as many as let all find a place; Refusal when that many find none."""
    if gpu and sum(int(node.get("GPU", 0)) for node in nodes) < workers:
        raise Refusal(f"The Ray cluster has too few graphics cards for {workers} workers: use fewer --workers.")
    most = 1 if gpu else int(max(node.get("CPU", 0) for node in nodes))
    for cores in range(most, 0, -1):
        if sum(int(node.get("CPU", 0) // cores) for node in nodes) >= workers:
            return cores
    raise Refusal(f"The Ray cluster has too few cores for {workers} workers: use fewer --workers.")
