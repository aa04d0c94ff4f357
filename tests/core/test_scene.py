"""Scenes: which passes they take on each family, what comes of them, and what is left when one of them ends early."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_layerdiffusion import scene as scenes
from lib_layerdiffusion.edges import Edges, clean_edges
from lib_layerdiffusion.export import ora, psd
from lib_layerdiffusion.infotext import compose
from lib_layerdiffusion.layers import Layer, LayerStack, composite
from lib_layerdiffusion.modes import Role, find_mode
from lib_layerdiffusion.planning import LARGEST_SEED
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.scene import BACKGROUND, KEY, Pass, Scene, ScenePlan, plan_scene
from lib_layerdiffusion.scene_run import make_scene, take_colour
from lib_layerdiffusion.views import Cancelled
from tests.core.test_exports import check_layers, read_ora, read_psd

SIZE = (12, 9)  # width, height
IMAGE = np.full((9, 12, 4), 200, np.uint8)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)


def paint(seed: int, opaque: bool) -> Any:
    rgba = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
    if opaque:
        rgba[..., 3] = 255
    return rgba


class Model:
    """Makes noise, and keeps what it was asked and given."""

    def __init__(self, end: dict[int, BaseException] | None = None) -> None:
        self.end = end or {}
        self.asked: list[tuple[Pass, dict[Role, Any]]] = []

    def __call__(self, each: Pass, inputs: Mapping[Role, Any]) -> Mapping[Role, Any]:
        self.asked.append((each, dict(inputs)))
        if error := self.end.get(len(self.asked)):
            raise error
        return {role: paint(each.seed + n, role != "foreground") for n, role in enumerate(each.makes)}


def modes_of(plan: ScenePlan) -> list[str]:
    return [each.mode for each in plan.passes]


def given_of(plan: ScenePlan) -> dict[Role, Any]:
    return {role: paint(1000 + n, role == "background") for n, role in enumerate(plan.given)}


@st.composite
def any_scene(draw: st.DrawFn) -> Scene:
    """What a user may ask for, without what is refused."""
    values: dict[str, Any] = {
        "background": draw(TEXTS) or "a table",
        "foregrounds": draw(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=scenes.MOST_FOREGROUNDS)),
        "match_blend": draw(st.booleans()),
        "weight": draw(st.floats(0, 2)),
        "views": draw(st.sampled_from([1, 2, 4, 8])),
        "outputs": draw(st.lists(st.sampled_from(scenes.SCENE_OUTPUTS), min_size=1)),
        "defringe": draw(st.sampled_from(["", "grey", "#3366cc"])),
        "black_point": draw(st.floats(0, 0.4)),
        "gamma": draw(st.floats(0.1, 10)),
        "choke": draw(st.floats(-3, 3)),
        "threshold": draw(st.floats(0, 1)),
    }
    started = draw(st.sampled_from(["", "background_image", "foreground_image", "both"]))
    if started in ("background_image", "foreground_image"):
        values[started] = IMAGE
    elif started == "both" and len([*filter(str.strip, values["foregrounds"])]) > 1:
        values |= {"background_image": IMAGE, "foreground_image": IMAGE}
    else:
        values["first"] = draw(st.sampled_from(scenes.FIRSTS))
    return Scene.from_dict(values)


@pytest.mark.slow
@given(scene=any_scene(), family=st.sampled_from(["sd15", "sdxl"]), prompt=TEXTS, seed=st.integers(0, LARGEST_SEED))
@settings(max_examples=500, deadline=None)
def test_any_scene_can_be_planned_and_made(scene: Scene, family: str, prompt: str, seed: int) -> None:
    plan = plan_scene(scene, family, prompt, seed)
    model = Model()
    made = make_scene(plan, model, given_of(plan), SIZE, scene.match_blend)

    names = [name for name, _ in plan.layers]
    assert names[0] == BACKGROUND
    assert len(set(names)) == len(names) == 1 + max(1, len(scene.foregrounds))
    assert all(0 < len(name) < 50 for name in names)
    assert [layer.name for layer in made.stack.layers] == names
    assert not made.unmade
    assert made.error is None

    assert plan.passes[0].seed == seed
    sampled = [frame for each in plan.passes for frame in sample_seeds(each)]
    assert len(set(sampled)) == len(sampled), "two images start from the same noise"
    for each, inputs in model.asked:
        assert 0 <= each.seed <= LARGEST_SEED
        if each.mode:
            mode = find_mode(each.mode, family)
            assert set(each.makes) == set(mode.frames)
            assert set(inputs) == set(mode.inputs)
            assert each.stop_at == mode.suggested_stop_at

    layers = {layer.name: layer for layer in made.stack.layers}
    for index, name in enumerate(names[1:]):
        (maker, inputs) = next(((e, i) for e, i in model.asked if name in e.makes.values()), (None, {}))
        if maker is not None and "background" in inputs:  # made for the recomposite of what lies beneath it
            beneath = composite([layers[each] for each in names[: index + 1]])
            assert np.array_equal(inputs["background"], beneath)
    for blend in made.blends:
        shown = composite([layers[name] for name in plan.blends[blend.name]])
        assert blend.difference == pytest.approx(np.abs(blend.image[..., :3] / 255 - shown[..., :3] / 255).mean())
    read_back(made.stack)


def sample_seeds(each: Pass) -> list[int]:
    return [(each.seed + n) % (LARGEST_SEED + 1) for n in range(len(each.makes))]


def read_back(stack: LayerStack) -> None:
    """PSD and ORA hold the same layers, which make the same recomposite."""
    whole = composite(stack)
    for writer, read in ((ora, lambda file: read_ora(file)[1]), (psd, lambda file: read_psd(file)[1])):
        buffer = io.BytesIO()
        writer.write_to(stack, buffer)
        rows = read(io.BytesIO(buffer.getvalue()))
        check_layers(stack, rows)
        again = LayerStack(tuple(Layer(name, pixels, "foreground", place) for name, place, pixels in rows), stack.size)
        assert np.array_equal(composite(again), whole)


# -- the passes of each kind of scene


def test_one_foreground_on_sd15_is_one_joint_pass() -> None:
    (only,) = plan_scene(Scene(background="a table", foregrounds=("a red apple",)), "sd15", "oil painting", 5).passes
    assert (only.mode, only.prompt, only.seed) == ("together", "oil painting", 5)
    assert only.prompts == {"foreground": "a red apple", "background": "a table", "blend": "a red apple, a table"}


TWO = ("an apple", "a glass")
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "two foregrounds": (
        {"foregrounds": TWO},
        ["", "background_to_foreground", "background_to_foreground"],
        ["", *["background_to_blend", "background_blend_to_foreground"] * 2],
    ),
    "background first": (
        {"foregrounds": TWO[:1], "first": "background"},
        ["", "background_to_foreground"],
        ["", "background_to_blend", "background_blend_to_foreground"],
    ),
    "foreground first": (
        {"foregrounds": TWO, "first": "foreground"},
        ["foreground", "foreground_to_background", "background_to_foreground"],
        [
            *("foreground", "foreground_to_blend", "foreground_blend_to_background"),
            *("background_to_blend", "background_blend_to_foreground"),
        ],
    ),
    "given background": (
        {"foregrounds": TWO[:1], "background_image": IMAGE},
        ["background_to_foreground"],
        ["background_to_blend", "background_blend_to_foreground"],
    ),
    "given foreground": (
        {"foreground_image": IMAGE},
        ["foreground_to_background"],
        ["foreground_to_blend", "foreground_blend_to_background"],
    ),
    "both given": (
        {"foregrounds": TWO, "foreground_image": IMAGE, "background_image": IMAGE},
        ["background_to_foreground"],
        ["background_to_blend", "background_blend_to_foreground"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_chains_of_passes(case: str) -> None:
    values, sd15, sdxl = CASES[case]
    for family, expected in (("sd15", sd15), ("sdxl", sdxl)):
        assert modes_of(plan_scene(Scene(background="a table", **values), family)) == expected


def test_sdxl_gives_blend_and_background_to_the_second_step_and_stops_it_as_suggested() -> None:
    scene = Scene(background="a table", foregrounds=("an apple",), first="foreground")
    foreground, blend, background = plan_scene(scene, "sdxl", "photo").passes
    assert (foreground.prompt, blend.prompt, background.prompt) == (
        "an apple, photo",
        "an apple, a table, photo",
        "a table, photo",
    )
    assert background.inputs == {"foreground": ("an apple",), "blend": ("blend with an apple",)}
    assert [each.stop_at for each in (foreground, blend, background)] == [1, 1, 0.5]


def test_a_foreground_is_the_same_whatever_comes_after_it() -> None:
    short, long = (plan_scene(Scene(background="a", foregrounds=texts), "sd15", "", 3) for texts in (TWO, (*TWO, "c")))
    assert long.passes[: len(short.passes)] == short.passes


def test_names_are_the_first_words_of_the_prompts() -> None:
    texts = ("(a red apple:1.2), glossy <lora:x:1>", "a red apple", "<lora:y:1>", "background", "word " * 30)
    names = [name for name, _ in plan_scene(Scene(background="b", foregrounds=texts), "sd15").layers]
    assert names[:5] == ["background", "a red apple", "a red apple 2", "foreground", "background 2"]
    assert names[5] == "word word word word word word word word"


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", [None] * 3),
        (" \n", [None] * 3),
        ("0; 1,0 ;-", [{0}, {0, 1}, set()]),
        ("-;-;12", [set(), set(), {12}]),
    ],
)
def test_each_pass_has_its_controlnet_units(text: str, units: list[set[int] | None]) -> None:
    plan = plan_scene(Scene(background="a table", foregrounds=TWO, controlnet_units=text), "sd15")
    assert [each.units for each in plan.passes] == units


@pytest.mark.parametrize("text", ["x", "0;", ";0", "0;;1", "-1", "0-2", "0,", "0.5", "none", "1000", "\u0661"])
def test_units_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(Refusal, match=r"controlnet_units can't be .*: write the numbers of each pass's units"):
        Scene(background="a table", foregrounds=TWO, controlnet_units=text)


@pytest.mark.parametrize(
    ("family", "text", "match"),
    [
        (
            "sd15",
            "0",
            r"is for 1 pass and the scene has 3 passes \(background; an apple, blend with an apple; a glass, ",
        ),
        (
            "sdxl",
            "0;0;0",
            r"for 3 passes and the scene has 5 passes \(background; blend with an apple; an apple; blend w",
        ),
    ],
)
def test_units_of_other_passes_than_there_are_are_refused(family: str, text: str, match: str) -> None:
    with pytest.raises(Refusal, match=f"{match}.*: write the units of each, - for none"):
        plan_scene(Scene(background="a table", foregrounds=TWO, controlnet_units=text), family)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"foregrounds": ["x"] * 9}, r"at most 8 foregrounds, not 9: leave some out"),
        ({}, r"needs a foreground: name one or more"),
        ({"foregrounds": ["x"]}, r"needs a background: name it in background"),
        ({"foregrounds": "x", "first": "background", "foreground_image": IMAGE}, r"leave out foreground_image"),
        ({"foregrounds": "x", "first": "foreground", "background_image": IMAGE}, r"leave out background_image"),
        ({"foregrounds": "x", "background_image": IMAGE, "foreground_image": IMAGE}, r"nothing is left to make"),
        ({"foregrounds": 3}, r"foregrounds must be a list of texts"),
        ({"foregrounds": ["x"], "firsts": "auto"}, r"no option 'firsts': did you mean 'first'"),
        ({"foregrounds": ["x"], "views": 3}, r"views can't be 3"),
    ],
)
def test_what_cannot_be_made_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        plan_scene(Scene.from_dict(values), "sd15")


def test_other_families_are_refused() -> None:
    with pytest.raises(Refusal, match="no LayerDiffusion weights for flux models"):
        plan_scene(Scene(background="a", foregrounds=("b",)), "flux")


def test_foregrounds_can_be_lines_of_one_text() -> None:
    assert Scene(background="a", foregrounds=" an apple\n\n a glass ").foregrounds == TWO  # pyright: ignore


# -- ends before the end

THREE = Scene(background="a table", foregrounds=("an apple", "a glass", "a spoon"))


@pytest.mark.parametrize("error", [Cancelled(), KeyboardInterrupt(), Refusal("The disk is full."), ValueError("odd")])
def test_complete_layers_are_kept_and_named(error: BaseException) -> None:
    plan = plan_scene(THREE, "sd15")
    whole = make_scene(plan, Model(), {}, SIZE)
    made = make_scene(plan, model := Model({3: error}), {}, SIZE)
    assert len(model.asked) == 3
    assert [layer.name for layer in made.stack.layers] == ["background", "an apple"]
    for kept, same in zip(made.stack.layers, whole.stack.layers, strict=False):
        assert np.array_equal(kept.image, same.image)
    assert made.unmade == ("a glass", "a spoon")
    assert made.interrupted == isinstance(error, Cancelled | KeyboardInterrupt)
    assert "background, an apple kept, a glass, a spoon not made" in made.notes[0]
    assert (str(error).rstrip(".") or "interrupted") in made.notes[0]


def test_a_blend_without_its_foreground_is_kept_as_a_blend() -> None:
    made = make_scene(plan_scene(THREE, "sdxl"), Model({5: Cancelled()}), {}, SIZE)
    assert [layer.name for layer in made.stack.layers] == ["background", "an apple"]
    assert [(each.name, each.difference is None) for each in made.blends] == [
        ("blend with an apple", False),
        ("blend with a glass", True),
    ]


@pytest.mark.parametrize("values", [{}, {"background_image": IMAGE}])
def test_a_first_pass_that_fails_is_an_error(values: dict[str, Any]) -> None:
    scene = Scene.from_dict({"background": "a table", "foregrounds": TWO, **values})
    plan = plan_scene(scene, "sd15")
    with pytest.raises(Refusal, match="The disk is full"):
        make_scene(plan, Model({1: Refusal("The disk is full.")}), given_of(plan), SIZE)


def test_images_of_another_size_end_the_scene() -> None:
    def enlarge(each: Pass, inputs: Any) -> Any:
        return {role: np.zeros((18, 24, 4), np.uint8) for role in each.makes}

    with pytest.raises(Refusal, match=r"'background' came back as 24x18 instead of 12x9: switch off"):
        make_scene(plan_scene(THREE, "sd15"), enlarge, {}, SIZE)


# -- colour from the blend


@given(seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_blend_gives_the_colour_back_that_it_was_put_together_from(seed: int) -> None:
    background, foreground = paint(seed, True), paint(seed + 1, False)
    blend = composite([Layer("b", background, "background"), Layer("f", foreground, "foreground")])
    other = foreground.copy()
    other[..., :3] = 255 - other[..., :3]
    taken = take_colour(other, background, blend)
    assert np.array_equal(taken[..., 3], foreground[..., 3])
    solid, faint = foreground[..., 3] >= 77, foreground[..., 3] <= 25  # alpha 0.3 and 0.1
    errors = np.abs(taken[..., :3].astype(int) - foreground[..., :3])
    assert (errors[solid] <= 2).all()  # half a level of rounding, divided by alpha
    assert np.array_equal(taken[faint], other[faint])


def test_the_colour_is_bounded() -> None:
    background, foreground = np.full((1, 2, 4), 255, np.uint8), np.full((1, 2, 4), 128, np.uint8)
    blend = np.full((1, 2, 4), 255, np.uint8)
    blend[0, 0, :3], background[0, 1, :3] = 0, 0  # darker, and lighter, than any colour of this alpha can make it
    taken = take_colour(foreground, background, blend)
    assert taken[0, 0].tolist() == [0, 0, 0, 128]
    assert taken[0, 1].tolist() == [255, 255, 255, 128]


def test_with_match_blend_the_recomposite_is_nearer_to_the_blend() -> None:
    plan = plan_scene(THREE, "sd15")
    apart, near = (make_scene(plan, Model(), {}, SIZE, match) for match in (False, True))
    for one, other in zip(apart.blends, near.blends, strict=True):
        assert (other.difference or 0) < (one.difference or 0)
    assert [each for each in apart.notes if "blend with an apple differs from the layers put together by" in each]


# -- edges

HARD = {"threshold": 0.5, "choke": 1.0}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("first", ["background", "foreground"])
def test_the_edges_of_every_foreground_are_cleaned_before_the_next_is_made(family: str, first: str) -> None:
    asked = Scene(**THREE.to_dict() | {"first": first})
    plain = make_scene(plan_scene(asked, family), Model(), {}, SIZE)
    plan = plan_scene(Scene(**asked.to_dict() | HARD), family)
    model = Model()
    made = make_scene(plan, model, {}, SIZE)
    for layer, same in zip(made.stack.layers, plain.stack.layers, strict=True):
        wanted = clean_edges(same.image, Edges(**HARD)) if layer.role == "foreground" else same.image
        assert np.array_equal(layer.image, wanted)
    images = {layer.name: layer.image for layer in made.stack.layers}
    for each, inputs in model.asked:
        for role in {"background", "foreground"} & set(each.inputs):
            shown = composite([Layer(name, images[name], "foreground") for name in each.inputs[role]])
            assert np.array_equal(inputs[role], shown), "a pass is given what the files hold"
    for blend in made.blends:
        shown = composite([Layer(name, images[name], "foreground") for name in plan.blends[blend.name]])
        assert blend.difference == pytest.approx(np.abs(blend.image[..., :3] / 255 - shown[..., :3] / 255).mean())


def test_a_foreground_that_is_given_keeps_its_bytes() -> None:
    plan = plan_scene(Scene(background="a table", foreground_image=IMAGE, **HARD), "sd15")
    given = given_of(plan)
    made = make_scene(plan, Model(), given, SIZE)
    assert np.array_equal(made.stack.layers[1].image, given["foreground"])


def test_the_blends_colour_is_taken_with_the_alpha_that_it_shows() -> None:
    """Taken with the cleaned alpha, it would paint the edge back that was to be cut off."""
    asked = {"background": "a table", "foregrounds": ["an apple"], "first": "background"}
    plans = (plan_scene(Scene(**asked, **edges), "sd15") for edges in ({}, HARD))
    plain, hard = (make_scene(plan, Model(), {}, SIZE, match_blend=True).stack.layers[1].image for plan in plans)
    assert np.array_equal(hard, clean_edges(plain, Edges(**HARD)))


def test_edges_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(Refusal, match="must be below white_point"):
        Scene(foregrounds=("a cat",), black_point=0.5, white_point=0.5)


# -- infotext


@given(scene=any_scene(), prompt=TEXTS.filter(lambda text: "\n" not in text and ":" not in text))
@settings(max_examples=100, deadline=None)
def test_infotexts_give_the_options_back(scene: Scene, prompt: str) -> None:
    from lib_layerdiffusion.stand_in.modules.infotext_utils import PARAMETER, unquote

    text = compose(prompt, "", {"Steps": 20, "Seed": 1, "Size": "64x64", **scenes.describe(scene)})
    params = {name: unquote(value) for name, value in PARAMETER.findall(text.split("\n")[-1])}
    assert params["Script"] == scenes.TITLE
    wanted = scene.to_dict() | {"background_image": None, "foreground_image": None}
    assert scenes.read(params) == wanted


@pytest.mark.parametrize("text", ["", "{", "[]", '{"views": 3, "foregrounds": ["x"]}', '{"unknown": 1}', "3"])
def test_unreadable_infotexts_give_the_defaults(text: str) -> None:
    assert scenes.read({KEY: text}) == scenes.read({})
