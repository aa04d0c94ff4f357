"""A stub of what the panel, settings, infotext and axes touch of a WebUI's `modules`, written for these tests."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WeightStore


class OptionInfo:
    """An entry of the settings page."""

    do_not_save = False

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        section: Any = None,
        restrict_api: bool = False,
    ) -> None:
        self.default, self.label, self.section, self.restrict_api = default, label, section, restrict_api
        self.component = component
        self.comment_after = ""

    def info(self, text: str) -> OptionInfo:
        self.comment_after += f"<span class='info'>({text})</span>"
        return self


class AxisOption:
    """An axis as the plot script defines it."""

    def __init__(
        self, label: str, type: Any, apply: Any, format_value: Any = None, confirm: Any = None, choices: Any = None
    ) -> None:
        self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices


def _process_or_refuse(p: Any) -> Any:
    if p.refusal:
        raise p.refusal
    return p


def make_modules(accordion: Callable[..., Any] | None = None) -> dict[str, ModuleType]:
    """The stub package by module name; without `accordion`, a WebUI that has no InputAccordion."""
    modules, shared, scripts, components = (
        ModuleType(name) for name in ("modules", "modules.shared", "modules.scripts", "modules.ui_components")
    )
    added: dict[str, OptionInfo] = {}
    shared.OptionInfo = OptionInfo
    shared.opts = SimpleNamespace(data_labels=added, add_option=added.__setitem__)
    plot = ModuleType("xyz_grid.py")
    plot.AxisOption = AxisOption
    plot.axis_options = [AxisOption("Nothing", str, lambda p, x, xs: None)]
    plot.Processed = lambda p, images, seed, info: SimpleNamespace(p=p, images=images, seed=seed, info=info)
    plot.process_images = _process_or_refuse
    scripts.scripts_data = [
        SimpleNamespace(path="/webui/scripts/loopback.py", module=ModuleType("loopback.py")),
        SimpleNamespace(path="/webui/scripts/xyz_grid.py", module=plot),
    ]
    if accordion is not None:
        components.InputAccordion = accordion
    modules.shared, modules.scripts, modules.ui_components = shared, scripts, components
    return {each.__name__: each for each in (modules, shared, scripts, components)}


def accordion_of_gradio_3() -> Callable[..., Any]:
    """InputAccordion as a class: a hidden checkbox that owns an accordion and opens it as a context."""
    import gradio as gr

    class InputAccordion(gr.Checkbox):
        def __init__(self, value: bool, label: str, elem_id: str) -> None:
            super().__init__(value, label=label, elem_id=f"{elem_id}-checkbox", visible=False)
            self.accordion = gr.Accordion(label, open=value, elem_id=elem_id)

        def get_block_name(self) -> str:
            return "checkbox"

        def __enter__(self) -> Any:
            self.accordion.__enter__()
            return self

        def __exit__(self, *details: Any) -> None:
            self.accordion.__exit__(*details)

    return InputAccordion


def accordion_of_gradio_4() -> Callable[..., Any]:
    """InputAccordion as a function: gradio 4 makes a component anew to update it, which must make no new accordion."""
    import gradio as gr
    from gradio import component_meta

    create_pyi, component_meta.create_or_modify_pyi = component_meta.create_or_modify_pyi, lambda *details: None
    try:

        class Switch(gr.Checkbox):
            accordion: Any = None

            def __enter__(self) -> Any:
                self.accordion.__enter__()
                return self

            def __exit__(self, *details: Any) -> None:
                self.accordion.__exit__(*details)

            def get_block_name(self) -> str:
                return "checkbox"
    finally:
        component_meta.create_or_modify_pyi = create_pyi

    def make(value: bool, label: str, elem_id: str) -> Any:
        made = Switch(value, label=label, elem_id=f"{elem_id}-checkbox", visible=False)
        made.accordion = gr.Accordion(label, open=value, elem_id=elem_id)
        return made

    return make


@contextmanager
def installed(modules: dict[str, ModuleType]) -> Iterator[dict[str, ModuleType]]:
    """Let the stub be what `import modules` finds."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "modules"}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "modules"]:
            del sys.modules[name]
        sys.modules.update(before)


@dataclass
class FakeExtension:
    """What the panel asks of the extension."""

    weights: WeightStore
    family: str | Exception = "sd15"  # or what asking for the host raises
    last_run: Any = None
    asked: list[str] = field(default_factory=list)

    def store(self) -> WeightStore:
        self.asked.append("store")
        return self.weights

    def current_host(self) -> Any:
        self.asked.append("host")
        if isinstance(self.family, Exception):
            raise self.family
        return SimpleNamespace(family=self.family, name="Forge", why_not=lambda mode, store: "")


NO_MODEL = Refusal("No checkpoint is loaded: choose one.")


def make_extension(folder: Path, **settings: Any) -> FakeExtension:
    """An extension whose weight files lie in a folder, and could be downloaded."""
    store = WeightStore([folder], folder)
    store.offline = False  # whatever the tests' environment says: a status line downloads nothing
    return FakeExtension(store, **settings)


# -- infotext, as WebUIs write and parse it


def write_infotext(entries: dict[str, Any], prompt: str = "a cat") -> str:
    """The text below a picture: quoted where a comma, a colon or a line break is; a name only where it is the value."""
    every = {"Steps": 20, "Sampler": "Euler a", "Seed": 1, "Size": "512x768", **entries, "Version": "f2.0"}
    parts = (name if name == value else f"{name}: {_quote(value)}" for name, value in every.items())
    return f"{prompt}\nNegative prompt: blurry\n{', '.join(parts)}".strip()


# A name of two characters or more, a colon, then a text in quotes or all up to the next comma.
_ENTRY = re.compile(r'(?P<name>\w[-\w /]+):\s*(?:(?P<quoted>"(?:[^"\\]|\\.)+")|(?P<plain>[^,]*))(?:,|$)')
_SIZE = re.compile(r"(?P<width>\d+)x(?P<height>\d+)$")


def parse_infotext(text: str) -> dict[str, str]:
    """The entries of a text; an empty value is lost, and what looks like a size is taken apart."""
    last_line = text.strip().split("\n")[-1]
    parsed: dict[str, str] = {}
    for entry in _ENTRY.finditer(last_line):
        name, value = entry["name"], entry["quoted"] or entry["plain"]
        if not value:
            continue
        if value[0] == value[-1] == '"':
            value = _unquote(value)
        if size := _SIZE.match(value):
            parsed |= {f"{name}-1": size["width"], f"{name}-2": size["height"]}
        else:
            parsed[name] = value
    return parsed


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _unquote(text: str) -> str:
    try:
        return json.loads(text)
    except ValueError:
        return text
