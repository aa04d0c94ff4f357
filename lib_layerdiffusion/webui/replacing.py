"""The only way in which functions of the WebUI are replaced, so that they can always be put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Replaced:
    """A replaced attribute and what was there."""

    owner: Any
    name: str
    replacement: Any
    before: Any
    inherited: bool  # the owner had no attribute of its own, as an instance has its class's methods

    def restore(self) -> None:
        """Put back what was there; what another extension has put over the replacement stays, and calls it."""
        if vars(self.owner).get(self.name) is not self.replacement:
            return
        if self.inherited:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)


def replace_method(owner: Any, name: str, wrap: Wrap) -> Replaced:
    """Replace a method of an instance or a class by `wrap(method)`."""
    before = getattr(owner, name)
    replacement = functools.wraps(before)(wrap(before))
    inherited = name not in vars(owner)
    setattr(owner, name, replacement)
    return Replaced(owner, name, replacement, before, inherited)
