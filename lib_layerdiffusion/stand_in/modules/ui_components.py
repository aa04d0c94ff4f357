"""Components that extensions take from a WebUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr


@contextmanager
def without_stub_files() -> Iterator[None]:
    """Keep gradio 4 from writing a stub file next to every class that derives from a component."""
    meta: Any = getattr(gr, "component_meta", None)
    if meta is None:  # gradio 3
        yield
        return
    write, meta.create_or_modify_pyi = meta.create_or_modify_pyi, lambda *about: None
    try:
        yield
    finally:
        meta.create_or_modify_pyi = write


with without_stub_files():

    class Switch(gr.Checkbox):
        """A checkbox with contents; its value is whether it is on, and then the contents are shown."""

        accordion: Any = None

        def get_block_name(self) -> str:
            return "checkbox"

        def extra(self) -> Any:
            """A place for more next to the title."""
            return gr.Column(elem_id=f"{self.elem_id}-extra", min_width=0)

        def __enter__(self) -> Switch:
            self.accordion.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.accordion.__exit__(*error)


def InputAccordion(value: bool = False, **named: Any) -> Switch:
    """Contents below a switch. With `elem_id` "x" the switch's element is "x-checkbox", that of the contents "x".

    A function and not a class, because gradio 4 makes a component anew for each update of it.
    """
    content_id = named.pop("elem_id", None) or "input-accordion"
    switch = Switch(value, elem_id=f"{content_id}-checkbox", **named)
    switch.accordion = gr.Column(visible=value, elem_id=content_id)
    switch.change(lambda on: gr.update(visible=on), switch, switch.accordion, show_progress="hidden", queue=False)
    return switch


def ToolButton(value: str = "", *, tooltip: str | None = None, **named: Any) -> gr.Button:
    """A small button that shows a sign."""
    return gr.Button(value, size="sm", min_width=40, scale=0, **named)
