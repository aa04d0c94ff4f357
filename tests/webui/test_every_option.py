"""Every field of LayerOptions is a widget, an API key, an infotext key, a flag and a library argument."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

gr = pytest.importorskip("gradio")

from lib_layerdiffusion import infotext  # noqa: E402
from lib_layerdiffusion.cli import build_parser  # noqa: E402
from lib_layerdiffusion.options import OUTPUTS, LayerOptions  # noqa: E402
from lib_layerdiffusion.refusal import Refusal  # noqa: E402
from lib_layerdiffusion.webui import panel  # noqa: E402
from lib_layerdiffusion.webui.arguments import OUTPUT_BOXES, PAGE_ORDER, read_options  # noqa: E402
from tests.webui import panel_host  # noqa: E402

# For each option a value that isn't its default, and the words that say it on the command line.
SAMPLES: dict[str, tuple[Any, list[str]]] = {
    "enabled": (False, []),
    "mode": ("together", ["together"]),
    "weight": (0.75, ["0.75"]),
    "start_at": (0.25, ["0.25"]),
    "stop_at": (0.5, ["0.5"]),
    "views": (2, ["2"]),
    "foreground_image": (Path("a.png"), ["a.png"]),
    "background_image": (Path("b.png"), ["b.png"]),
    "blend_image": (Path("c.png"), ["c.png"]),
    "resize_mode": ("fill", ["fill"]),
    "foreground_prompt": ("a cat", ["a cat"]),
    "background_prompt": ("a room", ["a room"]),
    "blend_prompt": ("best", ["best"]),
    "outputs": (("background", "rgba"), ["background", "rgba"]),
    "preview_image": (Path("d.png"), ["d.png"]),
    "batch_counts": ("images", ["images"]),
    "defringe": ("#3366cc", ["#3366cc"]),
    "black_point": (0.1, ["0.1"]),
    "white_point": (0.9, ["0.9"]),
    "gamma": (1.5, ["1.5"]),
    "choke": (-2.5, ["-2.5"]),
    "feather": (3.0, ["3"]),
    "threshold": (0.5, ["0.5"]),
    "atlas": (True, []),
    "atlas_form": ("array", ["array"]),
    "atlas_trim": (False, []),
    "atlas_common_canvas": (True, []),
    "atlas_power_of_two": (True, []),
    "atlas_padding": (4, ["4"]),
    "atlas_extrude": (1, ["1"]),
    "atlas_pivot_x": (0.25, ["0.25"]),
    "atlas_pivot_y": (1.0, ["1"]),
    "atlas_max_side": (2048, ["2048"]),
    "animation": (True, []),
    "animation_format": ("webp", ["webp"]),
    "animation_fps": (24.0, ["24"]),
}
NAMES = [each.name for each in fields(LayerOptions)]

# batch_counts is for API clients that send images, as the reference extension has it. The page counts sets, and what
# was counted shows in no image.
NO_WIDGET = {"batch_counts"}
NO_INFOTEXT = {"batch_counts"}
# The command is there to make layers.
NO_FLAG = {"enabled"}
# A call always makes layers, one set for each prompt; previews, files, sheets and animations are made of the stacks
# that come back.
REFUSED_BY_THE_LIBRARY: list[dict[str, Any]] = [
    {"enabled": False},
    {"batch_counts": "images"},
    {"preview_image": Path("d.png")},
    *({"outputs": [name]} for name in OUTPUTS if name not in LayerOptions.outputs),
    {"atlas": True},
    {"animation": True},
]


def test_there_is_a_sample_of_every_option() -> None:
    assert list(SAMPLES) == NAMES
    assert all(getattr(LayerOptions(), name) != value for name, (value, _) in SAMPLES.items())


@pytest.mark.parametrize("name", NAMES)
def test_widget(name: str, tmp_path: Path) -> None:
    three = gr.__version__.startswith("3.")
    accordion = panel_host.accordion_of_gradio_3() if three else panel_host.accordion_of_gradio_4()
    with panel_host.installed(panel_host.make_modules(accordion)), gr.Blocks(analytics_enabled=False):
        made = panel.build(False, "id_{}".format, panel_host.make_extension(tmp_path))
    ids = [control.elem_id.removeprefix("id_").removesuffix("-checkbox") for control in made.controls]
    assert ids == list(PAGE_ORDER)
    widgets = OUTPUT_BOXES if name == "outputs" else (name,)  # every output has a box of its own
    assert all((each in ids) is (name not in NO_WIDGET) for each in widgets)


@pytest.mark.parametrize("name", NAMES)
def test_api_key(name: str) -> None:
    value, _ = SAMPLES[name]
    assert getattr(read_options([{name: value}], from_api=True), name) == value
    assert name in LayerOptions.json_schema()["properties"]


@pytest.mark.parametrize("name", NAMES)
def test_infotext_key(name: str) -> None:
    value, _ = SAMPLES[name]
    params = panel_host.parse_infotext(panel_host.write_infotext(infotext.describe(LayerOptions(**{name: value}))))
    read = infotext.read(params)
    assert (name in read) is (name not in NO_INFOTEXT)
    if name.endswith("_image"):
        assert [each for each in NAMES if infotext.gives_image(params, each)] == [name]
    elif name not in NO_INFOTEXT:
        assert read[name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_FLAG])
def test_flag(name: str) -> None:
    value, words = SAMPLES[name]
    flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
    parsed = getattr(build_parser().parse_args(["generate", "a cat", flag, *words]), name)
    assert (sum(parsed, ()) if isinstance(value, tuple) else parsed) == value
    assert getattr(build_parser().parse_args(["generate", "a cat"]), name) is None
    assert not hasattr(build_parser().parse_args(["generate", "a cat"]), "enabled")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("diffusers")
    from tests.tiny_models import make_sd15, make_tokenizer

    return make_sd15(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("name", NAMES)
def test_library_argument(name: str, pipe: Any, tmp_path: Path) -> None:
    from lib_layerdiffusion import layer_diffusion

    value, _ = SAMPLES[name]
    if {name: value} in REFUSED_BY_THE_LIBRARY:
        value = getattr(LayerOptions, name)
    with layer_diffusion(pipe, weights=tmp_path, **{name: value}) as ld:
        assert getattr(ld.options, name) == value


@pytest.mark.parametrize("options", REFUSED_BY_THE_LIBRARY, ids=str)
def test_what_the_library_can_not_honour_it_refuses(options: dict[str, Any], pipe: Any, tmp_path: Path) -> None:
    from lib_layerdiffusion import layer_diffusion

    (name,) = options
    with pytest.raises(Refusal, match=name), layer_diffusion(pipe, weights=tmp_path, **options):
        pass
