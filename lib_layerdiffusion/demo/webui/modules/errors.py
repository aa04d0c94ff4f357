"""How a WebUI treats exceptions of extensions: it says them and goes on."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def report(message: str, *, exc_info: bool = False) -> None:
    """Log a message, with the traceback of the exception that is being handled if asked."""
    logger.error("*** %s", message, exc_info=exc_info)
