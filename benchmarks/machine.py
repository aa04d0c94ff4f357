"""What this machine can do, and how the other benchmarks here measure: processor time, the least of a few runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 3


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16, by what Linux says of it."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def time_work(work: Callable[[], Any], rounds: int = ROUNDS, clock: Callable[[], float] = time.process_time) -> float:
    """Processor seconds, or those of another clock, of the shortest of some calls, after one that doesn't count."""
    times: list[float] = []
    for _ in range(rounds + 1):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times[1:])


def measure_speed(dtype: torch.dtype = torch.float32, side: int = 2048) -> float:
    """10⁹ operations a processor second that a product of two square matrices gets."""
    a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / time_work(lambda: a @ b) / 1e9


def measure_peak(work: Callable[[], Any]) -> int:
    """Bytes that a call takes at its peak of torch's allocator for the processor, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events: Any = profiler.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    taken = [event for event in events if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(taken, key=lambda event: event.start_ns())))


def count_work(work: Callable[[], Any]) -> float:
    """10⁹ operations of a call, by torch's own count: multiplications and additions are one each.

    The call has to be one with tensors on the device `meta`: nothing is computed, and on the processor torch doesn't
    count attention.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def head(*cells: str) -> None:
    """The first rows of a Markdown table."""
    say(*cells)
    say(*["---"] * len(cells))


def say(*cells: object) -> None:
    """A row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
