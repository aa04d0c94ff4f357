"""Plans: what a request comes to, and what is refused before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.planning import Facts, plan
from lib_layerdiffusion.refusal import Refusal

# Nothing is timed, however busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)

IMAGE = np.zeros((64, 64, 4), np.uint8)


def give_inputs(mode):
    return {f"{role}_image": IMAGE for role in mode.inputs}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family}-{mode.name}")
@pytest.mark.parametrize("batch", [1, 4])
def test_each_mode_multiplies_the_batch_by_its_frames(mode, batch):
    got = plan(LayerOptions(mode=mode.name, **give_inputs(mode)), Facts(mode.family, 512, 512, batch))
    assert (got.mode, got.sets, got.images) == (mode, batch, batch * len(mode.frames))
    assert got.files == tuple(file for file in (mode.file, mode.decoder) if file)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family}-{mode.name}")
def test_the_encoder_is_needed_for_transparent_input_only(mode):
    facts = Facts(mode.family, 512, 512, transparent_input=True)
    got = plan(LayerOptions(mode=mode.name, **give_inputs(mode)), facts)
    assert got.files == tuple(file for file in (mode.file, mode.decoder, mode.encoder) if file)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.inputs], ids=lambda mode: mode.name)
def test_each_missing_image_is_named(mode):
    for absent in mode.inputs:
        given_images = {f"{role}_image": IMAGE for role in mode.inputs if role != absent}
        with pytest.raises(Refusal, match=f"give {absent}_image"):
            plan(LayerOptions(mode=mode.name, **given_images), Facts(mode.family, 512, 512))


def test_prompts_go_to_the_frames_in_their_order():
    options = LayerOptions(
        mode="background_to_foreground", background_image=IMAGE, blend_prompt="room", foreground_prompt="cat"
    )
    assert plan(options, Facts("sd15", 512, 512)).prompts == ("cat", "room")


@unhurried
@given(st.integers(64, 4096), st.integers(64, 4096))
def test_any_size_is_sampled_and_decoded_with_little_waste(width, height):
    got = plan(LayerOptions(), Facts("sd15", width, height))
    assert got.size == (width, height)
    for asked, sampled, decoded in zip(got.size, (got.width, got.height), got.decode_size, strict=True):
        assert sampled % 8 == 0
        assert 0 <= sampled - asked < 8
        assert decoded % 64 == 0
        assert 0 <= decoded - sampled < 64


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (512, 0), (-512, 512), (512, 63), (10**9, 512), (16392, 64)])
def test_sizes_that_no_model_can_sample_are_refused(size):
    with pytest.raises(Refusal, match=f"^{size[0]}x{size[1]} can't be generated: width and height must be 64 to 16384"):
        plan(LayerOptions(), Facts("sd15", *size))


@pytest.mark.parametrize("name", ["width", "height", "batch", "steps"])
@pytest.mark.parametrize("value", [512.5, "512", None, True, float("nan")])
def test_counts_are_whole_numbers(name, value):
    with pytest.raises(Refusal, match="must be a whole number"):
        plan(LayerOptions(), Facts(**{"family": "sd15", "width": 512, "height": 512, name: value}))


def test_numpy_integers_are_whole_numbers():
    assert plan(LayerOptions(), Facts("sd15", np.int64(512), np.int32(520))).height == 520


@pytest.mark.parametrize(
    ("facts", "options", "sentence"),
    [
        ({"batch": 0}, {}, "batch size of 0 makes no image"),
        ({"batch": -3}, {}, "batch size of -3 makes no image"),
        ({"steps": 0}, {}, "0 sampling steps make no image"),
        ({}, {"start_at": 0.5, "stop_at": 0.5}, "start_at 0.5 is not before stop_at 0.5"),
        ({}, {"start_at": 0.8, "stop_at": 0.2}, "lower start_at or raise stop_at"),
        ({}, {"stop_at": 0.0}, "never take effect"),
        ({}, {"outputs": ["over_image"]}, "The output over_image needs an image: give preview_image, or leave"),
        ({}, {"black_point": 0.5, "white_point": 0.5}, "black_point 0.5 must be below white_point 0.5"),
        ({"family": "flux"}, {}, "load an SD1.5 or SDXL checkpoint"),
        ({"family": "sdxl"}, {"mode": "together"}, "choose one of foreground, foreground_conv"),
        ({}, {"mode": "foreground_conv"}, "load an SDXL checkpoint, or choose one of foreground, together"),
    ],
)
def test_what_can_not_work_is_refused_with_the_cure(facts, options, sentence):
    facts = {"family": "sd15", "width": 512, "height": 512} | facts
    with pytest.raises(Refusal, match=sentence):
        plan(LayerOptions(**options), Facts(**facts))


def test_a_preview_over_an_image_needs_it_only_where_there_is_transparency_to_show():
    image = np.zeros((4, 4, 4), np.uint8)
    facts = Facts("sd15", 512, 512)
    plan(LayerOptions(outputs=("rgba", "over_image"), preview_image=image), facts)
    plan(LayerOptions(mode="foreground_to_background", foreground_image=image, outputs=("blend", "over_image")), facts)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family}-{mode.name}")
def test_and_prompts_only_where_each_image_stands_alone(mode):
    options = LayerOptions(mode=mode.name, **give_inputs(mode))
    facts = Facts(mode.family, 512, 512, combined_prompts=True)
    if len(mode.frames) == 1 and not mode.inputs:
        assert plan(options, facts).images == 1
    else:
        with pytest.raises(Refusal, match="AND in the prompt"):
            plan(options, facts)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.family == "sdxl"], ids=lambda mode: mode.name)
def test_an_inpainting_checkpoint_has_no_room_for_condition_channels(mode):
    options = LayerOptions(mode=mode.name, **give_inputs(mode))
    facts = Facts("sdxl", 1024, 1024, unet_channels=9)
    if mode.inputs:
        with pytest.raises(Refusal, match="4 input channels, and the loaded one has 9"):
            plan(options, facts)
    else:
        assert plan(options, facts).images == 1


@pytest.mark.parametrize(("batch", "fitting"), [(1, 3), (2, 3), (4, 6), (8, 9)])
def test_a_positional_batch_that_is_not_a_multiple_is_refused_with_one_that_is(batch, fitting):
    options = LayerOptions.from_positional([True, "(SD1.5) Generate Everything Together (need batch size 3)"])
    with pytest.raises(Refusal, match=f"can't be {batch}: use {fitting}"):
        plan(options, Facts("sd15", 512, 512, batch))


def test_a_positional_batch_counts_images():
    options = LayerOptions.from_positional([True, "(SD1.5) Generate Everything Together (need batch size 3)"])
    got = plan(options, Facts("sd15", 512, 512, 6))
    assert (got.sets, got.images) == (2, 6)
