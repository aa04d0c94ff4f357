"""The extension's own HTTP routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .extension import Extension


def add_routes(demo: Any, app: Any, extension: Extension) -> None:
    """Add the routes to the WebUI's app."""
