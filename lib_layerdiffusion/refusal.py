"""The one error that tells a user why a request can't be served, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class Refusal(Exception):
    """A request that can't be served; ``str(refusal)`` is one sentence that names what is wrong and the cure."""


def list_choices(asked: object, choices: Iterable[object]) -> str:
    """The allowed values as the tail of a refusal, opened by the one that was probably meant, if there is one."""
    allowed = [str(choice) for choice in choices]
    folded = {choice.casefold(): choice for choice in reversed(allowed)}
    near = get_close_matches(str(asked).casefold(), folded, n=1)
    meant = f"did you mean {folded[near[0]]!r}, or another of" if near else "allowed are"
    return f"{meant} {', '.join(allowed)}"
