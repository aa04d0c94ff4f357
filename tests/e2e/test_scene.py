"""Scenes in a real WebUI: all passes, an interrupt in the second that keeps the first, and plain pictures as before."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lib_layerdiffusion.scene import TITLE
from tests.e2e.server import CHECKPOINTS, Answer, is_forge
from tests.e2e.test_embedded_checkpoint import (  # noqa: F401 - fixtures
    SETTINGS,
    embedded,
    fill_in,
    page,
    take_pictures,
)
from tests.e2e.test_neighbours import unit  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from tests.browser import Page
    from tests.e2e.server import WebUIServer

TWO: dict[str, Any] = {"background": "a leaf", "foregrounds": ["a red apple", "an apple"], "views": 1}
LAYERS = ["background", "a red apple", "an apple"]


def ask(webui: WebUIServer, scene: dict[str, Any], **values: Any) -> Answer:
    return webui.ask(script_name=TITLE, script_args=[scene], **values)


def names_of(answer: Answer) -> list[str]:
    return [image.info["parameters"].rpartition("layerdiffusion_layer: ")[2].split(",")[0] for image in answer.images]


def notes_of(answer: Answer) -> list[str]:
    return answer.info["extra_generation_params"].get("layerdiffusion_notes", [])


def check_whole(answer: Answer) -> None:
    assert names_of(answer) == [*LAYERS, "recomposite"], notes_of(answer)
    background, *foregrounds, recomposite = answer.images
    assert [image.mode for image in answer.images] == ["RGB", "RGBA", "RGBA", "RGB"]
    whole = background.convert("RGBA")
    for image in foregrounds:
        whole.alpha_composite(image)
    pairs = zip(whole.convert("RGB").tobytes(), recomposite.tobytes(), strict=True)
    assert max(abs(one - other) for one, other in pairs) <= 2  # Pillow rounds after each layer


def interrupt_in_the_second_pass(webui: WebUIServer, make: Callable[[], Answer]) -> Answer:
    """The answer to a scene that a user interrupts in its second pass."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(make)
        while not answer.done():
            if "pass 2 of" in (webui.get("/sdapi/v1/progress?skip_current_image=true").get("textinfo") or ""):
                webui.post("/sdapi/v1/interrupt")
                break
            time.sleep(0.1)
        return answer.result()


def check_interrupted(webui: WebUIServer, make: Callable[[], Answer], whole: Answer) -> None:
    part = interrupt_in_the_second_pass(webui, make)
    assert part.encoded == whole.encoded[:1]
    assert any("background kept, a red apple, an apple not made" in note for note in notes_of(part))


@pytest.mark.seen("any", "scene of three passes, SD1.5")
def test_scene(webui: WebUIServer) -> None:
    whole = ask(webui, TWO)
    check_whole(whole)
    check_interrupted(webui, lambda: ask(webui, TWO), whole)
    assert ask(webui, TWO).encoded == whole.encoded


@pytest.mark.seen("any", "scene with a ControlNet unit in one pass")
def test_controlnet_in_one_pass(webui: WebUIServer, unit: dict[str, Any]) -> None:  # noqa: F811
    def make(choice: str, units: list[dict[str, Any]]) -> list[bytes]:
        scene = {**TWO, "outputs": ["layers"], "controlnet_units": choice}
        answer = ask(webui, scene, alwayson_scripts={"ControlNet": {"args": units}} if units else {})
        assert names_of(answer) == LAYERS, notes_of(answer)
        return [image.tobytes() for image in answer.images]

    without = make("", [])
    assert make("-; -; -", [unit]) == without
    steered = make("-; 0; -", [unit])
    assert [one == other for one, other in zip(steered, without, strict=True)][:2] == [True, False]
    assert make("0; -; -", [unit])[0] != without[0]
    assert make("", []) == without


@pytest.mark.seen("any", "scene of one joint pass, pasted infotext")
def test_joint_scene_and_its_infotext(webui: WebUIServer) -> None:
    scene = {"background": "a leaf", "foregrounds": "a red apple", "views": 1}
    whole = ask(webui, scene)
    assert names_of(whole) == ["background", "a red apple", "recomposite"]
    if is_forge(webui.folder):
        pytest.skip("the scene was made; Forge's own API fails at every infotext")
    text = whole.images[1].info["parameters"]
    again = webui.post("/sdapi/v1/txt2img", {"infotext": text, "script_name": TITLE})
    assert again.encoded == whole.encoded


@pytest.mark.seen("any", "scene with wrong arguments")
def test_refusals(webui: WebUIServer) -> None:
    for scene, words in (
        ({"background": "a leaf", "foregrounds": ["a"] * 9}, "at most 8 foregrounds"),
        ({"foregrounds": ["a"], "typo": 1}, "no option 'typo'"),
    ):
        answer = ask(webui, scene)
        assert answer.status == 422
        assert words in answer.body["detail"]


@pytest.mark.seen("any", "scene of five passes, SDXL")
def test_scene_on_sdxl(webui_server: WebUIServer) -> None:
    if not (Path(webui_server.folder) / "models/Stable-diffusion" / f"{CHECKPOINTS['sdxl']}.safetensors").exists():
        pytest.skip("needs the SDXL files of tests.e2e.seeded_files")
    values: dict[str, Any] = {"checkpoint": CHECKPOINTS["sdxl"], "steps": 1}
    plain = webui_server.ask(**values).encoded
    whole = ask(webui_server, TWO, **values)
    check_whole(whole)
    check_interrupted(webui_server, lambda: ask(webui_server, TWO, **values), whole)
    assert webui_server.ask(**values).encoded == plain


@pytest.mark.seen("any", "embedded model, scene of three passes")
def test_scene_of_the_embedded_model(embedded: WebUIServer) -> None:  # noqa: F811
    values = SETTINGS | {"steps": 4, "seed": 5}

    def make() -> Answer:
        return embedded.txt2img(script_name=TITLE, script_args=[TWO], **values)

    plain = embedded.txt2img(prompt="red apple", **values).encoded
    whole = make()
    check_whole(whole)
    check_interrupted(embedded, make, whole)
    assert embedded.txt2img(prompt="red apple", **values).encoded == plain


@pytest.mark.seen("any", "embedded model, scene by the WebUI's page")
def test_scene_by_the_page(embedded: WebUIServer, page: Page) -> None:  # noqa: F811
    """What the page makes is what its API makes of the same settings."""
    scene: dict[str, Any] = {"background": "meadow", "foregrounds": ["panda", "frog"]}
    wanted = embedded.txt2img(script_name=TITLE, script_args=[scene], prompt="", seed=5, **SETTINGS)
    fill_in(page, seed=5)
    field = page.element("#script_list input")
    page.run("arguments[0].scrollIntoView()", field)
    field.click()
    page.element(f'li[aria-label="{TITLE}"]').click()
    for name, value in scene.items():
        text = value if isinstance(value, str) else "\n".join(value)
        page.element(f'[id$="layerdiffusion_scene_{name}"] textarea').send_keys(text)
    made = take_pictures(page, embedded, len(wanted.images))[-len(wanted.images) :]
    assert [image.tobytes() for image in made] == [image.tobytes() for image in wanted.images]
