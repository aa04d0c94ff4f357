"""Scenes in the stand-in whose passes take different units of a ControlNet, which is of the shape of the hosts' own."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.scene import TITLE, read
from tests.webui.families import Families
from tests.webui.test_scene import ONE, SETTINGS, TWO, digests, end_in_pass, images_of

pytestmark = pytest.mark.slow

ALL = [["edges", "depth"]] * 3


@dataclass
class Unit:
    """What a unit of the page is: an object that the WebUI's ControlNet itself changes."""

    enabled: bool = False
    module: str = "none"
    weight: float = 1.0
    image: Any = None
    input_mode: str = "simple"


class ControlNet:
    """Adds a script with three units, whose enabled ones change the noise; keeps what each pass saw."""

    def __init__(self, families: Families) -> None:
        import gradio as gr

        self.seen: list[list[str]] = []
        control, webui = self, families.webui

        class Script(webui.scripts.Script):
            def title(self) -> str:
                return "ControlNet"

            def show(self, is_img2img: bool) -> Any:
                return webui.scripts.AlwaysVisible

            def ui(self, is_img2img: bool) -> list[Any]:
                return [gr.State(Unit()) for _ in range(3)]

            def process(self, p: Any, *args: Any) -> None:
                """Forge takes its arguments, AUTOMATIC1111's extension looks them up on `p`."""
                found = p.script_args[self.args_from : self.args_to]
                assert list(map(id, args)) == list(map(id, found))
                units = list_enabled(args)
                control.seen.append([unit.module for unit in units])
                p.extra_generation_params |= {
                    f"ControlNet {n}": f"Module: {each.module}" for n, each in enumerate(units)
                }
                for unit in units:
                    unit.input_mode = "merged"

            def process_before_every_sampling(self, p: Any, *args: Any, noise: Any, **_: Any) -> None:
                for unit in list_enabled(args):
                    noise += unit.weight

        self.script = webui.add(Script)


def list_enabled(args: Any) -> list[Unit]:
    units = [Unit(**each) if isinstance(each, dict) else each for each in args]
    return [unit for unit in units if unit.enabled]


@pytest.fixture
def control(families: Families) -> ControlNet:
    return ControlNet(families)


def make_units() -> list[Unit]:
    image = np.zeros((2, 2, 3), np.uint8)
    return [Unit(True, "edges", 0.5, image), Unit(True, "depth", 0.25, image), Unit()]


@pytest.fixture
def units(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Two that are switched on and one that isn't, as a page or as an API client sends them; they stay as they are."""
    made: list[Any] = make_units()
    if getattr(request, "param", "objects") == "dictionaries":
        made = [asdict(unit) for unit in made]
    before = deepcopy(made)
    yield made
    assert list(map(str, made)) == list(map(str, before))


def run(families: Families, control: ControlNet, units: list[Any], scene: dict[str, Any], **fields: Any) -> Any:
    """The scene of a job that has these units, as the page's button makes it."""
    webui = families.webui
    runner = webui.scripts.scripts_txt2img
    script = next(each for each in runner.selectable_scripts if each.title() == TITLE)
    p = webui.job("txt2img", **SETTINGS | fields)
    args = list(p.script_args)
    args[0] = runner.selectable_scripts.index(script) + 1
    args[script.args_from] = scene
    args[control.script.args_from : control.script.args_to] = units
    sent = p.script_args = tuple(args)
    webui.shared.state.begin("test")
    try:
        processed = runner.run(p, *args)
    finally:
        webui.shared.state.end()
    assert p.script_args is sent
    assert list(map(id, p.script_args[control.script.args_from : control.script.args_to])) == list(map(id, units))
    return processed


def test_without_a_choice_all_units_take_part_in_every_pass(families: Families, control: ControlNet) -> None:
    without = run(families, control, [Unit()] * 3, TWO)
    steered = run(families, control, make_units(), TWO)
    assert control.seen == [[]] * 3 + ALL
    assert not {*digests(steered.images)} & {*digests(without.images)}


@pytest.mark.parametrize("units", ["objects", "dictionaries"], indirect=True)
def test_each_pass_has_its_units(families: Families, control: ControlNet, units: list[Any]) -> None:
    scene = {**TWO, "outputs": ["layers"]}
    without = digests(run(families, control, [Unit()] * 3, scene).images)
    for choice, seen in (
        ("0; 1; -", [["edges"], ["depth"], []]),
        (" - ;1 , 0; 0", [[], ["edges", "depth"], ["edges"]]),
        ("-;-;1", [[], [], ["depth"]]),
        ("-;-;-", [[], [], []]),
    ):
        control.seen.clear()
        made = digests(run(families, control, units, {**scene, "controlnet_units": choice}).images)
        assert control.seen == seen
        first = next((number for number, each in enumerate(seen) if each), len(seen))  # pass that has a unit
        assert made[:first] == without[:first]
        assert first == len(seen) or made[first] != without[first]


def test_scenes_of_a_batch_have_the_same_choice(families: Families, control: ControlNet) -> None:
    run(families, control, make_units(), {**ONE, "first": "background", "controlnet_units": "1;0"}, n_iter=2)
    assert control.seen == [["depth"], ["edges"]] * 2


def test_five_passes_of_sdxl(families: Families, control: ControlNet) -> None:
    families.load("sdxl")
    run(families, control, make_units(), {**TWO, "controlnet_units": "-; 0; 0; 1; -"})
    assert control.seen == [[], ["edges"], ["edges"], ["depth"], []]


def serve_anew(families: Families) -> None:
    """Make the API again, which looks at all scripts' controls when it starts."""
    from fastapi import FastAPI

    app = FastAPI()
    families.webui.module("api.api").Api(app, families.webui.module("call_queue").queue_lock)
    families.webui.stand_in = SimpleNamespace(app=app)


def test_over_http(families: Families, control: ControlNet) -> None:
    serve_anew(families)
    scripts = {"ControlNet": {"args": [{"enabled": True, "module": "edges"}, {"enabled": True, "module": "depth"}]}}
    body: dict[str, Any] = {"script_name": TITLE, "alwayson_scripts": scripts, **SETTINGS}
    answer = families.ask(script_args=[{**TWO, "controlnet_units": "1; 0; -"}], **body)
    texts = [image.info["parameters"] for image in images_of(answer)]
    assert control.seen == [["depth"], ["edges"], []]
    params = families.webui.module("infotext_utils").parse_generation_parameters(texts[-1])
    assert read(params)["controlnet_units"] == "1; 0; -"


def test_infotexts_have_all_units_that_took_part_under_their_numbers(families: Families, control: ControlNet) -> None:
    units = [Unit(), *make_units()[:2]]

    def read_units(choice: str) -> dict[str, str]:
        made = run(families, control, units, {**TWO, "controlnet_units": choice})
        params = families.webui.module("infotext_utils").parse_generation_parameters(made.infotexts[0])
        return {name: value for name, value in params.items() if name.startswith("ControlNet")}

    assert read_units("2; 1; -") == {"ControlNet 1": "Module: edges", "ControlNet 2": "Module: depth"}
    assert read_units("-; 2; -") == {"ControlNet 2": "Module: depth"}
    assert read_units("") == {"ControlNet 0": "Module: edges", "ControlNet 1": "Module: depth"}, "its own numbers"


def test_an_interrupt_in_the_second_pass(
    families: Families, control: ControlNet, units: list[Any], monkeypatch: Any
) -> None:
    scene = {**TWO, "controlnet_units": "0; 1; -"}
    whole = digests(run(families, control, units, scene).images)
    end_in_pass(families, monkeypatch, 2, families.webui.shared.state.interrupt)
    made = run(families, control, units, scene)
    assert control.seen[3:] == [["edges"], ["depth"]]
    assert digests(made.images) == whole[:1]
    monkeypatch.undo()
    assert digests(run(families, control, units, scene).images) == whole


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_in_a_pass(
    families: Families, control: ControlNet, units: list[Any], monkeypatch: Any, number: int
) -> None:
    def fail() -> None:
        raise ValueError("odd weather")

    end_in_pass(families, monkeypatch, number, fail)
    scene = {**TWO, "controlnet_units": "0; 1; -"}
    if number == 1:
        with pytest.raises(Refusal, match="odd weather"):
            run(families, control, units, scene)
    else:
        assert len(run(families, control, units, scene).images) == 1
    assert control.seen == [["edges"], ["depth"]][:number]


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("0; 3; -", r"There is no ControlNet unit 3, only units 0 to 2: name another"),
        ("0; 2; -", r"ControlNet unit 2 is switched off: enable it, or leave it out"),
        (
            "0; 1",
            r"for 2 passes and the scene has 3 passes \(background; an apple, blend with an apple; a glass, blend",
        ),
        ("0; one; -", r"controlnet_units can't be '0; one; -': write the numbers of each pass's units"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_any_pass(
    families: Families, control: ControlNet, units: list[Any], monkeypatch: Any, choice: str, match: str
) -> None:
    end_in_pass(families, monkeypatch, 1, lambda: pytest.fail("a pass began"))
    with pytest.raises(Refusal, match=match) as refused:
        run(families, control, units, {**TWO, "controlnet_units": choice})
    assert getattr(refused.value, "status_code", None) == 422
    assert control.seen == []


def test_without_a_controlnet_a_choice_is_refused(families: Families) -> None:
    answer = families.ask(script_name=TITLE, script_args=[{**TWO, "controlnet_units": "0; -; -"}], **SETTINGS)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("This WebUI has no ControlNet: leave controlnet_units empty")
