"""Scenes with tiny real pipelines of both families: all passes, what is kept, and the pipeline as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion import layer_scene
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.views import Cancelled
from tests.tiny_models import make_controlnet_pipeline
from tests.webui.families import every_file  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

SIZE = {"width": 64, "height": 64}
QUICK: dict[str, Any] = {**SIZE, "steps": 2, "views": 1, "seed": 5}
CONTROL = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
TWO: dict[str, Any] = {"background": "a table", "foregrounds": ["an apple", "a glass"]}


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def state(pipe: Any) -> dict[str, str]:
    parts = {"unet": pipe.unet, "vae": pipe.vae}
    return {f"{n}.{k}": digest(v.numpy()) for n, part in parts.items() for k, v in part.state_dict().items()}


def digest(image: Any) -> str:
    """Short, since a failing comparison of many bytes takes minutes to be shown."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def images_of(made: Any) -> list[str]:
    return [digest(layer.image) for layer in made.stack.layers]


@pytest.mark.parametrize("first", ["background", "foreground", "auto"])
def test_a_scene_is_made_and_leaves_the_pipeline_as_it_was(pipe: Any, every_file: Path, first: str) -> None:  # noqa: F811
    before = state(pipe)
    made = layer_scene(pipe, "oil painting", weights=every_file, first=first, **TWO, **QUICK)
    assert [layer.name for layer in made.stack.layers] == ["background", "an apple", "a glass"]
    assert [layer.image.shape for layer in made.stack.layers] == [(64, 64, 4)] * 3
    assert (made.stack.layers[0].image[..., 3] == 255).all()
    assert len({*images_of(made)}) == 3
    assert [each.difference is not None for each in made.blends] == [True, True]
    assert made.stack.infotext.startswith("oil painting\nSteps: 2, ")
    assert "Seed: 5, Size: 64x64, Script: LayerDiffusion scene, layerdiffusion_scene: " in made.stack.infotext
    assert state(pipe) == before
    assert images_of(layer_scene(pipe, "oil painting", weights=every_file, first=first, **TWO, **QUICK)) == images_of(
        made
    )


def test_one_foreground_is_a_joint_pass_on_sd15(sd15: Any, every_file: Path) -> None:  # noqa: F811
    from lib_layerdiffusion import layer_diffusion

    made = layer_scene(sd15, weights=every_file, background="a table", foregrounds="an apple", **QUICK)
    prompts = {"foreground": "an apple", "background": "a table", "blend": "an apple, a table"}
    options = {f"{role}_prompt": text for role, text in prompts.items()}
    with layer_diffusion(sd15, "together", every_file, views=1, **options) as ld:
        stack = ld("", seed=5, steps=2, **SIZE)
    images = {layer.role: digest(layer.image) for layer in stack.layers}
    assert images_of(made) == [images["background"], images["foreground"]]
    assert digest(made.blends[0].image) == images["blend"]


def test_given_images_are_layers_of_the_scene(pipe: Any, every_file: Path) -> None:  # noqa: F811
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    opaque = np.dstack([rgba[..., :3], np.full((64, 64), 255, np.uint8)])
    made = layer_scene(pipe, weights=every_file, foregrounds="an apple", background_image=opaque, **QUICK)
    assert images_of(made)[0] == digest(opaque)
    made = layer_scene(pipe, weights=every_file, background="a table", foreground_image=rgba, **QUICK)
    assert [layer.name for layer in made.stack.layers] == ["background", "foreground"]
    assert images_of(made)[1] == digest(rgba)


def test_a_scene_ends_where_progress_says_so(pipe: Any, every_file: Path) -> None:  # noqa: F811
    whole = layer_scene(pipe, weights=every_file, first="background", **TWO, **QUICK)
    seen: list[float] = []

    def until(share: float) -> Any:
        def progress(done: int, total: int) -> bool:
            seen.append(done / total)
            return done / total < share

        return progress

    made = layer_scene(pipe, weights=every_file, first="background", progress=until(0.9), **TWO, **QUICK)
    assert images_of(made) == images_of(whole)[:2]
    assert made.unmade == ("a glass",)
    assert made.interrupted
    assert seen == sorted(seen)
    with pytest.raises(Cancelled):
        layer_scene(pipe, weights=every_file, first="background", progress=until(0.1), **TWO, **QUICK)
    layer_scene(pipe, weights=every_file, first="background", progress=until(2), **TWO, **QUICK)
    assert seen[-1] == 1


def test_settings_can_differ_between_passes(sd15: Any, every_file: Path) -> None:  # noqa: F811
    modes: list[str] = []

    def settings(each: Any) -> dict[str, Any]:
        modes.append(each.mode)
        return {"eta": 1.0} if each.mode else {}

    noisy = layer_scene(sd15, weights=every_file, settings=settings, **TWO, **QUICK)
    assert modes == ["", "background_to_foreground", "background_to_foreground"]
    plain = layer_scene(sd15, weights=every_file, **TWO, **QUICK)
    same = [one == other for one, other in zip(images_of(noisy), images_of(plain), strict=True)]
    assert same == [True, False, False]


@pytest.mark.parametrize("steered", [0, 1, 2])
def test_a_pass_can_have_a_controlnet_alone(sd15: Any, every_file: Path, steered: int) -> None:  # noqa: F811
    """The layers of the passes before are those of a scene without it, and so are the later ones for what it made."""
    passes: list[Any] = []

    def settings(each: Any) -> dict[str, Any]:
        passes.append(each)
        return {"image": CONTROL, "controlnet_conditioning_scale": float(len(passes) == steered + 1)}

    plain = layer_scene(sd15, weights=every_file, **TWO, **QUICK)
    pipe = make_controlnet_pipeline(sd15)
    before = state(pipe)
    made = layer_scene(pipe, weights=every_file, settings=settings, **TWO, **QUICK)
    assert state(pipe) == before
    assert len(passes) == len(made.stack.layers) == 3
    own, other = images_of(made), images_of(plain)
    assert own[:steered] == other[:steered]
    assert own[steered] != other[steered]
    if steered == 0:
        given = {**TWO, "background_image": made.stack.layers[0].image}
        later = layer_scene(sd15, weights=every_file, **given, **{**QUICK, "seed": passes[1].seed})
        assert own[1:] == images_of(later)[1:]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"foregrounds": ["x"] * 9}, "at most 8 foregrounds"),
        ({"foregrounds": "x", "seed": -1}, "A seed must be a whole number"),
        ({"foregrounds": "x", "first": "last"}, "first can't be 'last'"),
        ({"foregrounds": "x", "controlnet_units": "0"}, "for a WebUI's own ControlNet: give the .* by settings"),
        ({"foregrounds": "x", "settings": {"prompt": "y"}}, "'prompt' is set by LayerDiffusion"),
    ],
)
def test_what_cannot_be_made_is_refused(sd15: Any, every_file: Path, values: Any, match: str) -> None:  # noqa: F811
    with pytest.raises(Refusal, match=match):
        layer_scene(sd15, weights=every_file, **{"background": "a table", **QUICK, **values})


def test_a_missing_file_is_named_before_any_pass(sd15: Any, layer_files: Path) -> None:
    with pytest.raises(Refusal, match="layer_sd15_bg2fg"):
        layer_scene(sd15, weights=layer_files, progress=lambda *_: pytest.fail("a pass began"), **TWO, **QUICK)
