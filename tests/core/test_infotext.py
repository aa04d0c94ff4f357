"""Infotext: the exact round trip through the WebUIs' parser, the reference extension's keys, and what can't be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_layerdiffusion import infotext
from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.options import OUTPUTS, RESIZE_MODES, VIEW_COUNTS, LayerOptions
from tests.webui.panel_host import parse_infotext, write_infotext

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
# What parsers stumble over: quotes, separators, brackets, sizes, line ends, surrounding white space.
texts = st.one_of(
    st.text(),
    st.text(alphabet='",:\\\n\r\t[]x19 \u3000a'),
    st.from_regex(r"[0-9]+x[0-9]+", fullmatch=True),
    st.sampled_from(["layerdiffusion_foreground_prompt", "layerdiffusion_blend_prompt", '["a"]', "[cat:dog:0.5]"]),
)
options = st.builds(
    LayerOptions,
    mode=st.sampled_from([mode.name for mode in MODES]),
    weight=st.floats(0, 2),
    start_at=st.floats(0, 1),
    stop_at=st.floats(0, 1),
    views=st.sampled_from(VIEW_COUNTS),
    resize_mode=st.sampled_from(list(RESIZE_MODES)),
    foreground_prompt=texts,
    background_prompt=texts,
    blend_prompt=texts,
    outputs=st.lists(st.sampled_from(OUTPUTS), min_size=1).map(tuple),
)


def through_host(written: dict[str, str]) -> dict[str, str]:
    return parse_infotext(write_infotext(written))


@pytest.mark.slow
@unhurried
@given(options)
def test_options_come_back_exactly(given_options):
    params = through_host(infotext.describe(given_options))
    read = infotext.read(params)
    assert LayerOptions.from_dict(read) == given_options
    assert tuple(read) == infotext.OPTIONS
    assert params["Version"] == "f2.0", "what follows in the text is still there"


@pytest.mark.parametrize(
    "text",
    [
        '"quoted"',  # the parser takes the quotes off
        " around ",
        "\u3000wide",
        "12x34",  # a size, which it takes apart
        "layerdiffusion_foreground_prompt",  # the entry's own name: its value isn't written
        '["a"]',  # what we write for such texts
        "a\rb",
        "a, b: c\n<lora:d:1>",
    ],
)
def test_texts_that_parsers_change_come_back(text):
    given_options = LayerOptions(foreground_prompt=text)
    assert infotext.read(through_host(infotext.describe(given_options)))["foreground_prompt"] == text


@pytest.mark.parametrize(
    "text", ["a cat, sitting", "(cat:1.2) and [dog:0.5]", '[cat] in a "box"', "\u732b\u3001\u72ac"]
)
def test_ordinary_prompts_stay_readable(text):
    assert infotext.describe(LayerOptions(foreground_prompt=text))["layerdiffusion_foreground_prompt"] == text


@pytest.mark.parametrize("text", ["a\tb", "a\x00b", "a\u2028b"])
def test_characters_that_image_files_lose_are_written_as_codes(text):
    written = infotext.describe(LayerOptions(blend_prompt=text))["layerdiffusion_blend_prompt"]
    assert written.isascii()
    assert written.isprintable()


def test_only_what_differs_is_written():
    assert infotext.describe(LayerOptions()) == {"layerdiffusion_mode": "foreground"}
    written = infotext.describe(LayerOptions(mode="together", weight=0.7, blend_prompt="a, b", outputs=("psd", "rgba")))
    assert written == {
        "layerdiffusion_mode": "together",
        "layerdiffusion_weight": "0.7",
        "layerdiffusion_blend_prompt": "a, b",
        "layerdiffusion_outputs": "psd+rgba",
    }


def test_nothing_is_written_when_disabled():
    assert infotext.describe(LayerOptions(enabled=False, weight=0.5, foreground_prompt="a")) == {}


def test_of_an_image_only_that_it_was_given_is_written():
    given_options = LayerOptions(mode="foreground_to_background", foreground_image=np.zeros((2, 2, 4), np.uint8))
    params = through_host(infotext.describe(given_options))
    assert params["layerdiffusion_foreground_image"] == "True"
    assert infotext.gives_image(params, "foreground_image")
    assert not infotext.gives_image(params, "background_image")
    assert infotext.read(params)["foreground_image"] is None


def test_what_is_absent_is_at_its_default():
    read = infotext.read(parse_infotext(write_infotext({})))
    defaults = LayerOptions(enabled=False)
    assert LayerOptions.from_dict(read) == defaults
    assert read["enabled"] is False
    assert read["foreground_prompt"] == "", "no None, which a paste takes for no change"
    assert {type(read[name]) for name in ("weight", "start_at", "stop_at")} == {float}


REFERENCE = {
    "layerdiffusion_enabled": "True",
    "layerdiffusion_method": "(SD1.5) From Background to Foreground (need batch size 2)",
    "layerdiffusion_weight": "0.8",
    "layerdiffusion_ending_step": "0.6",
    "layerdiffusion_fg_image": "False",
    "layerdiffusion_bg_image": "True",
    "layerdiffusion_blend_image": "False",
    "layerdiffusion_resize_mode": "Resize and Fill",
    "layerdiffusion_fg_additional_prompt": "a cat, sitting",
    "layerdiffusion_bg_additional_prompt": "",
    "layerdiffusion_blend_additional_prompt": "a park",
}


def test_the_reference_extensions_keys_are_read():
    params = through_host(REFERENCE)
    read = infotext.read(params)
    assert LayerOptions.from_dict(read) == LayerOptions(
        mode="background_to_foreground",
        weight=0.8,
        stop_at=0.6,
        resize_mode="fill",
        foreground_prompt="a cat, sitting",
        blend_prompt="a park",
    )
    assert infotext.gives_image(params, "background_image")
    assert not infotext.gives_image(params, "foreground_image")
    assert not infotext.gives_image(params, "blend_image")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.alias)
def test_every_method_of_the_reference_is_read(mode):
    params = through_host({"layerdiffusion_enabled": "True", "layerdiffusion_method": mode.alias})
    read = infotext.read(params)
    assert (read["enabled"], read["mode"]) == (True, mode.name)


@pytest.mark.parametrize(("said", "enabled"), [("False", False), ("True", True), ("nonsense", False)])
def test_only_the_text_true_enables(said, enabled):
    params = through_host(REFERENCE | {"layerdiffusion_enabled": said})
    assert infotext.read(params)["enabled"] is enabled


@pytest.mark.parametrize(
    ("key", "text", "name"),
    [
        ("weight", "7", "weight"),
        ("weight", "nan", "weight"),
        ("weight", "heavy", "weight"),
        ("stop_at", "inf", "stop_at"),
        ("views", "3", "views"),
        ("views", "many", "views"),
        ("resize_mode", "Stretch and Hope", "resize_mode"),
        ("outputs", "rgba+gif", "outputs"),
        ("foreground_prompt", '["broken', "foreground_prompt"),
        ("foreground_prompt", '["a"', "foreground_prompt"),
    ],
)
def test_unreadable_values_are_at_their_default(key, text, name):
    params = {"layerdiffusion_mode": "together", "layerdiffusion_" + key: text}
    read = infotext.read(params)
    assert LayerOptions.from_dict(read) == LayerOptions(mode="together")
    assert name in read


def test_a_mode_of_another_time_enables_nothing():
    read = infotext.read({"layerdiffusion_mode": "four_layers", "layerdiffusion_weight": "0.5"})
    assert (read["enabled"], read["mode"], read["weight"]) == (False, "foreground", 0.5)


@pytest.mark.slow
@unhurried
@given(options)
def test_a_whole_infotext_is_parsed_back(given_options):
    written = {"Steps": 20, "Sampler": "Euler a", **infotext.describe(given_options), "Version": "f2.0"}
    text = infotext.compose("a cat,\na dog", "blurry: no", written)
    assert text.startswith(
        "a cat,\na dog\nNegative prompt: blurry: no\nSteps: 20, Sampler: Euler a, layerdiffusion_mode: "
    )
    assert LayerOptions.from_dict(infotext.read(parse_infotext(text))) == given_options
    assert parse_infotext(text)["Version"] == "f2.0"


def test_an_infotext_without_a_negative_prompt_has_no_line_for_it():
    assert infotext.compose("a cat", "", {"Steps": 1, "Seed": 2}) == "a cat\nSteps: 1, Seed: 2"


def test_a_preview_says_which_it_is():
    marked = infotext.mark_preview("a cat\nSteps: 1, Seed: 2", "alpha")
    assert parse_infotext(marked) == {"Steps": "1", "Seed": "2", "layerdiffusion_preview": "alpha"}
