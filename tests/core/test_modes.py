"""The table of layer modes: what each row promises, and how a mode is found."""

from __future__ import annotations

import pytest

from lib_layerdiffusion.modes import FAMILIES, MODES, find_mode, name_mode
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WEIGHTS


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family}-{mode.name}")
def test_rows_agree_with_the_weight_table(mode):
    """Frames, control and channels of a row are those of the file that it loads."""
    contents = WEIGHTS[mode.file].contents
    if mode.kind == "attention_sharing":
        assert (contents.frames, contents.control) == (len(mode.frames), bool(mode.inputs))
        assert mode.first_conv_channels == 4
    else:
        assert contents.channels == mode.first_conv_channels == 4 + 4 * len(mode.inputs)
        assert len(mode.frames) == 1
    assert contents.kind == mode.kind


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family}-{mode.name}")
def test_a_transparent_frame_has_a_decoder_of_its_family(mode):
    if mode.transparent_frame is None:
        assert (mode.decoder, mode.encoder) == (None, None)
        assert "foreground" not in mode.frames
    else:
        assert mode.frames[mode.transparent_frame] == "foreground"
        assert WEIGHTS[mode.decoder].contents.kind == "decoder"
        assert WEIGHTS[mode.encoder].contents.kind == "encoder"
        assert ("sd15" in mode.decoder, "sd15" in mode.encoder) == (mode.family == "sd15",) * 2


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.family}-{mode.name}")
def test_a_mode_is_found_by_name_and_by_method_string(mode):
    assert find_mode(mode.name, mode.family) is mode
    assert find_mode(mode.alias, mode.family) is mode
    assert find_mode(f"{mode.alias.upper()} (need batch size 3)", mode.family) is mode


def test_method_strings_name_the_family_of_their_row():
    """The strings that API clients send belong to the rows whose files they meant."""
    for mode in MODES:
        assert mode.alias.startswith(f"({FAMILIES[mode.family]})")
    assert find_mode("(SD1.5) Generate Everything Together (need batch size 3)", "sd15").file == "layer_sd15_joint"
    assert find_mode("(SDXL) From Background and Blending to Foreground", "sdxl").file == "layer_xl_bgble2fg"


def test_a_mode_that_only_the_other_family_has_is_refused_with_what_this_one_has():
    with pytest.raises(Refusal) as refusal:
        find_mode("together", "sdxl")
    sentence = str(refusal.value)
    assert "SD1.5 only" in sentence
    offered = sentence.rpartition("choose one of ")[2].rstrip(".").split(", ")
    assert offered == [mode.name for mode in MODES if mode.family == "sdxl"]


def test_a_misspelt_mode_is_refused_with_the_one_that_was_meant():
    with pytest.raises(Refusal, match="did you mean 'background_to_blend'"):
        name_mode("backround_to_blend")


def test_an_unknown_family_is_refused():
    with pytest.raises(Refusal, match="no LayerDiffusion weights for flux models"):
        find_mode("foreground", "flux")
