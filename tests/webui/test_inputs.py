"""Which images and prompts a mode needs."""

from __future__ import annotations

import pytest

from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui.inputs import OPTIONAL, wanted

PREVIEW = {"preview_image", "resize_mode"}  # of modes that make a transparent image
NEEDED = {
    "foreground": PREVIEW,
    "foreground_conv": PREVIEW,
    "together": {"foreground_prompt", "background_prompt", "blend_prompt", *PREVIEW},
    "foreground_to_background": {"foreground_image", "background_prompt", "blend_prompt", "resize_mode"},
    "background_to_foreground": {"background_image", "foreground_prompt", "blend_prompt", *PREVIEW},
    "foreground_to_blend": {"foreground_image", "resize_mode"},
    "foreground_blend_to_background": {"foreground_image", "blend_image", "resize_mode"},
    "background_to_blend": {"background_image", "resize_mode"},
    "background_blend_to_foreground": {"background_image", "blend_image", *PREVIEW},
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family} {mode.name}")
def test_a_mode_needs_its_images_and_the_prompts_of_several_layers(mode):
    assert wanted(mode.name) == NEEDED[mode.name]
    assert wanted(mode.alias) == NEEDED[mode.name]
    assert wanted(mode.name) <= set(OPTIONAL)


@pytest.mark.parametrize("mode", NEEDED)
def test_an_image_for_the_preview_is_needed_where_that_is_asked_for(mode):
    needed = NEEDED[mode] - {"preview_image"}
    given = {name for name in needed if name.endswith("_image")}
    assert wanted(mode, ("rgba", "over_black")) == (needed if given else needed - {"resize_mode"})


def test_an_unknown_mode_is_refused():
    with pytest.raises(Refusal, match="sideways"):
        wanted("sideways")
