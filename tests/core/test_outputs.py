"""Outputs: which a mode makes, the stack that files hold, and the previews."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given

from lib_layerdiffusion import outputs
from lib_layerdiffusion.layers import Layer, LayerStack, checkerboard, composite
from lib_layerdiffusion.modes import any_row
from lib_layerdiffusion.options import OUTPUTS
from lib_layerdiffusion.outputs import arrange, list_files, list_outputs, make_previews, name_files
from lib_layerdiffusion.refusal import Refusal

SIZE = (7, 5)


def draw(seed, opaque=False):
    image = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 4), np.uint8)
    image[..., 3] |= 255 * opaque
    return image


PIXELS = arrays.arrays(np.uint8, (SIZE[1], SIZE[0], 4))
OVER = ("checker", "over_black", "over_white", "over_image")
FOREGROUND, BACKGROUND, BLEND = draw(0), draw(1, opaque=True), draw(2, opaque=True)


@pytest.mark.parametrize(
    ("mode", "known", "expected"),
    [
        ("foreground", [], {"rgba", *OVER, "alpha", "psd", "ora"}),
        ("foreground", ["background"], {"rgba", *OVER, "alpha", "recomposite", "psd", "ora"}),
        ("together", [], {*OUTPUTS}),
        ("foreground_to_background", ["foreground"], {"background", "blend", "recomposite", "psd", "ora"}),
        ("foreground_to_blend", ["foreground"], {"blend", "psd", "ora"}),
    ],
)
def test_a_mode_makes_its_layers_and_what_can_be_made_of_them(mode, known, expected):
    listed = list_outputs(any_row(mode), known)
    assert set(listed) == expected
    assert list(listed) == [output for output in OUTPUTS if output in expected]


@pytest.mark.parametrize(
    ("made", "known", "layers"),
    [
        ({"blend": BLEND, "foreground": FOREGROUND, "background": BACKGROUND}, {}, [BACKGROUND, FOREGROUND]),
        ({"foreground": FOREGROUND}, {}, [FOREGROUND]),
        ({"foreground": FOREGROUND, "blend": BLEND}, {"background": BACKGROUND}, [BACKGROUND, FOREGROUND]),
        ({"blend": BLEND}, {}, [BLEND]),
        ({"foreground": FOREGROUND}, {"foreground": BLEND}, [FOREGROUND]),
    ],
)
def test_files_hold_the_background_below_the_foreground_or_else_the_blend(made, known, layers):
    stack = arrange(made, known, SIZE, "text")
    assert [layer.image.tobytes() for layer in stack.layers] == [image.tobytes() for image in layers]
    assert (stack.size, stack.infotext) == (SIZE, "text")


def test_previews_show_the_transparent_layer_and_the_whole():
    stack = arrange({"foreground": FOREGROUND, "background": BACKGROUND}, {}, SIZE)
    previews = dict(make_previews(stack, FOREGROUND, OUTPUTS, BLEND))
    assert list(previews) == [*OVER, "alpha", "recomposite"]
    assert list(previews) == [output for output in OUTPUTS if output in previews], "the WebUI sorts them by this"
    assert np.array_equal(previews["checker"], composite(arrange({"foreground": FOREGROUND}, {}, SIZE), "checker"))
    assert np.array_equal(previews["alpha"], np.dstack([FOREGROUND[..., 3]] * 3))
    assert np.array_equal(previews["recomposite"], composite([*stack.layers[1:]], BACKGROUND[..., :3]))


@given(PIXELS, PIXELS)
def test_previews_over_something_are_the_exact_composite(rgba, behind):
    stack = arrange({"foreground": rgba}, {}, SIZE)
    previews = dict(make_previews(stack, rgba, OVER, behind))
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255

    def check(name, background):
        wanted = colour * alpha + background * (1 - alpha)
        assert previews[name].dtype == np.uint8
        assert previews[name].shape == wanted.shape
        assert np.abs(previews[name] - wanted).max() <= 0.5 + 1e-3

    squares, part = 255.0 * checkerboard(SIZE, 1), behind[..., 3:] / 255
    check("checker", squares)
    check("over_black", 0)
    check("over_white", 255)
    check("over_image", behind[..., :3] * part + squares * (1 - part))


def test_previews_of_what_was_not_made_or_asked_for_are_left_out():
    foreground = arrange({"foreground": FOREGROUND}, {}, SIZE)
    assert [name for name, _ in make_previews(foreground, FOREGROUND, OUTPUTS)] == [*OVER[:3], "alpha"]
    assert [*make_previews(foreground, FOREGROUND, ("rgba", "psd"))] == []
    assert [*make_previews(arrange({"blend": BLEND}, {}, SIZE), None, OUTPUTS, BACKGROUND)] == []


@pytest.mark.parametrize("mode", ["foreground", "together", "foreground_to_background", "foreground_to_blend"])
@pytest.mark.parametrize("outputs", [OUTPUTS, ("checker", "psd"), ("rgba", "blend")])
def test_files_have_the_names_that_are_said_before(mode, outputs):
    images = {"foreground": FOREGROUND, "background": BACKGROUND, "blend": BLEND}
    layers = tuple(Layer(role, images[role], role) for role in any_row(mode).frames)
    named = [f"{addition}{ending}" for addition, ending, _ in list_files(LayerStack(layers, SIZE), outputs)]
    assert sorted(named) == sorted(name_files(any_row(mode), outputs))


def test_a_file_that_fails_is_told_and_the_others_are_written(monkeypatch, tmp_path):
    def fail(_stack, _path):
        raise ZeroDivisionError("no such luck")

    def refuse(_stack, path):
        raise Refusal(f"Can't write {path}.")

    stack = arrange({"foreground": FOREGROUND}, {}, SIZE)
    monkeypatch.setattr(outputs, "WRITERS", {"psd": fail, "tiff": refuse, "ora": outputs.WRITERS["ora"], "kra": fail})
    told = outputs.write_files(stack, ("rgba", "psd", "ora", "tiff"), tmp_path / "1.2.png")
    assert [path.name for path in tmp_path.iterdir()] == ["1.2.ora"]
    assert told == [
        "1.2.psd can't be written (ZeroDivisionError: no such luck): please report it.",
        f"Can't write {tmp_path / '1.2.tiff'}.",
    ]
