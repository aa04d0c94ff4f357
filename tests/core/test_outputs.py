"""Outputs: which a mode makes, the stack that files hold, and the previews."""

from __future__ import annotations

import numpy as np
import pytest

from lib_layerdiffusion.layers import composite
from lib_layerdiffusion.modes import any_row
from lib_layerdiffusion.options import OUTPUTS
from lib_layerdiffusion.outputs import arrange, list_outputs, make_previews

SIZE = (7, 5)


def draw(seed, opaque=False):
    image = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 4), np.uint8)
    image[..., 3] |= 255 * opaque
    return image


FOREGROUND, BACKGROUND, BLEND = draw(0), draw(1, opaque=True), draw(2, opaque=True)


@pytest.mark.parametrize(
    ("mode", "given", "outputs"),
    [
        ("foreground", [], {"rgba", "checker", "alpha", "psd", "ora"}),
        ("foreground", ["background"], {"rgba", "checker", "alpha", "recomposite", "psd", "ora"}),
        ("together", [], {*OUTPUTS}),
        ("foreground_to_background", ["foreground"], {"background", "blend", "recomposite", "psd", "ora"}),
        ("foreground_to_blend", ["foreground"], {"blend", "psd", "ora"}),
    ],
)
def test_a_mode_makes_its_layers_and_what_can_be_made_of_them(mode, given, outputs):
    listed = list_outputs(any_row(mode), given)
    assert set(listed) == outputs
    assert list(listed) == [output for output in OUTPUTS if output in outputs]


@pytest.mark.parametrize(
    ("made", "given", "layers"),
    [
        ({"blend": BLEND, "foreground": FOREGROUND, "background": BACKGROUND}, {}, [BACKGROUND, FOREGROUND]),
        ({"foreground": FOREGROUND}, {}, [FOREGROUND]),
        ({"foreground": FOREGROUND, "blend": BLEND}, {"background": BACKGROUND}, [BACKGROUND, FOREGROUND]),
        ({"blend": BLEND}, {}, [BLEND]),
        ({"foreground": FOREGROUND}, {"foreground": BLEND}, [FOREGROUND]),
    ],
)
def test_files_hold_the_background_below_the_foreground_or_else_the_blend(made, given, layers):
    stack = arrange(made, given, SIZE, "text")
    assert [layer.image.tobytes() for layer in stack.layers] == [image.tobytes() for image in layers]
    assert (stack.size, stack.infotext) == (SIZE, "text")


def test_previews_show_the_transparent_layer_and_the_whole():
    stack = arrange({"foreground": FOREGROUND, "background": BACKGROUND}, {}, SIZE)
    previews = dict(make_previews(stack, FOREGROUND, OUTPUTS))
    assert list(previews) == ["checker", "alpha", "recomposite"]
    assert np.array_equal(previews["checker"], composite(arrange({"foreground": FOREGROUND}, {}, SIZE), "checker"))
    assert np.array_equal(previews["alpha"], np.dstack([FOREGROUND[..., 3]] * 3))
    assert np.array_equal(previews["recomposite"], composite([*stack.layers[1:]], BACKGROUND[..., :3]))


def test_previews_of_what_was_not_made_or_asked_for_are_left_out():
    foreground = arrange({"foreground": FOREGROUND}, {}, SIZE)
    assert [name for name, _ in make_previews(foreground, FOREGROUND, OUTPUTS)] == ["checker", "alpha"]
    assert [*make_previews(foreground, FOREGROUND, ("rgba", "psd"))] == []
    assert [*make_previews(arrange({"blend": BLEND}, {}, SIZE), None, OUTPUTS)] == []
