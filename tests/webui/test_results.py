"""What comes back: layers that follow later changes of the picture, judgements, previews, files, API answers."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_layerdiffusion.layers import Layer, composite, fit
from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.planning import Facts, Plan, plan
from lib_layerdiffusion.webui import results
from lib_layerdiffusion.webui.results import Batch, LayerSet

SIZE = (70, 64)  # sampled at 72x64


def make_plan(mode: str = "foreground", **given: Any) -> Plan:
    return plan(LayerOptions(mode=mode, **given), Facts("sd15", *SIZE))


def draw_layer(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), np.uint8)


@pytest.fixture
def pixels() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(1, 3, 64, 72) * 0.5 + 0.25


@pytest.fixture
def layer() -> np.ndarray[Any, Any]:
    return draw_layer()


@pytest.fixture
def batch(pixels: torch.Tensor, layer: np.ndarray[Any, Any]) -> Batch:
    return Batch(make_plan(), [{"foreground": layer}], pixels)


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """What a WebUI makes of decoded pixels."""
    return Image.fromarray((255.0 * pixels[0].permute(1, 2, 0).numpy()).astype(np.uint8))


def test_an_unchanged_picture_gives_the_layer(batch: Batch, pixels: torch.Tensor, layer: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(batch.finish(0, as_picture(pixels)), layer)


def test_a_changed_picture_changes_colours_and_keeps_alpha(
    batch: Batch, pixels: torch.Tensor, layer: np.ndarray[Any, Any]
) -> None:
    brighter = Image.fromarray(np.asarray(as_picture(pixels)) + np.uint8(20))  # such as a face restoration
    made = np.asarray(batch.finish(0, brighter))
    assert np.array_equal(made[..., 3], layer[..., 3])
    assert np.array_equal(made[..., :3], np.minimum(layer[..., :3].astype(int) + 20, 255))


def test_an_enlarged_picture_enlarges_the_layer(batch: Batch, pixels: torch.Tensor) -> None:
    made = batch.finish(0, as_picture(pixels).resize((144, 128)))
    assert (made.mode, made.size) == ("RGBA", (144, 128))


def test_opaque_frames_are_cropped_only() -> None:
    mode = make_plan("together")
    frames = {role: draw_layer(i) for i, role in enumerate(mode.frames)}
    batch = Batch(mode, [frames], torch.full((3, 3, 64, 72), 0.5))
    picture = Image.new("RGB", (72, 64), "red")
    assert [batch.finish(index, picture).mode for index in range(3)] == ["RGBA", "RGB", "RGB"]
    assert {batch.finish(index, picture).size for index in range(3)} == {SIZE}
    assert batch.finish(1, picture).getpixel((0, 0)) == (255, 0, 0)


def test_a_masked_layer_is_painted_into_the_image_it_started_from(
    batch: Batch, pixels: torch.Tensor, layer: np.ndarray[Any, Any]
) -> None:
    start = draw_layer(5)
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (10, 8, 40, 30))
    made = np.asarray(batch.finish_masked(0, as_picture(pixels), start, mask, None)).astype(int)
    visible = start[..., 3] > 0
    assert np.abs(made - start)[:8][visible[:8]].max() <= 1
    inside = layer[8:30, 10:40]
    assert np.abs(made[8:30, 10:40] - inside)[inside[..., 3] > 0].max() <= 1


def test_only_masked_fills_its_box(batch: Batch, pixels: torch.Tensor, layer: np.ndarray[Any, Any]) -> None:
    start = draw_layer(5, (200, 160))
    mask = Image.new("L", (200, 160), 0)
    mask.paste(255, (30, 20, 30 + SIZE[0], 20 + SIZE[1]))
    made = np.asarray(batch.finish_masked(0, as_picture(pixels), start, mask, (30, 20, *SIZE))).astype(int)
    assert made.shape == start.shape
    box = made[20 : 20 + SIZE[1], 30 : 30 + SIZE[0]]
    assert np.abs(box - layer)[layer[..., 3] > 0].max() <= 1
    assert np.abs(made - start)[:20][start[:20, :, 3] > 0].max() <= 1


@pytest.mark.parametrize(("alpha", "word"), [(255, "opaque"), (0, "empty"), (128, None)])
def test_an_opaque_or_empty_image_is_reported(pixels: torch.Tensor, alpha: int, word: str | None) -> None:
    layer = draw_layer()
    layer[..., 3] = alpha
    sentences = [*Batch(make_plan(), [{"foreground": layer}], pixels).judge()]
    assert [word in sentence for sentence in sentences] == ([True] if word else [])


def make_set(mode: str = "together", seed: int = 0) -> LayerSet:
    chosen = make_plan(mode)
    images = {role: Image.fromarray(draw_layer(seed + i)) for i, role in enumerate(chosen.frames)}
    opaque = {role: image if role == "foreground" else image.convert("RGB") for role, image in images.items()}
    return LayerSet(chosen, {}, opaque)


def answer(sets: list[LayerSet]) -> Any:
    images = [image for each in sets for image in each.images.values()]
    texts = [f"text {index}" for index in range(len(images))]
    return SimpleNamespace(images=images, infotexts=texts, info="text 0", index_of_first_image=0)


def test_previews_come_last_and_are_labelled() -> None:
    sets, options = [make_set(), make_set(seed=9)], LayerOptions(outputs=("rgba", "checker", "alpha", "recomposite"))
    processed = answer(sets)
    results.deliver(sets, options, processed)
    assert [image.mode for image in processed.images] == ["RGBA"] * 2 + ["RGB"] * 6
    assert processed.infotexts[:2] == ["text 0", "text 3"]
    texts = [image.info["parameters"] for image in processed.images[2:]]
    assert processed.infotexts[2:] == texts
    kinds = ["checker", "checker", "alpha", "alpha", "recomposite", "recomposite"]
    assert [text.rpartition(": ")[2] for text in texts] == kinds, "each kind for itself, to be compared"
    for index in (0, 1):
        rgba, alpha = (np.asarray(processed.images[each]) for each in (index, 4 + index))
        assert np.array_equal(alpha[..., 0], rgba[..., 3])


@pytest.mark.parametrize("resize_mode", ["crop", "fill"])
def test_previews_over_colours_and_an_image_are_the_exact_composite(resize_mode: str, tmp_path: Any) -> None:
    one, behind = make_set("foreground"), draw_layer(3, (30, 90))
    one.images["foreground"].already_saved_as = str(tmp_path / "1.png")
    names = ("over_black", "over_white", "over_image")
    options = LayerOptions(outputs=("rgba", *names), resize_mode=resize_mode)
    processed = answer([one])
    results.deliver([one], options, processed, save_previews=True, behind=behind)
    layer = Layer("f", np.asarray(one.images["foreground"]), "foreground")
    image = Layer("b", fit(behind, SIZE, resize_mode), "background")
    made = zip(
        processed.images[1:], names, ([layer], [layer], [image, layer]), ("black", "white", "checker"), strict=True
    )
    for shown, name, layers, background in made:
        assert np.array_equal(np.asarray(shown), composite(layers, background))
        assert shown.info["parameters"].endswith(f"layerdiffusion_preview: {name}")
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"1-{name}.png")), np.asarray(shown))


def test_layers_that_are_not_wanted_stay_out_but_never_all() -> None:
    sets = [make_set()]
    wanted = answer(sets)
    results.deliver(sets, LayerOptions(outputs=("background",)), wanted)
    assert wanted.images == [sets[0].images["background"]]
    nothing = answer(sets)
    results.deliver(sets, LayerOptions(outputs=("checker",)), nothing)
    assert [image.mode for image in nothing.images] == ["RGBA", "RGB", "RGB", "RGB"], "all layers and the preview"


def test_alpha_is_attached_again_where_another_extension_dropped_it() -> None:
    one = make_set("foreground")
    alpha = np.asarray(one.images["foreground"])[..., 3]
    theirs = answer([one])
    theirs.images = [Image.new("RGB", SIZE, "blue")]
    results.deliver([one], LayerOptions(), theirs)
    made = np.asarray(theirs.images[0])
    assert np.array_equal(made[..., 3], alpha)
    assert (made[..., :3] == (0, 0, 255)).all()


def test_files_lie_next_to_the_saved_image(tmp_path: Any) -> None:
    one = make_set()
    one.images["foreground"].already_saved_as = str(tmp_path / "00001-5.png")
    results.deliver([one], LayerOptions(outputs=("rgba", "ora")), answer([one]))
    assert [path.name for path in tmp_path.iterdir()] == ["00001-5.ora"]


def test_previews_are_saved_only_where_that_is_wanted(tmp_path: Any) -> None:
    options = LayerOptions(outputs=("rgba", "checker", "alpha"))
    one = make_set()
    one.images["foreground"].already_saved_as = str(tmp_path / "1.5-a cat.png")
    results.deliver([one], options, answer([one]))
    assert list(tmp_path.iterdir()) == []
    processed = answer([one])
    assert results.deliver([one], options, processed, save_previews=True) == []
    names = ["1.5-a cat-alpha.png", "1.5-a cat-checker.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    checker = processed.images[1]
    assert checker.already_saved_as == str(tmp_path / names[1]), "by which a WebUI shows and names it"
    with Image.open(checker.already_saved_as) as file:
        assert np.array_equal(np.asarray(file), np.asarray(checker))
        assert file.info["parameters"] == checker.info["parameters"]


def test_a_preview_that_can_not_be_saved_is_told(tmp_path: Any) -> None:
    one = make_set()
    one.images["foreground"].already_saved_as = str(tmp_path / "gone" / "1.png")
    told = results.deliver([one], LayerOptions(outputs=("rgba", "alpha")), answer([one]), save_previews=True)
    assert len(told) == 1
    assert "1-alpha.png" in told[0]


def test_previews_of_images_that_are_not_saved_are_only_shown() -> None:
    one = make_set()
    processed = answer([one])
    assert results.deliver([one], LayerOptions(outputs=("rgba", "alpha")), processed, save_previews=True) == []
    assert not hasattr(processed.images[-1], "already_saved_as")


def test_files_that_have_no_place_are_told() -> None:
    one = make_set()
    (told,) = results.deliver([one], LayerOptions(outputs=("rgba", "ora", "psd")), answer([one]))
    assert told == "No PSD or ORA was written, since these images aren't saved: switch saving on (API: save_images)."
    assert results.deliver([one], LayerOptions(), answer([one])) == []


def test_the_given_background_lies_below_a_generated_foreground() -> None:
    chosen = make_plan("background_to_foreground", background_image=Image.new("RGB", SIZE))
    background = draw_layer(3)
    images = {"foreground": Image.fromarray(draw_layer(1)), "blend": Image.new("RGB", SIZE)}
    stack = LayerSet(chosen, {"background": background}, images).stack("")
    assert [layer.role for layer in stack.layers] == ["background", "foreground"]
    assert np.array_equal(stack.layers[0].image, background)


@pytest.mark.parametrize(("file_format", "is_text"), [("jpg", True), ("webp", True), ("png", False)])
def test_api_answers_keep_alpha_in_any_file_format(file_format: str, is_text: bool) -> None:
    one = make_set()
    rgba = np.asarray(one.images["foreground"])
    one.images["foreground"].info["parameters"] = "a prompt"
    answered = answer([one])
    results.keep_alpha_in_answer(answered, file_format)
    assert isinstance(answered.images[0], str) == is_text
    assert all(isinstance(image, Image.Image) for image in answered.images[1:])
    if is_text:
        read = Image.open(io.BytesIO(base64.b64decode(answered.images[0])))
        assert np.array_equal(np.asarray(read), rgba)
        assert read.info["parameters"] == "a prompt"
