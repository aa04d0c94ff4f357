"""Which images and prompts a mode needs."""

from __future__ import annotations

import pytest

from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui.inputs import OPTIONAL, wanted

NEEDED = {
    "foreground": set(),
    "foreground_conv": set(),
    "together": {"foreground_prompt", "background_prompt", "blend_prompt"},
    "foreground_to_background": {"foreground_image", "background_prompt", "blend_prompt", "resize_mode"},
    "background_to_foreground": {"background_image", "foreground_prompt", "blend_prompt", "resize_mode"},
    "foreground_to_blend": {"foreground_image", "resize_mode"},
    "foreground_blend_to_background": {"foreground_image", "blend_image", "resize_mode"},
    "background_to_blend": {"background_image", "resize_mode"},
    "background_blend_to_foreground": {"background_image", "blend_image", "resize_mode"},
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family} {mode.name}")
def test_a_mode_needs_its_images_and_the_prompts_of_several_layers(mode):
    assert wanted(mode.name) == NEEDED[mode.name]
    assert wanted(mode.alias) == NEEDED[mode.name]
    assert wanted(mode.name) <= set(OPTIONAL)


def test_an_unknown_mode_is_refused():
    with pytest.raises(Refusal, match="sideways"):
        wanted("sideways")
