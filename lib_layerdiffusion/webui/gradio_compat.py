"""What differs between gradio 3.41 and 4.40, and between WebUIs' own components, in one place."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

logger = logging.getLogger(__name__)

QUIET = {"show_progress": "hidden", "queue": False}  # of events: answered at once, also during a generation


def major() -> int:
    """Gradio's major version."""
    return int(gr.__version__.split(".")[0])


def with_labels(component: type[Any], pairs: Sequence[tuple[str, Any]], **settings: Any) -> Any:
    """A Dropdown, Radio or CheckboxGroup that shows labels and hands values to Python: pairs of (label, value).

    The WebUIs' file of defaults takes labels and values for the same, so such a component isn't saved there.
    """
    made: Any
    if major() >= 4 or component is gr.Radio:
        made = component(choices=list(pairs), **settings)
    else:
        made = _translated(component)(pairs, **settings)
    made.do_not_save_to_config = True
    return made


def update_choices(pairs: Sequence[tuple[str, Any]], value: Any) -> Any:
    """An update that puts the choices of a Dropdown made by `with_labels` into another order."""
    return gr.update(choices=list(pairs) if major() >= 4 else [label for label, _ in pairs], value=value)


def _translated(component: type[Any]) -> type[Any]:
    """For gradio 3, where choices are plain text: labels on the page, values in Python."""

    class Translated(component):
        def __init__(self, pairs: Sequence[tuple[str, Any]], value: Any, **settings: Any) -> None:
            self._labels = {value: label for label, value in pairs}
            super().__init__(choices=[label for label, _ in pairs], value=value, **settings)
            self.value = value  # what a WebUI's API takes for the default

        def get_block_name(self) -> str:
            return component.__name__.lower()

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "value": self.postprocess(self.value)}

        def postprocess(self, y: Any) -> Any:
            return [self._labels.get(each, each) for each in y] if isinstance(y, list) else self._labels.get(y, y)

        def preprocess(self, x: Any) -> Any:
            values = {label: value for value, label in self._labels.items()}
            return [values.get(each, each) for each in x] if isinstance(x, list) else values.get(x, x)

    return Translated


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
