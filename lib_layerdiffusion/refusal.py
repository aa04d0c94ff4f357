"""The one error that tells a user why a request can't be served, and what to do about it."""

from __future__ import annotations


class Refusal(Exception):
    """A request that can't be served; ``str(refusal)`` is one sentence that names what is wrong and the cure."""
