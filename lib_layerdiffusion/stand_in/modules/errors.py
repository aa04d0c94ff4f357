"""How a WebUI treats exceptions of extensions: it logs them and continues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def report(message: str, *, exc_info: bool = False) -> None:
    """Log a message, with the traceback of the exception that is being handled if asked."""
    logger.error("*** %s", message, exc_info=exc_info)


def attempt(job: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a function of an extension; what it raises is logged, and the answer is None."""
    try:
        return function(*args, **named)
    except Exception:  # noqa: BLE001 - whatever it is, WebUIs continue
        report(f"Error {job}", exc_info=True)
        return None
