"""The embedded model as a checkpoint of a real WebUI: transparent pictures through its API and its page, measured.

LAYERDIFFUSION_PICTURES names a folder that keeps the pictures; LAYERDIFFUSION_SPRITES the archive that the model was
trained on (docs/training.md), which the measures of all prompts need, with backgrounds.zip beside it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lib_layerdiffusion.embedded import EMBEDDED_FOLDER, a1111_checkpoint
from lib_layerdiffusion.layers import Layer, LayerStack
from lib_layerdiffusion.modes import find_mode
from lib_layerdiffusion.train.dataset import Sprite, find_prompts, read_sprites, split_sprites
from lib_layerdiffusion.train.evaluate import judge, summarise
from lib_layerdiffusion.train.evaluate_layers import find_guidance, judge_pairs, summarise_layers
from lib_layerdiffusion.train.scenes import Scene, make_condition
from tests.browser import Page, opened
from tests.e2e.server import Answer, WebUIServer, encode, is_forge
from tests.e2e.test_page import PANEL, PATIENCE, choose_mode, click, fetch, give_image, list_pictures, set_numbers

if TYPE_CHECKING:
    Pixels = NDArray[np.uint8]

CHECKPOINT = "layerdiffusion-tested"
FOREGROUND = {"mode": "foreground"}
SIZE = 128
SETTINGS = {"negative_prompt": "", "steps": 20, "cfg_scale": 3, "width": SIZE, "height": SIZE, "sampler_name": "DDIM"}
LAYERS = ("together", "foreground_to_background", "background_to_foreground")
SEEDS = range(1000, 1004)
LAYERED = {"foreground": "panda", "background": "meadow", "blend": "panda, meadow"}
LEAST = {"prompt_fidelity": 0.85, "clean_outside": 0.98, "solid_inside_of_opaque": 0.98}
LEAST["half_transparent_kept_of_soft"] = 0.85
LEAST_LAYERED = {"foreground_is_faithful": 0.8, "background_is_faithful": 0.8, "clean_outside": 0.9}
MOST_LAYERED = {"disagreement": 0.06, "kept": 0.06}


@pytest.fixture(scope="module")
def embedded(webui_server: WebUIServer) -> Iterator[WebUIServer]:
    """The WebUI with the embedded model as its checkpoint."""
    if is_forge(webui_server.folder):
        pytest.skip("Forge and its forks only load checkpoints of full shape")
    models = webui_server.folder / "models"
    for old in [*models.glob(f"*/{CHECKPOINT}*")]:  # left by an earlier model
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    a1111_checkpoint.write(EMBEDDED_FOLDER, models, models / "layer_model" / CHECKPOINT, CHECKPOINT)
    webui_server.look_at_model()  # it answers while its first checkpoint is being loaded, and mixes up two loads
    assert webui_server.post("/sdapi/v1/refresh-checkpoints").status == 200
    before = webui_server.get("/sdapi/v1/options")["sd_model_checkpoint"]
    choose(webui_server, f"{CHECKPOINT}.safetensors")
    yield webui_server
    choose(webui_server, before)


def choose(server: WebUIServer, checkpoint: str) -> None:
    assert server.post("/sdapi/v1/options", {"sd_model_checkpoint": checkpoint}).status == 200
    assert server.get("/sdapi/v1/options")["sd_model_checkpoint"].startswith(checkpoint), server.read_log()[-2000:]


@pytest.fixture
def keep() -> Callable[[Image.Image, str], None]:
    """Saves a picture in the folder that LAYERDIFFUSION_PICTURES names."""
    folder = os.environ.get("LAYERDIFFUSION_PICTURES")

    def keep(image: Image.Image, name: str) -> None:
        if folder:
            image.save(Path(folder) / f"{name}.png")

    return keep


def draw(server: WebUIServer, prompt: str, seed: int, **values: Any) -> Image.Image:
    return first_of(server.txt2img(FOREGROUND, prompt=prompt, seed=seed, **SETTINGS | values))


def first_of(answer: Answer) -> Image.Image:
    image = answer.images[0]
    assert image.mode == "RGBA"
    return image


def check_apple(image: Image.Image, colour: int = 0, solid: float = 0.98) -> None:
    """Empty around the apple, solid inside, and of its colour (0: red, 1: green, 2: blue)."""
    rgba = np.asarray(image)
    alpha = rgba[..., 3] / 255
    assert frame_of(alpha) < 0.02
    assert alpha.max() > solid
    assert 0.15 < (alpha > 0.9).mean() < 0.8
    means = rgba[alpha > 0.9][:, :3].mean(axis=0)
    assert means.argmax() == colour


def frame_of(alpha: NDArray[np.float64]) -> float:
    return np.concatenate([alpha[:4].ravel(), alpha[-4:].ravel(), alpha[:, :4].ravel(), alpha[:, -4:].ravel()]).mean()


@pytest.mark.seen("foreground", "embedded model, txt2img")
def test_text_to_image(embedded: WebUIServer, keep: Any) -> None:
    plain = embedded.txt2img(prompt="red apple", seed=5, **SETTINGS).encoded
    apple = draw(embedded, "red apple", 5)
    keep(apple, "a1111-api")
    check_apple(apple)
    assert draw(embedded, "red apple", 5).tobytes() == apple.tobytes()
    assert embedded.txt2img(prompt="red apple", seed=5, **SETTINGS).encoded == plain


@pytest.mark.seen("foreground", "embedded model, half-transparent")
def test_bubble_lets_the_background_through(embedded: WebUIServer, keep: Any) -> None:
    bubble = draw(embedded, "soap bubble", 6)
    keep(bubble, "a1111-bubble")
    alpha = np.asarray(bubble)[..., 3] / 255
    half = (alpha > 0.1) & (alpha < 0.9)
    assert frame_of(alpha) < 0.02
    assert half.mean() > 0.15
    assert half.sum() > (alpha >= 0.9).sum()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.seen("{name}", "embedded model, layers that fit each other")
def test_layers_fit_each_other(embedded: WebUIServer, keep: Any, name: str) -> None:
    """The blend that the model sees is what its layers make when they are put together."""
    mode = find_mode(name, "sd15")
    layers: dict[str, Any] = {"mode": name, "outputs": ["rgba", "background", "blend", "recomposite"]}
    layers |= {f"{role}_prompt": LAYERED[role] for role in mode.frames}
    for role in mode.inputs:
        args = FOREGROUND if role == "foreground" else None
        layers[f"{role}_image"] = embedded.txt2img(args, prompt=LAYERED[role], seed=5, **SETTINGS).encoded[0]
    answer = embedded.txt2img(layers, prompt="", seed=5, **SETTINGS)
    for number, image in enumerate(answer.images):
        keep(image, f"a1111-{name}-{number}")
    blend, recomposite = (np.asarray(image).astype(float) / 255 for image in answer.images[-2:])
    assert blend.shape == recomposite.shape == (SIZE, SIZE, 3)
    assert abs(blend - recomposite).mean() < 0.1
    if mode.transparent_frame is not None:
        alpha = np.asarray(first_of(answer))[..., 3] / 255
        assert alpha.max() > 0.98
        assert 0.05 < alpha.mean() < 0.6


@pytest.mark.seen("foreground", "embedded model, hires fix")
def test_second_pass(embedded: WebUIServer, keep: Any) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.3, "hr_upscaler": "Lanczos"}
    apple = draw(embedded, "red apple", 5, **hires)
    keep(apple, "a1111-hires")
    assert apple.size == (192, 192)
    check_apple(apple, solid=0.95)  # the model knows 128 pixels


@pytest.mark.seen("foreground", "embedded model, img2img")
def test_image_to_image(embedded: WebUIServer, keep: Any) -> None:
    start = draw(embedded, "red apple", 5)
    values = SETTINGS | {"prompt": "red apple", "seed": 11, "denoising_strength": 0.5}
    image = first_of(embedded.img2img(start, FOREGROUND, **values))
    keep(image, "a1111-img2img")
    check_apple(image)
    before, after = (np.asarray(each)[..., 3].astype(float) / 255 for each in (start, image))
    assert abs(before - after).mean() < 0.1, "the shape that it started from is lost"


@pytest.mark.seen("foreground", "embedded model, inpaint")
def test_inpainting(embedded: WebUIServer, keep: Any) -> None:
    start = draw(embedded, "red apple", 5)
    mask = Image.new("L", start.size)
    ImageDraw.Draw(mask).rectangle((64, 0, 127, 127), fill=255)
    values = SETTINGS | {"prompt": "red apple", "seed": 12, "denoising_strength": 0.6, "mask": encode(mask)}
    values |= {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    image = first_of(embedded.img2img(start, FOREGROUND, **values))
    keep(image, "a1111-inpaint")
    check_apple(image)
    before, after = np.asarray(start).astype(int), np.asarray(image).astype(int)
    assert abs(before[:, :64, 3] - after[:, :64, 3]).max() <= 1
    assert (before[:, 64:] != after[:, 64:]).any()


@pytest.fixture
def page(embedded: WebUIServer, tmp_path: Path) -> Iterator[Page]:
    with opened(f"{embedded.address}/", tmp_path, PATIENCE) as page:
        yield page


def fill_in(page: Page, **values: Any) -> None:
    """Give txt2img's fields their values, as the requests here have them."""
    set_numbers(page, **{name: value for name, value in (SETTINGS | values).items() if isinstance(value, int | float)})
    sampler = page.element("#txt2img_sampling input")
    sampler.click()
    page.element(f'#txt2img_sampling li[aria-label="{SETTINGS["sampler_name"]}"]').click()


def take_pictures(page: Page, server: WebUIServer, count: int) -> list[Image.Image]:
    """Click Generate, and wait for so many pictures."""
    click(page, "#txt2img_generate")
    page.wait(lambda: len(list_pictures(page)) >= count, "the pictures")
    return [fetch(server, address) for address in list_pictures(page)]


@pytest.mark.parametrize("name", ["foreground", *LAYERS])
@pytest.mark.seen("{name}", "embedded model, the WebUI's page")
def test_page(embedded: WebUIServer, page: Page, keep: Any, tmp_path: Path, name: str) -> None:
    """What the page makes is what its API makes of the same settings."""
    mode = find_mode(name, "sd15")
    layers = {"mode": name} | {f"{role}_prompt": LAYERED[role] for role in mode.frames if len(mode.frames) > 1}
    for role in mode.inputs:
        args = FOREGROUND if role == "foreground" else None
        layers[f"{role}_image"] = embedded.txt2img(args, prompt=LAYERED[role], seed=5, **SETTINGS).encoded[0]
        (tmp_path / f"{role}.png").write_bytes(base64.b64decode(layers[f"{role}_image"]))
    wanted = embedded.txt2img(layers, prompt="red apple", seed=5, **SETTINGS)

    page.element("#txt2img_prompt textarea").send_keys("red apple")
    fill_in(page, seed=5)
    choose_mode(page, name)
    for role in mode.inputs:
        give_image(page, role, tmp_path / f"{role}.png")
    for option in layers.keys() & {f"{role}_prompt" for role in mode.frames}:
        page.element(f"{PANEL}_{option} textarea").send_keys(layers[option])
    made = take_pictures(page, embedded, len(wanted.images))[-len(wanted.images) :]
    for number, image in enumerate(made):
        keep(image, f"a1111-page-{name}-{number}")
    assert [image.tobytes() for image in made] == [image.tobytes() for image in wanted.images]
    assert "Seed: 5" in made[0].info["parameters"]
    if name == "foreground":
        check_apple(made[0])


@pytest.fixture
def sprites() -> list[Sprite]:
    """What the words of the embedded model were trained with."""
    if not (archive := os.environ.get("LAYERDIFFUSION_SPRITES")):
        pytest.skip("set LAYERDIFFUSION_SPRITES to the archive of the training's sprites")
    return find_prompts(split_sprites(read_sprites(Path(archive), 2 * SIZE))[0])


@pytest.mark.seen("foreground", "embedded model, all prompts measured")
def test_measures(embedded: WebUIServer, record_property: Any, keep: Any, sprites: list[Sprite]) -> None:
    """Every prompt with four seeds, by the measures of `layerdiffusion train evaluate`."""
    rows = []
    for caption in dict.fromkeys(sprite.text for sprite in sprites):
        answer = embedded.txt2img(FOREGROUND, prompt=caption, seed=SEEDS[0], batch_size=len(SEEDS), **SETTINGS)
        for seed, image in zip(SEEDS, answer.images, strict=True):
            keep(image, f"{caption.replace(' ', '-')}-{seed}")
            rows.append(judge(np.asarray(image), caption, seed, sprites))
    measures = summarise(rows)
    record_property("measures", json.dumps(measures))
    short = {name: measures[name] for name, least in LEAST.items() if measures[name] < least}
    assert not short, measures


@pytest.mark.seen("{name}", "embedded model, all pairs measured")
@pytest.mark.parametrize("name", LAYERS)
def test_layered_measures(embedded: WebUIServer, record_property: Any, sprites: list[Sprite], name: str) -> None:
    """The fixed list of 60 pairs of a word and a background, by the same command's measures."""
    mode = find_mode(name, "sd15")
    archive = Path(os.environ["LAYERDIFFUSION_SPRITES"]).with_name("backgrounds.zip")

    def make(scene: Scene, seed: int) -> LayerStack:
        outputs = ["rgba" if role == "foreground" else role for role in mode.frames]
        layers: dict[str, Any] = {"mode": name, "outputs": outputs}
        layers |= {f"{role}_prompt": scene.texts[role] for role in mode.frames}
        layers |= {f"{role}_image": encode(Image.fromarray(make_condition(scene, role))) for role in mode.inputs}
        answer = embedded.txt2img(layers, prompt="", seed=seed, **SETTINGS | {"cfg_scale": find_guidance(mode)})
        images = [np.asarray(image.convert("RGBA")) for image in answer.images]
        return LayerStack(
            tuple(Layer(*layer) for layer in zip(mode.frames, images, mode.frames, strict=True)), (SIZE, SIZE)
        )

    behind = read_sprites(archive, 2 * SIZE, cover=True)
    measures = summarise_layers(judge_pairs(make, mode, sprites, behind, SIZE, [SEEDS[0]]))
    record_property("measures", json.dumps(measures))
    assert measures["images"] == 60
    short = [name for name, least in LEAST_LAYERED.items() if measures.get(name, 1) < least]
    assert not short + [name for name, most in MOST_LAYERED.items() if measures.get(name, 0) > most], measures
