"""Options from what a WebUI hands to the script's hooks."""

from __future__ import annotations

import pytest
from PIL import Image

from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui.arguments import PAGE_ORDER, is_enabled, read_options


def page(**values):
    """The page's values in their order; those at rest are None."""
    return [values.get(name) for name in PAGE_ORDER]


def test_what_the_page_hides_for_a_mode_has_no_effect():
    left_behind = {
        "background_image": Image.new("RGB", (8, 8)),
        "background_prompt": "a meadow",
        "resize_mode": "stretch",
        "preview_image": Image.new("RGB", (8, 8)),
    }
    options = read_options(page(enabled=True, mode="foreground", weight=0.5, **left_behind), from_api=False)
    assert options == LayerOptions(weight=0.5)


def test_what_the_page_shows_for_a_mode_counts():
    image = Image.new("RGB", (8, 8))
    sent = page(enabled=True, mode="background_to_foreground", background_image=image, foreground_prompt="a cat")
    options = read_options(sent, from_api=False)
    assert options.background_image is image
    assert options.foreground_prompt == "a cat"


def test_the_image_for_the_preview_counts_where_its_box_is_ticked():
    image, boxes = Image.new("RGB", (8, 8)), {"outputs_rgba": True, "outputs_over_image": True}
    sent = {"enabled": True, "mode": "foreground", "preview_image": image, "resize_mode": "Resize and Fill"}
    options = read_options(page(**sent, **boxes), from_api=False)
    assert (options.preview_image, options.resize_mode) == (image, "fill")
    assert read_options(page(**sent, outputs_rgba=True), from_api=False) == LayerOptions(outputs=("rgba",))


def test_the_mode_of_an_axis_decides_what_counts():
    image = Image.new("RGB", (8, 8))
    sent = page(enabled=False, mode="foreground", background_image=image)
    options = read_options(sent, False, {"enabled": True, "mode": "background_to_foreground"})
    assert (options.enabled, options.mode, options.background_image) == (True, "background_to_foreground", image)


@pytest.mark.parametrize("args", [[{"weight": 0.5}], [True, None, 0.5]], ids=["object", "positional list"])
def test_changes_are_laid_over_what_a_client_sent(args):
    options = read_options(args, True, {"stop_at": 0.25})
    assert (options.weight, options.stop_at) == (0.5, 0.25)


def test_an_unknown_mode_is_refused():
    with pytest.raises(Refusal, match="sideways"):
        read_options(page(enabled=True, mode="sideways"), from_api=False)


@pytest.mark.parametrize(
    ("args", "enabled"), [([], False), ([{}], True), ([{"enabled": False}], False), ([True], True), ([False], False)]
)
def test_an_object_wants_layers_unless_it_says_otherwise(args, enabled):
    assert is_enabled(args) is enabled


@pytest.mark.parametrize("enabled", ["true", "", 1, 0.0, [], {}], ids=repr)
@pytest.mark.parametrize("changes", [None, {"enabled": True}], ids=["as sent", "by an axis"])
def test_an_object_s_enabled_is_true_or_false(enabled, changes):
    """Also where a generation has begun, which switches it on."""
    assert is_enabled([{"enabled": enabled}])
    with pytest.raises(Refusal, match="enabled must be true or false"):
        read_options([{"enabled": enabled}], True, changes)
