"""Infotexts: how values are quoted in them, how they are read, and how a page's fields are filled from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from . import errors, script_callbacks, shared

PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # the form that all WebUIs read
SIZE = re.compile(r"^(\d+)x(\d+)$")
NEGATIVE = "Negative prompt:"


class PasteField(tuple[Any, Any]):
    """A component and what fills it: a parameter's name, or a function of all parameters."""

    api: str | None

    def __new__(cls, component: Any, target: Any, *, api: str | None = None) -> PasteField:
        made = super().__new__(cls, (component, target))
        made.api = api
        return made

    @property
    def component(self) -> Any:
        return self[0]

    @property
    def label(self) -> str | None:
        return self[1] if isinstance(self[1], str) else None

    @property
    def function(self) -> Callable[[dict[str, Any]], Any] | None:
        return self[1] if callable(self[1]) else None


paste_fields: dict[str, dict[str, Any]] = {}


def quote(value: Any) -> Any:
    """A value as it stands in an infotext."""
    text = str(value)
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", text) else value


def unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_generation_parameters(x: str, skip_fields: Sequence[str] | None = None) -> dict[str, Any]:
    """All parameters of an infotext by name; a size is split into "-1" (width) and "-2" (height)."""
    *lines, last = x.strip().split("\n")
    if len(PARAMETER.findall(last)) < 3:
        lines, last = [*lines, last], ""
    start = next((n for n, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    prompt, negative = ("\n".join(line.strip() for line in part) for part in (lines[:start], lines[start:]))
    params: dict[str, Any] = {
        "Prompt": prompt,
        "Negative prompt": negative.removeprefix(NEGATIVE).strip(),
    }
    for name, value in PARAMETER.findall(last):
        value = unquote(value)
        size = SIZE.match(value)
        params |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    for name in shared.opts.infotext_skip_pasting if skip_fields is None else skip_fields:
        params.pop(name, None)
    return params


def add_paste_fields(tabname: str, fields: Sequence[Any]) -> None:
    """Register which fields of a tab an infotext fills."""
    made = [each if isinstance(each, PasteField) else PasteField(*each) for each in fields]
    paste_fields[tabname] = {"init_img": None, "fields": made, "override_settings_component": None}


def paste(text: str, fields: Sequence[PasteField]) -> list[Any]:
    """A gradio update for each field; a field that the infotext says nothing about stays as it is."""
    import gradio as gr

    params = parse_generation_parameters(text or "")
    script_callbacks.call("infotext_pasted", text, params)
    updates: list[Any] = []
    for component, target in fields:
        function = target if callable(target) else lambda given, name=target: given.get(name)
        value = errors.attempt(f"executing {target}", function, params)
        updates.append(to_update(component, value, gr))
    return updates


def to_update(component: Any, value: Any, gr: Any) -> Any:
    """A value, brought to the type of the component's own, as an update."""
    if value is None:
        return gr.update()
    if isinstance(value, type(gr.update())):
        return value
    kind = type(component.value)
    try:
        value = False if kind is bool and value == "False" else float(value) if kind is int else kind(value)
    except (TypeError, ValueError):
        return gr.update()
    return gr.update(value=value)
