"""The one error that tells a user why a request can't be served, and what to do about it; and what counts as such."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# Of CUDA, ROCm, XPU and MPS; and of DirectML and the processor.
MEMORY_WORDS = ("out of memory", "allocate")


class Refusal(Exception):
    """A request that can't be served; ``str(refusal)`` is one sentence that names what is wrong and the cure."""


def list_choices(asked: object, choices: Iterable[object]) -> str:
    """The allowed values as the tail of a refusal, opened by the one that was probably meant, if there is one."""
    allowed = [str(choice) for choice in choices]
    folded = {choice.casefold(): choice for choice in reversed(allowed)}
    near = get_close_matches(str(asked).casefold(), folded, n=1)
    meant = f"did you mean {folded[near[0]]!r}, or another of" if near else "allowed are"
    return f"{meant} {', '.join(allowed)}"


def lacks_memory(error: BaseException) -> bool:
    """Whether a computation failed because a device's or the processor's memory was short.

    torch has a class of its own for that with some devices; with others only the words tell.
    """
    words = str(error).casefold()
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and any(each in words for each in MEMORY_WORDS))
