"""Axes of the X/Y/Z plot: found, added once, checked before the first image, and laid on a copy of `p`."""

from __future__ import annotations

from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest

from lib_layerdiffusion.modes import MODE_NAMES, MODES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui import xyz
from tests.webui.panel_host import installed, make_modules


def plot_of(modules):
    return modules["modules.scripts"].scripts_data[1].module


@pytest.fixture
def axes():
    with installed(make_modules()) as modules:
        xyz.add()
    return {axis.label: axis for axis in plot_of(modules).axis_options[1:]}


def test_axes_are_added_once_to_the_plot_script():
    with installed(make_modules()) as modules:
        xyz.add()
        xyz.add()
    assert [axis.label for axis in plot_of(modules).axis_options] == [
        "Nothing",
        "[LayerDiffusion] Layer mode",
        "[LayerDiffusion] Weight",
        "[LayerDiffusion] Start at",
        "[LayerDiffusion] Stop at",
        "[LayerDiffusion] Decode quality",
    ]


def test_without_the_plot_script_nothing_happens():
    with installed(make_modules()) as modules:
        del modules["modules.scripts"].scripts_data[1]
        xyz.add()
        assert xyz.find_script() is None


def test_values_are_laid_on_a_copy_of_p_only(axes):
    p = SimpleNamespace()
    axes["[LayerDiffusion] Weight"].apply(p, 0.5, [0.5, 1.0])
    cell = copy(p)
    axes["[LayerDiffusion] Layer mode"].apply(cell, "together", [])
    axes["[LayerDiffusion] Decode quality"].apply(cell, 2, [])
    assert cell.layerdiffusion_axes == {"weight": 0.5, "mode": "together", "views": 2}
    assert p.layerdiffusion_axes == {"weight": 0.5}


def test_the_reference_extensions_method_is_a_mode(axes):
    p = SimpleNamespace()
    axes["[LayerDiffusion] Layer mode"].apply(p, f" {MODES[1].alias} ", [])
    assert p.layerdiffusion_axes == {"mode": MODES[1].name}


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("Layer mode", ["foreground", "sideways"]),
        ("Weight", [1.0, 2.5]),
        ("Start at", [-0.1]),
        ("Stop at", [0.5, 1.5]),
        ("Decode quality", [8, 3]),
    ],
)
def test_a_wrong_value_is_refused_before_the_first_image(axes, label, values):
    axis = axes[f"[LayerDiffusion] {label}"]
    with pytest.raises(RuntimeError, match=rf"\[LayerDiffusion\] {label}: .*{values[-1]}"):
        axis.confirm(SimpleNamespace(), values)


def test_allowed_values_are_confirmed_without_touching_p(axes):
    p = SimpleNamespace()
    for label, values in {"Layer mode": MODE_NAMES, "Weight": [0.0, 2.0], "Decode quality": [1, 2, 4, 8]}.items():
        axes[f"[LayerDiffusion] {label}"].confirm(p, list(values))
    assert vars(p) == {}


def test_offered_choices_are_allowed_values(axes):
    offered = {label: axis for label, axis in axes.items() if axis.choices}
    assert {label.removeprefix("[LayerDiffusion] ") for label in offered} == {"Layer mode", "Decode quality"}
    for axis in offered.values():
        axis.confirm(SimpleNamespace(), [axis.type(choice) for choice in axis.choices()])


# -- refused cells


@pytest.mark.parametrize("size", [(512, 512), (128, 320), (64, 64)])
def test_a_refused_cell_shows_its_sentence(size):
    sentence = "Layer mode 'foreground_conv' exists for SDXL only: load an SDXL checkpoint."
    with installed(make_modules()) as modules:
        (replaced,) = xyz.add()
        plot = plot_of(modules)
        p = SimpleNamespace(width=size[0], height=size[1], seed=3, refusal=Refusal(sentence))
        answer = plot.process_images(p)
        assert plot.process_images(SimpleNamespace(refusal=None)).refusal is None, "a good one is as ever"
        replaced.restore()
        with pytest.raises(Refusal):
            plot.process_images(p)
    (picture,) = answer.images
    assert (picture.mode, picture.size, answer.p, answer.seed) == ("RGB", size, p, 3)
    assert picture.getpixel((size[0] - 1, 0)) == xyz.PAPER
    red = (np.asarray(picture).astype(int)[..., 1] < 120).mean()
    assert 0.01 < red < 0.3, "letters"


def test_other_failures_of_a_cell_stay_failures():
    with installed(make_modules()) as modules:
        xyz.add()
        with pytest.raises(ValueError, match="spilled"):
            plot_of(modules).process_images(SimpleNamespace(refusal=ValueError("spilled")))


def test_the_sentence_is_shown_by_one_function_however_often_axes_are_added():
    with installed(make_modules()) as modules:
        assert len(xyz.add()) == 1
        before = plot_of(modules).process_images
        assert xyz.add() == []
        assert plot_of(modules).process_images is before
