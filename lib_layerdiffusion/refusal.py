"""The one error that tells a user why a request can't be served, and what to do about it; and what counts as such."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE_WORDS = ("no space left", "os error 28", "unexpected pos")  # of Python, safetensors and torch.save

# Of CUDA, ROCm, XPU and MPS; and of DirectML and the processor.
MEMORY_WORDS = ("out of memory", "allocate")


class Refusal(Exception):
    """A request that can't be served; ``str(refusal)`` is one sentence that names what is wrong and the cure."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, like all others."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        for word in args or ():
            if word.startswith("--") and word.endswith("=--"):  # of which argparse makes an empty list
                self.error(f"argument {word[:-3]}: '--' is not a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message[:1].upper()}{message[1:].rstrip('.')}; `{self.prog} --help` lists what is accepted.")


def integer(low: int, high: int) -> Callable[[str], int]:
    """Make an argument type for whole numbers from `low` to `high`."""
    return _bounded(int, "whole number", low, high)


def real(low: float, high: float) -> Callable[[str], float]:
    """Make an argument type for numbers from `low` to `high`."""
    return _bounded(float, "number", low, high)


def _bounded(convert: Callable[[str], Any], kind: str, low: float, high: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            number = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a {kind}") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text[:60]} is not between {low} and {high}")
        return number

    return read


def list_choices(asked: object, choices: Iterable[object]) -> str:
    """The allowed values as the tail of a refusal, opened by the one that was probably meant, if there is one."""
    allowed = [str(choice) for choice in choices]
    folded = {choice.casefold(): choice for choice in reversed(allowed)}
    near = get_close_matches(str(asked).casefold(), folded, n=1)
    meant = f"did you mean {folded[near[0]]!r}, or another of" if near else "allowed are"
    return f"{meant} {', '.join(allowed)}"


@contextmanager
def using_path(path: object) -> Iterator[None]:
    """Turn what the system says to a path that can't be read or written into a Refusal."""
    try:
        if "\0" in str(path):  # such a path only seems to be absent
            raise ValueError("a NUL in the name")
        yield
    except (OSError, ValueError, RuntimeError) as error:  # the last of a ~name that is nobody's
        raise refuse_path(path, error) from error


def refuse_path(path: object, error: Exception) -> Refusal:
    """The sentence for a path that the system refuses: there is none, no permission, too long, no space left ..."""
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT:
            cure = "free some space or choose another folder"
        case errno.ENAMETOOLONG:
            cure = "choose a shorter name"
        case errno.EEXIST | errno.ENOTDIR:
            cure = "a file is in the way, so choose another name"
        case errno.EISDIR:
            cure = "name a file in it, or choose another name"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            cure = "change its permissions, or choose another place"
        case _:
            cure = "check its name and folder"
    reason = getattr(error, "strerror", None) or str(error).rstrip(".")
    return Refusal(f"{show_path(path)} can't be used ({reason}): {cure}.")


def show_path(path: object) -> str:
    """A path as a sentence names it: on one line, and not too long."""
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
    return name if name.isprintable() else repr(name)


def lacks_space(error: BaseException) -> bool:
    """Whether writing failed because the disk is full; with some libraries only the words tell."""
    return getattr(error, "errno", None) in NO_SPACE or any(each in str(error).casefold() for each in NO_SPACE_WORDS)


def lacks_memory(error: BaseException) -> bool:
    """Whether a computation failed because a device's or the processor's memory was short.

    torch has a class of its own for that with some devices; with others only the words tell.
    """
    words = str(error).casefold()
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and any(each in words for each in MEMORY_WORDS))
