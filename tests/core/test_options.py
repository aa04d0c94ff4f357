"""Options: every way in, every bad value, and the round trip."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_layerdiffusion.modes import MODES, ROLES
from lib_layerdiffusion.options import OUTPUTS, POSITIONAL, RESIZE_MODES, VIEW_COUNTS, LayerOptions, parse
from lib_layerdiffusion.refusal import Refusal

# Nothing is timed, however busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
fractions = st.floats(0, 1)
options = st.builds(
    LayerOptions,
    enabled=st.booleans(),
    mode=st.sampled_from([mode.name for mode in MODES] + [mode.alias for mode in MODES]),
    weight=st.floats(0, 2),
    start_at=fractions,
    stop_at=fractions,
    views=st.sampled_from(VIEW_COUNTS),
    foreground_image=st.sampled_from([None, "a.png", Path("b.png"), np.zeros((2, 3, 4), np.uint8)]),
    resize_mode=st.sampled_from([*RESIZE_MODES, *RESIZE_MODES.values()]),
    foreground_prompt=st.text(),
    blend_prompt=st.text(),
    outputs=st.lists(st.sampled_from(OUTPUTS), min_size=1),
    batch_counts=st.sampled_from(["sets", "images"]),
)


@unhurried
@given(options)
def test_round_trip_by_name(given_options):
    assert LayerOptions.from_dict(given_options.to_dict()) == given_options


@unhurried
@given(options)
def test_round_trip_through_json(given_options):
    """Everything but pixels survives JSON."""
    values = {name: value for name, value in given_options.to_dict().items() if not name.endswith("_image")}
    again = LayerOptions.from_dict(json.loads(json.dumps(values)))
    assert again.to_dict() | {"foreground_image": None} == given_options.to_dict() | {"foreground_image": None}


def answer(build, values):
    """Options, or the refusal; anything else that is raised fails the test."""
    try:
        return build(values)
    except Refusal as refusal:
        return refusal


@unhurried
@given(st.lists(st.none() | st.booleans() | st.floats() | st.text(max_size=5), max_size=14))
def test_any_positional_list_gives_options_or_one_sentence(values):
    got = answer(LayerOptions.from_positional, values)
    assert isinstance(got, LayerOptions) or str(got).endswith(".")


NAMES = [each.name for each in fields(LayerOptions)]


@unhurried
@given(st.dictionaries(st.sampled_from(NAMES), st.none() | st.integers() | st.text()))
def test_any_dict_gives_options_or_one_sentence(values):
    got = answer(LayerOptions.from_dict, values)
    assert isinstance(got, LayerOptions) or str(got).endswith(".")


def test_equality_looks_at_pixels():
    zeros, ones = np.zeros((2, 2, 4), np.uint8), np.ones((2, 2, 4), np.uint8)
    assert LayerOptions(blend_image=zeros) == LayerOptions(blend_image=zeros.copy())
    assert LayerOptions(blend_image=zeros) != LayerOptions(blend_image=ones)
    assert LayerOptions(blend_image=zeros) != LayerOptions(blend_image=None)
    assert LayerOptions() != "options"


BAD_VALUES = [
    ({"wieght": 1}, "no option 'wieght': did you mean 'weight', or another of enabled"),
    ({"enabled": "yes"}, "enabled must be true or false, not 'yes'"),
    ({"mode": "forground"}, "did you mean 'foreground'"),
    ({"mode": 4}, "mode can't be 4: allowed are foreground"),
    ({"weight": 2.5}, "weight must be a number from 0 to 2, not 2.5"),
    ({"weight": -0.1}, "weight must be a number from 0 to 2"),
    ({"weight": float("nan")}, "weight must be a number from 0 to 2, not nan"),
    ({"weight": float("inf")}, "weight must be a number from 0 to 2, not inf"),
    ({"weight": "1"}, "weight must be a number from 0 to 2, not '1'"),
    ({"weight": True}, "weight must be a number from 0 to 2, not True"),
    ({"stop_at": 1.01}, "stop_at must be a number from 0 to 1"),
    ({"start_at": [0]}, "start_at must be a number from 0 to 1"),
    ({"views": 3}, "views can't be 3: allowed are 0, 1, 2, 4, 8"),
    ({"views": True}, "views can't be True"),
    ({"resize_mode": "crop and resise"}, "no resize mode 'crop and resise': allowed are crop, stretch, fill"),
    ({"resize_mode": 2}, "resize_mode can't be 2: allowed are crop, stretch, fill"),
    ({"foreground_image": 5}, "foreground_image must be an array, a Pillow image, a path"),
    ({"foreground_image": [[1, 2]]}, "foreground_image must be an array"),
    ({"blend_image": np.zeros((1, 2, 3, 4))}, r"blend_image must have the shape \[H, W\] or \[H, W, C\]"),
    ({"foreground_prompt": 7}, "foreground_prompt must be text, not 7"),
    ({"weight": 10**399}, "weight must be a number from 0 to 2, not 1000000"),
    ({"stop_at": -(10**6000)}, "stop_at must be a number from 0 to 1, not a value that is too long to show"),
    ({"start_at": {}}, "start_at must be a number from 0 to 1, not {}"),
    ({"enabled": 1}, "enabled must be true or false, not 1"),
    ({"enabled": [True]}, "enabled must be true or false"),
    ({"resize_mode": []}, r"resize_mode can't be \[\]: allowed are crop, stretch, fill"),
    ({"resize_mode": {"crop": 1}}, "resize_mode can't be {'crop': 1}: allowed are crop"),
    ({"mode": np.zeros(3)}, "mode can't be array"),
    ({"views": 10**5000}, "views can't be a value that is too long to show .*: allowed are 0, 1, 2, 4, 8"),
    ({"views": "4"}, "views can't be the text '4': send one of the numbers 0, 1, 2, 4, 8"),
    ({"batch_counts": ["sets"]}, r"batch_counts can't be \['sets'\]: allowed are"),
    ({"foreground_prompt": "caf\udce9"}, r"half of a character at position 4 \(a lone surrogate, U\+DCE9\)"),
    ({"outputs": []}, "outputs must be a list with one or more of rgba"),
    ({"outputs": "rgba"}, "outputs must be a list"),
    ({"outputs": ["rbga"]}, "did you mean 'rgba'"),
    ({"outputs": [None]}, "outputs can't be None"),
    ({"batch_counts": "pictures"}, "batch_counts can't be 'pictures': allowed are sets, images"),
]


@pytest.mark.parametrize(("values", "sentence"), BAD_VALUES, ids=[sentence[:50] for _, sentence in BAD_VALUES])
def test_a_bad_value_is_refused_with_what_is_allowed(values, sentence):
    with pytest.raises(Refusal, match=sentence):
        LayerOptions.from_dict(values)
    if "wieght" not in values:
        with pytest.raises(Refusal, match=sentence):
            LayerOptions(**values)


@pytest.mark.parametrize("name", NAMES)
def test_no_refusal_offers_what_was_sent(name):
    """The same value in another type is told by its type: "4" isn't the number 4."""
    about = next(each for each in fields(LayerOptions) if each.name == name).metadata
    allowed = [*about.get("choices", ()), *(about[limit] for limit in ("minimum", "maximum") if limit in about)]
    for value in [*map(str, allowed), "true", "0.5", "4"]:
        said = refuse(name, value)
        assert f"did you mean {value!r}" not in said
        assert not said or value not in map(str, allowed) or "must be" in said or "the text" in said


def refuse(name: str, value: object) -> str:
    """The sentence by which a value is refused; "" if it isn't."""
    try:
        LayerOptions.from_dict({name: value})
    except Refusal as refusal:
        return str(refusal)
    return ""


def test_a_long_value_is_shortened_in_the_refusal():
    with pytest.raises(Refusal) as refusal:
        LayerOptions(weight="x" * 10_000)
    assert len(str(refusal.value)) < 150


@pytest.mark.parametrize("image", ["aGVsbG8=", Path("a.png"), np.zeros((4, 5), np.uint8), Image.new("RGBA", (2, 2))])
def test_images_stay_as_they_are(image):
    assert LayerOptions(background_image=image).image("background") is image


def test_an_empty_image_string_is_no_image():
    assert LayerOptions(background_image=" ").image("background") is None


def test_none_means_default():
    assert LayerOptions.from_dict(dict.fromkeys(NAMES)) == LayerOptions()


@pytest.mark.parametrize("title", ["Just Resize", "just resize", "stretch", " STRETCH "])
def test_resize_modes_go_by_name_or_title(title):
    assert LayerOptions(resize_mode=title).resize_mode == "stretch"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("weight", "0.5", 0.5),
        ("views", "4", 4),
        ("mode", "together", "together"),
        ("resize_mode", "Resize and Fill", "fill"),
        ("outputs", "rgba+psd", ("rgba", "psd")),
        ("blend_prompt", "a+b", "a+b"),
    ],
)
def test_values_are_read_from_text(name, text, value):
    read = parse(name, text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("weight", "heavy", "weight must be a number from 0 to 2, not 'heavy'"),
        ("weight", "nan", "weight must be a number from 0 to 2, not nan"),
        ("weight", "", "weight must be a number"),
        ("views", "3", "views can't be 3: allowed are 0, 1, 2, 4, 8"),
        ("views", "4.0", "views can't be the text '4.0': send one of the numbers 0, 1, 2, 4, 8"),
        ("outputs", "rgba+", "outputs can't be ''"),
        ("outputs", "rgab", "did you mean 'rgba'"),
    ],
)
def test_text_that_is_not_a_value_is_refused(name, text, sentence):
    with pytest.raises(Refusal, match=sentence):
        parse(name, text)


def test_outputs_are_given_once_each():
    assert LayerOptions(outputs=["alpha", "rgba", "alpha"]).outputs == ("alpha", "rgba")


# The twelve arguments as clients of the reference extension send them.
TWELVE = [
    True,
    "(SD1.5) From Background to Foreground (need batch size 2)",
    0.8,
    0.5,
    None,
    np.full((4, 4, 4), 9, np.uint8),
    None,
    "Resize and Fill",
    True,
    "a cat",
    None,
    "a room",
]


def test_the_twelve_positional_arguments():
    got = LayerOptions.from_positional(TWELVE)
    assert len(TWELVE) == len(POSITIONAL)
    assert (got.enabled, got.mode, got.weight, got.stop_at) == (True, "background_to_foreground", 0.8, 0.5)
    assert [got.image(role) is None for role in ROLES] == [True, False, True]
    assert got.image("background") is TWELVE[5]
    assert got.resize_mode == "fill"
    assert [got.prompt(role) for role in ROLES] == ["a cat", "", "a room"]
    assert got.batch_counts == "images"
    assert got.outputs[-1] == "checker"


@pytest.mark.parametrize("length", range(13))
def test_short_positional_lists_keep_the_defaults(length):
    got = LayerOptions.from_positional(TWELVE[:length])
    assert got.enabled is (length > 0)
    assert got.weight == (0.8 if length > 2 else 1.0)
    assert got.prompt("blend") == ("a room" if length > 11 else "")


def test_positional_nones_are_defaults():
    got = LayerOptions.from_positional([True, *[None] * 11])
    assert (got.enabled, got.mode, got.weight) == (True, "foreground", 1.0)
    assert LayerOptions.from_positional(None).enabled is False


def test_too_many_positional_arguments_are_refused():
    with pytest.raises(Refusal, match="Got 13 positional arguments: send at most 12"):
        LayerOptions.from_positional([*TWELVE, 1])


def test_the_schema_covers_each_field_and_its_own_defaults():
    schema = LayerOptions.json_schema()
    assert list(schema["properties"]) == NAMES
    assert schema["additionalProperties"] is False
    defaults = {name: entry["default"] for name, entry in json.loads(json.dumps(schema))["properties"].items()}
    assert LayerOptions.from_dict(defaults) == LayerOptions()


def test_the_schema_allows_what_the_options_allow():
    """Bounds and choices in the schema are the ones that are enforced."""
    for name, entry in LayerOptions.json_schema()["properties"].items():
        for value in entry.get("enum", []):
            assert getattr(LayerOptions(**{name: value}), name) == value
        if entry.get("type") == "number":
            for bound, beyond in ((entry["minimum"], -0.01), (entry["maximum"], 0.01)):
                assert getattr(LayerOptions(**{name: bound}), name) == bound
                with pytest.raises(Refusal):
                    LayerOptions(**{name: bound + beyond})
        assert entry["title"]
        assert entry["description"]
