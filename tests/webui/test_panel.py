"""The panel on whichever gradio is there: order, ids, what is visible, its events, and pasting."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio")

from lib_layerdiffusion import infotext  # noqa: E402
from lib_layerdiffusion.modes import MODE_NAMES, MODES, any_row  # noqa: E402
from lib_layerdiffusion.options import EDGES, FIELDS, LayerOptions  # noqa: E402
from lib_layerdiffusion.outputs import list_outputs  # noqa: E402
from lib_layerdiffusion.refusal import Refusal  # noqa: E402
from lib_layerdiffusion.webui import panel, scene_panel, settings, status  # noqa: E402
from lib_layerdiffusion.webui.arguments import OUTPUT_BOXES, PAGE_ORDER, read_options  # noqa: E402
from lib_layerdiffusion.webui.inputs import IMAGES, OPTIONAL, PROMPTS, wanted  # noqa: E402
from lib_layerdiffusion.webui.labels import EXPERT_MODES, LABELS, OUTPUT_LABELS, from_label, to_label  # noqa: E402
from tests.webui import panel_host  # noqa: E402

ROOT = Path(__file__).parents[2]
GRADIO_3 = gr.__version__.startswith("3.")
ACCORDIONS = {
    "class": panel_host.accordion_of_gradio_3 if GRADIO_3 else None,
    "function": None if GRADIO_3 else panel_host.accordion_of_gradio_4,
    "none": lambda: None,
}


def elem_id(name: str) -> str:
    return f"script_txt2img_layerdiffuse_{name}"


def build(extension, accordion=None, is_img2img=False):
    """The panel in a page of its own."""
    accordion = accordion or (panel_host.accordion_of_gradio_3 if GRADIO_3 else panel_host.accordion_of_gradio_4)
    with panel_host.installed(panel_host.make_modules(accordion())), gr.Blocks(analytics_enabled=False) as demo:
        made = panel.build(is_img2img, elem_id, extension)
    return SimpleNamespace(
        demo=demo,
        panel=made,
        named=dict(zip(PAGE_ORDER, made.controls, strict=True)),
        by_id={block.elem_id: block for block in demo.blocks.values() if getattr(block, "elem_id", None)},
    )


@pytest.fixture
def extension(tmp_path):
    return panel_host.make_extension(tmp_path)


@pytest.fixture
def page(extension):
    return build(extension)


def events(page):
    """(component and event, function, output components) of every event with a function."""
    functions = page.demo.fns if isinstance(page.demo.fns, dict) else dict(enumerate(page.demo.fns))
    for index, function in functions.items():
        if function.fn is None:
            continue
        if GRADIO_3:
            dependency = page.demo.dependencies[index]
            targets = [
                each if isinstance(each, tuple | list) else (each, dependency["trigger"])
                for each in dependency["targets"]
            ]
            outputs = [page.demo.blocks[each] for each in dependency["outputs"]]
        else:
            targets, outputs = function.targets, function.outputs
        for block, name in targets:
            yield index, (page.demo.blocks[block].elem_id.removeprefix(elem_id("")), name), function.fn, outputs


def fire(page, event, mode) -> dict:
    """What an event puts where, through gradio's own pre- and postprocessing: JSON by elem_id."""
    index, outputs = next((index, outputs) for index, key, _, outputs in events(page) if key == event)
    sent = page.named["mode"].postprocess(to_label("mode", mode))
    state = {} if GRADIO_3 else gr.blocks.SessionState(page.demo) if hasattr(gr.blocks, "SessionState") else None
    answer = asyncio.run(page.demo.process_api(index, [sent], state=state))
    json.dumps(answer["data"])
    return {block.elem_id.removeprefix(elem_id("")): sent for block, sent in zip(outputs, answer["data"], strict=True)}


# -- what there is


@pytest.mark.parametrize("kind", [kind for kind, make in ACCORDIONS.items() if make])
def test_controls_are_in_the_pages_order_whatever_accordion_there_is(extension, kind):
    page = build(extension, ACCORDIONS[kind])
    assert [control.elem_id.removeprefix(elem_id("")).removesuffix("-checkbox") for control in page.panel.controls] == [
        *PAGE_ORDER
    ]
    assert isinstance(page.named["enabled"], gr.Checkbox)
    assert elem_id("enabled") in page.by_id


def test_the_accordions_title_is_the_switch(page):
    accordion = page.by_id[elem_id("enabled")]
    assert isinstance(accordion, gr.Accordion)
    assert (accordion.label, accordion.open) == ("LayerDiffusion", False)
    assert page.named["enabled"].value is False


def test_advanced_controls_are_in_a_closed_group(page):
    group = page.by_id[elem_id("advanced")]
    assert group.open is False
    inside, left = set(), list(group.children)
    while left:
        block = left.pop()
        left += getattr(block, "children", [])
        inside |= {getattr(block, "elem_id", None)}
    advanced = {"start_at", "resize_mode", "views", *OUTPUT_BOXES, "preview_image"}
    assert inside >= {elem_id(name) for name in advanced}
    assert not inside & {elem_id(name) for name in set(PAGE_ORDER) - advanced - {"output_origin", "pasted"}}


def test_what_is_made_of_all_pictures_is_in_a_closed_group_and_off(page):
    group = page.by_id[elem_id("whole_job")]
    assert (group.label, group.open) == ("Sheet and animation of all pictures", False)
    inside, left = set(), list(group.children)
    while left:
        block = left.pop()
        left += getattr(block, "children", [])
        inside |= {getattr(block, "elem_id", None)}
    own = {name for name in PAGE_ORDER if name.startswith(("atlas", "animation"))}
    assert len(own) == 13
    assert {name for name in PAGE_ORDER if elem_id(name) in inside} == own
    assert [page.named[name].value for name in ("atlas", "animation")] == [False, False]


def test_building_looks_nothing_up_and_twice_is_fine(extension):
    with gr.Blocks(analytics_enabled=False), panel_host.installed(panel_host.make_modules()):
        panel.build(False, lambda name: f"a_{name}", extension)
        panel.build(True, lambda name: f"b_{name}", extension)
    assert extension.asked == [], "a WebUI may load a checkpoint when it is asked for its model"


def test_widgets_follow_the_options_descriptions(page):
    for option in fields(LayerOptions):
        control = page.named.get(option.name)
        if control is None or option.name == "enabled":
            continue
        assert control.label == option.metadata["label"]
        if option.metadata["kind"] == "number":
            limits = {name: option.metadata[name] for name in ("minimum", "maximum", "step")}
            assert {name: getattr(control, name) for name in limits} == limits
        if option.metadata["kind"] != "image":
            value = from_label(option.name, control.value)
            assert value == option.default
            assert type(value) is type(option.default), "an API's short list is filled up with it"
    boxes = {name: page.named[f"outputs_{name}"] for name in OUTPUT_LABELS}
    assert {name: box.label for name, box in boxes.items()} == OUTPUT_LABELS
    assert tuple(name for name, box in boxes.items() if box.value) == LayerOptions.outputs


def test_values_at_rest_are_the_default_options(page):
    values = [control.value for control in page.panel.controls]
    assert read_options(values, from_api=False) == LayerOptions(enabled=False)


def test_images_keep_their_alpha(page):
    for name in IMAGES:
        assert (page.named[name].type, page.named[name].image_mode) == ("pil", "RGBA")


# -- labels


@pytest.mark.parametrize("option", LABELS)
def test_choices_are_shown_in_plain_words_and_read_by_name(page, option):
    control = page.named[option]
    shown = [choice[0] if isinstance(choice, list | tuple) else choice for choice in control.get_config()["choices"]]
    choices = next(each for each in fields(LayerOptions) if each.name == option).metadata["choices"]
    assert [from_label(option, label) for label in sorted(shown, key=list(LABELS[option].values()).index)] == [*choices]
    assert all(label not in choices for label in shown)
    for label in shown:
        assert control.preprocess(label) == label
        args = [label if name == option else page.named[name].value for name in PAGE_ORDER]
        image = Image.new("RGB", (8, 8))  # the resize mode counts where an image is given
        args[PAGE_ORDER.index("background_image")] = image
        if option == "resize_mode":
            args[PAGE_ORDER.index("mode")] = to_label("mode", "background_to_foreground")
        assert getattr(read_options(args, from_api=False), option) == from_label(option, label)


def test_a_client_may_send_what_script_info_shows(page):
    """The routes of a WebUI list the page's values and choices, so these are what a client fills in."""
    args = [True, to_label("mode", "background_to_foreground"), 0.5, None, None, None, None, "Just Resize"]
    options = read_options([*args, *[control.value for control in page.panel.controls[len(args) :]]], from_api=True)
    assert (options.mode, options.weight, options.resize_mode, options.views) == (
        "background_to_foreground",
        0.5,
        "stretch",
        8,
    )


@pytest.mark.parametrize(
    ("ticked", "expected"), [(["ora", "rgba"], ("rgba", "ora")), (["background"], ("background",))]
)
def test_the_boxes_that_are_ticked_are_the_outputs(page, ticked, expected):
    values = {name: control.value for name, control in page.named.items()}
    values |= {box: box.removeprefix("outputs_") in ticked for box in OUTPUT_BOXES}
    assert read_options([values[name] for name in PAGE_ORDER], from_api=False).outputs == expected


def test_no_box_ticked_is_refused_with_what_there_is(page):
    values = {name: control.value for name, control in page.named.items()} | dict.fromkeys(OUTPUT_BOXES, False)
    with pytest.raises(Refusal, match="outputs must be a list with one or more of rgba, background"):
        read_options([values[name] for name in PAGE_ORDER], from_api=False)


def save_and_load(page, changes):
    """What a WebUI's file of defaults does: it keeps values of these classes by label, if the choices have them."""
    kept = {}
    for control in page.panel.controls:
        if getattr(control, "do_not_save_to_config", False):
            continue
        if type(control) in (gr.Slider, gr.Radio, gr.Checkbox, gr.Textbox, gr.Dropdown):
            kept[control.label] = control
    for label, value in changes.items():
        control = kept[label]
        choices = [each[0] if isinstance(each, tuple) else each for each in getattr(control, "choices", [value])]
        assert value in choices, "else the WebUI leaves the default"
        control.value = value
        if type(control) is gr.Dropdown and hasattr(control, "init_field"):
            control.init_field(value)
    return kept


def test_the_webuis_file_of_defaults_keeps_every_option(page):
    changes = {"Layer mode": to_label("mode", "foreground_to_background"), "Decode quality": "2"}
    changes |= {"Resize mode": "Just Resize", "Checkerboard preview": True, "Blend": False, "Weight": 0.5}
    kept = save_and_load(page, changes)
    assert {"pasted", "output_origin"}.isdisjoint(kept)
    options = read_options([control.value for control in page.panel.controls], from_api=False)
    assert (options.mode, options.views, options.resize_mode, options.weight) == (
        "foreground_to_background",
        2,
        "stretch",
        0.5,
    )
    assert options.outputs == ("rgba", "background", "checker")
    assert page.named["foreground_image"].visible, "what that mode needs is there from the start"
    assert not page.named["outputs_rgba"].visible


def test_the_webuis_file_of_defaults_tells_panel_and_scene_apart(page, extension):
    """It names values by file and label, and both scripts are in one file: what shares a label is of one kind."""
    with gr.Blocks(analytics_enabled=False):
        scene = scene_panel.build(lambda name: name, extension)
    kept = save_and_load(page, {})
    shared = [control for control in scene.values() if control.label in kept]
    both = ("weight", "views", "resize_mode", *EDGES)
    assert {control.label for control in shared} == {FIELDS[name].metadata["label"] for name in both}
    for control in shared:
        other = kept[control.label]
        assert (type(control), control.value) == (type(other), other.value), control.label


def test_modes_that_can_run_come_first_and_expert_ones_last():
    ordinary = ["foreground", "together", "foreground_to_background", "background_to_foreground"]

    def order(*args):
        return [from_label("mode", label) for label in panel.list_modes(*args)]

    assert order("sd15")[:4] == ordinary
    assert order("sdxl") == ["foreground", *EXPERT_MODES, *ordinary[1:]]
    assert order("sd15", {"foreground"})[:4] == [*ordinary[1:], "foreground"]
    assert set(order("sdxl")) == set(order()), "the labels stay"
    assert {name for name, label in LABELS["mode"].items() if label.startswith("Advanced: ")} == set(EXPERT_MODES)
    assert {mode.name for mode in MODES if mode.family == "sd15"} == set(ordinary)


# -- events


def test_only_inputs_of_the_mode_are_visible_at_first(page):
    visible = {name for name in panel.CHANGING if page.named[name].visible}
    outputs = ("rgba", "checker", "over_black", "over_white", "over_image", "alpha", "psd", "ora")
    assert visible == wanted("foreground") | {f"outputs_{name}" for name in outputs}
    assert not page.named["output_origin"].visible


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_picking_a_mode_shows_its_inputs_and_status(page, mode):
    answer = fire(page, ("mode", "change"), mode)
    assert {name for name in OPTIONAL if answer[name]["visible"]} == wanted(mode)
    made = list_outputs(any_row(mode), any_row(mode).inputs)
    assert {name for name in OUTPUT_BOXES if answer[name]["visible"]} == {f"outputs_{name}" for name in made}
    assert set(answer) == {"status", *panel.CHANGING}
    assert "Checkpoint" in answer["status"]


@pytest.mark.parametrize(("mode", "expected"), [("foreground_blend_to_background", 0.5), ("together", 1.0)])
def test_picking_a_mode_fills_in_when_to_stop(page, mode, expected):
    assert fire(page, ("mode", "input"), mode) == {"stop_at": expected}


def test_a_pasted_mode_does_not_change_when_to_stop(page):
    """WebUIs paste by an update, which sets off `change` but not `input`."""
    touching = {key for _, key, _, outputs in events(page) if page.named["stop_at"] in outputs}
    assert touching == {("mode", "input")}


@pytest.mark.parametrize("event", [("refresh", "click"), ("enabled-checkbox", "change")])
def test_opening_and_refreshing_look_again(page, extension, event):
    extension.family = "sdxl"
    answer = fire(page, event, "together")
    assert "SDXL (Forge)" in answer["status"]
    assert "needs an SD1.5 checkpoint" in answer["status"]
    offered = answer["mode"]["choices"]
    assert [each if GRADIO_3 else each[0] for each in offered] == panel.list_modes("sdxl")
    assert answer["mode"]["value"] == to_label("mode", "together"), "the chosen mode stays"
    assert answer["background_prompt"]["visible"] is True


@pytest.mark.parametrize(
    ("control", "event"),
    [("refresh", "click"), ("first", "change"), ("background_image", "change"), ("foregrounds", "blur")],
)
def test_the_script_for_scenes_looks_again(extension, control, event):
    with panel_host.installed(panel_host.make_modules()), gr.Blocks(analytics_enabled=False) as demo:
        made = scene_panel.build(elem_id, extension)
    assert extension.asked == [], "a WebUI may load a checkpoint when it is asked for its model"
    page = SimpleNamespace(demo=demo)
    extension.family = "sdxl"
    _, _, function, outputs = next(each for each in events(page) if each[1] == (control, event))
    assert [block.elem_id for block in outputs] == [elem_id("status")]
    shown = {name: made[name].value for name in scene_panel.DECISIVE}
    shown |= {"foregrounds": "an apple", "first": "Foreground"}
    answer = function(*shown.values())
    assert "SDXL (Forge)" in answer
    assert "1 an apple; 2 blend with an apple; 3 background" in answer


def test_image_to_image_asks_for_the_encoder(extension):
    page = build(extension, is_img2img=True)
    assert "encoder" in fire(page, ("mode", "change"), "foreground")["status"]


def test_events_change_nothing_when_something_breaks(page, extension, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("gone")

    monkeypatch.setattr(panel, "_list_shown", broken)
    monkeypatch.setattr(panel, "list_modes", broken)
    monkeypatch.setattr(panel, "any_row", broken)
    for _, key, function, outputs in events(page):
        answer = function("foreground")
        answer = answer if isinstance(answer, list) else [answer]
        assert answer == [gr.update()] * len(outputs), key
    assert "gone" in caplog.text


def test_events_do_not_wait_for_a_generation(page):
    checked = 0
    for index, *_ in events(page):
        queued = page.demo.dependencies[index]["queue"] if GRADIO_3 else page.demo.fns[index].queue
        assert queued is False
        checked += 1
    assert checked == 4


# -- infotext


def paste(page, text) -> dict:
    """What a WebUI sets by pasting a text: a plain value takes the type of the control's, None changes nothing."""
    params = panel_host.parse_infotext(text)
    values = {}
    for component, function in page.panel.infotext_fields:
        name = next(name for name, control in page.named.items() if control is component)
        found = function(params)
        assert found is not None
        if isinstance(found, dict):
            values |= {name: found["value"]} if "value" in found else {}
        else:
            found = float(found) if type(component.value) is int else type(component.value)(found)
            values[name] = from_label(name, found)
    boxes = {box: values.pop(box) for box in OUTPUT_BOXES}
    return values | {"outputs": [box.removeprefix("outputs_") for box, ticked in boxes.items() if ticked]}


def test_pasting_sets_every_control_of_the_page(page):
    options = LayerOptions(
        mode="together", weight=0.5, stop_at=0.8, views=2, blend_prompt="a, b: c", outputs=("rgba", "psd")
    )
    pasted = paste(page, panel_host.write_infotext(infotext.describe(options)))
    assert set(pasted) == {*PAGE_ORDER, "outputs"} - {"output_origin", *OUTPUT_BOXES}
    assert pasted.pop("pasted") is True
    assert LayerOptions.from_dict(pasted) == options


def test_pasting_another_text_resets_everything(page):
    pasted = paste(page, panel_host.write_infotext({}))
    assert pasted.pop("pasted") is False
    assert LayerOptions.from_dict(pasted) == LayerOptions(enabled=False)
    assert pasted["enabled"] is False
    assert {pasted[name] for name in (*IMAGES, "preview_image")} == {None}, "images are cleared"
    assert {pasted[name] for name in PROMPTS} == {""}


def test_pasting_leaves_an_image_that_the_text_says_was_given(page):
    options = LayerOptions(mode="foreground_to_background", foreground_image=Image.new("RGBA", (8, 8)))
    pasted = paste(page, panel_host.write_infotext(infotext.describe(options)))
    assert "foreground_image" not in pasted
    assert pasted["background_image"] is None


def test_only_images_are_pasted_by_an_update(page):
    """The WebUIs' API reads plain values, and skips controls without a value at rest."""
    params = panel_host.parse_infotext(panel_host.write_infotext({"layerdiffusion_mode": "together"}))
    for component, function in page.panel.infotext_fields:
        assert isinstance(function(params), dict) == (component.value is None)


def test_paste_field_names_are_the_infotexts_keys(page):
    assert "layerdiffusion_mode" in page.panel.paste_field_names
    assert len(page.panel.paste_field_names) == len(page.panel.infotext_fields) - 1, "all but `pasted`"


# -- a picture goes through unharmed


def test_a_picture_reaches_python_with_its_transparency(page, tmp_path):
    rgba = np.zeros((6, 4, 4), np.uint8)
    rgba[..., 0], rgba[2:, :, 3] = 200, 128
    path = tmp_path / "layer.png"
    Image.fromarray(rgba).save(path)
    control = page.named["foreground_image"]
    if GRADIO_3:
        sent = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    else:
        sent = gr.data_classes.FileData(path=str(path), orig_name=path.name)
    image = control.preprocess(sent)
    assert np.array_equal(np.asarray(image)[..., 3], rgba[..., 3])


# -- pictures


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("gradio", ["gradio3", "gradio4"])
def test_the_document_shows_every_mode(mode, gradio):
    """`make screenshots` makes them."""
    path = ROOT / "docs" / "images" / f"panel-{mode}-{gradio}.png"
    assert path.stat().st_size < 40_000
    assert f"images/{path.name}" in (ROOT / "docs" / "modes.md").read_text(encoding="utf8")


# -- localizations


def texts_of(page, extension) -> set[str]:
    found = {panel.REFRESH, status.HINT, status.CHECKPOINT, status.MODE, status.PASSES, status.LAST_RUN}
    found |= {status.FILES, status.PRESENT, status.DOWNLOAD, status.NO_FILE, status.DAMAGED, status.OTHER_CHECKPOINT}
    found |= {"needs SD1.5", "needs SDXL"}
    about = next(each for each in fields(LayerOptions) if each.name == "outputs").metadata
    found |= {about["label"], about["help"]}
    with gr.Blocks() as scenes:
        scene_panel.build(elem_id, extension)
    for block in (*page.demo.blocks.values(), *scenes.blocks.values()):
        if getattr(block, "elem_id", None) in (elem_id("output_origin"), elem_id("pasted")):  # hidden
            continue
        found |= {getattr(block, name, None) for name in ("label", "info", "placeholder")}
        found |= {each[0] if isinstance(each, tuple) else each for each in getattr(block, "choices", None) or []}
    for setting in settings.SETTINGS:
        found |= {setting.label, f"({setting.help})"}
    found |= {settings.REPORT_LABEL, f"({settings.REPORT_HELP})", settings.REPORT_BUTTON}
    return {text for text in found if text and not text.isdigit()} - {"LayerDiffusion", "HTML"}


@pytest.mark.parametrize("language", ["zh_CN", "zh_TW", "ja_JP", "ko_KR"])
def test_every_text_is_translated_and_no_translation_is_stale(page, extension, language):
    translated = json.loads((ROOT / "localizations" / f"{language}.json").read_text(encoding="utf8"))
    assert set(translated) == texts_of(page, extension)
    assert all(text.strip() and text != english for english, text in translated.items())


def test_send_to_takes_every_option_along(extension):
    """WebUIs pair the controls of two tabs by the names that they were registered with."""
    with gr.Blocks():
        tabs = [
            panel.build(is_img2img, lambda name, tab=is_img2img: f"{tab}_{name}", extension)
            for is_img2img in (False, True)
        ]
    names = tabs[0].paste_field_names
    sent, taken = ([component for component, name in tab.infotext_fields if name in names] for tab in tabs)
    assert [each.label for each in sent] == [each.label for each in taken]
    assert len(sent) == len(infotext.OPTIONS) - 1 + len(OUTPUT_BOXES)
    assert {"enabled", "mode", "weight", "outputs_ora"} <= {each.elem_id.partition("_")[2] for each in sent}
