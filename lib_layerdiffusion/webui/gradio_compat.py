"""What differs between gradio 3.41 and 4.40, and between WebUIs' own components, in one place."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

logger = logging.getLogger(__name__)

QUIET = {"show_progress": "hidden", "queue": False}  # of events: answered at once, also during a generation


@contextmanager
def switch_accordion(label: str, elem_id: str) -> Iterator[Any]:
    """An accordion whose title is a checkbox, which is yielded; in a WebUI without such, a plain one with it inside."""
    try:
        from modules.ui_components import InputAccordion
    except ImportError:
        with gr.Accordion(label, open=False):
            yield gr.Checkbox(False, label=f"Enable {label}", elem_id=elem_id)
        return
    with InputAccordion(False, label=label, elem_id=elem_id) as switch:
        yield switch


def tool_button(symbol: str, tooltip: str, elem_id: str) -> Any:
    """A small button with a symbol."""
    try:
        from modules.ui_components import ToolButton
    except ImportError:
        return gr.Button(symbol, elem_id=elem_id, size="sm", min_width=40)
    return ToolButton(value=symbol, elem_id=elem_id, tooltip=tooltip)


def careful(handler: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """An event handler that changes nothing where `handler` raises, since the page has no place for that."""

    @functools.wraps(handler)
    def run(*values: Any) -> Any:
        try:
            return handler(*values)
        except Exception:
            logger.exception("The panel couldn't be updated")
            return [gr.update() for _ in range(outputs)] if outputs > 1 else gr.update()

    return run
