"""What users change between and within requests to a real WebUI; afterwards all is as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.e2e.server import CHECKPOINTS, LORA, Answer
from tests.e2e.test_embedded_checkpoint import CHECKPOINT, SETTINGS, check_apple, embedded

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

__all__ = ["embedded"]  # a fixture

FOREGROUND, TOGETHER = {"mode": "foreground"}, {"mode": "together"}
USUAL = CHECKPOINTS["sd15"]
SECOND = "layerdiffusion-seeded-second"  # the same weights by another name
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


def ask(server: WebUIServer, layers: Any = None, checkpoint: str = USUAL, **values: Any) -> Answer:
    override = {"sd_model_checkpoint": f"{checkpoint}.safetensors"} | values.pop("override_settings", {})
    values = {"width": 64, "height": 64, "override_settings_restore_afterwards": False} | values
    return server.txt2img(layers, override_settings=override, **values)


@pytest.fixture(scope="module")
def before(webui_server: WebUIServer) -> tuple[list[str], list[str], dict[str, object]]:
    """A plain picture, one with layers, and the model after them."""
    folder = webui_server.folder / "models" / "Stable-diffusion"
    if not (second := folder / f"{SECOND}.safetensors").exists():
        second.symlink_to((folder / f"{USUAL}.safetensors").resolve())
    assert webui_server.post("/sdapi/v1/refresh-checkpoints").status == 200
    plain, layers = ask(webui_server).encoded, ask(webui_server, FOREGROUND).encoded
    return plain, layers, webui_server.look_at_model()


@pytest.fixture
def webui(webui_server: WebUIServer, before: tuple[list[str], list[str], dict[str, object]]) -> Iterator[WebUIServer]:
    plain, layers, model = before
    yield webui_server
    assert ask(webui_server).encoded == plain
    assert webui_server.look_at_model() == model
    assert model["left"] == []
    assert ask(webui_server, FOREGROUND).encoded == layers


@pytest.mark.seen("foreground", "checkpoint of another width between requests")
def test_checkpoint_of_another_width(webui: WebUIServer, embedded: WebUIServer, before: Any) -> None:
    own = {**SETTINGS, "prompt": "red apple", "seed": 5}
    images = []
    for _ in range(2):
        images.append(ask(webui, FOREGROUND, CHECKPOINT, **own).images[0])
        check_apple(images[-1])
        assert ask(webui, FOREGROUND).encoded == before[1]
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.seen("foreground", "checkpoint of the same shape between requests")
def test_checkpoint_of_the_same_shape(webui: WebUIServer, before: Any) -> None:
    assert pixels(ask(webui, FOREGROUND, SECOND)) == pixels(ask(webui, FOREGROUND))


@pytest.mark.seen("foreground", "refiner")
@pytest.mark.parametrize("layers", [FOREGROUND, TOGETHER], ids=["foreground", "together"])
def test_refiner_of_the_same_shape(webui: WebUIServer, layers: Any) -> None:
    """Its weights are the same, so that nothing may change."""
    without = pixels(ask(webui, layers, steps=4))
    refined = ask(webui, layers, steps=4, refiner_checkpoint=f"{SECOND}.safetensors", refiner_switch_at=0.5)
    assert pixels(refined) == without


@pytest.mark.seen("foreground", "hires fix with a second checkpoint")
def test_second_pass_with_another_checkpoint(webui: WebUIServer) -> None:
    without = pixels(ask(webui, FOREGROUND, **HIRES))
    assert pixels(ask(webui, FOREGROUND, **HIRES, hr_checkpoint_name=f"{SECOND}.safetensors")) == without


@pytest.mark.seen("foreground", "LoRA on, off and changed between requests")
def test_lora_between_requests(webui: WebUIServer, before: Any) -> None:
    prompts = [f"a red apple <lora:{LORA}:{weight}>" for weight in ("1", "0.5")]
    first = {}
    for prompt in [*prompts, "a red apple", *reversed(prompts), "a red apple"]:
        got = pixels(ask(webui, FOREGROUND, prompt=prompt))
        assert first.setdefault(prompt, got) == got
    assert len(set(map(tuple, first.values()))) == 3
    assert first["a red apple"] == pixels(ask(webui, FOREGROUND))


@pytest.mark.seen("foreground", "prompts with AND")
def test_combined_prompts(webui: WebUIServer) -> None:
    answer = ask(webui, FOREGROUND, prompt="a red apple AND a green leaf :0.5")
    assert answer.images[0].mode == "RGBA"
    refused = ask(webui, TOGETHER, prompt="a red apple AND a green leaf :0.5")
    assert refused.status == 422
    assert "AND" in refused.body["detail"]


@pytest.mark.seen("foreground", "token merging")
def test_token_merging(webui: WebUIServer) -> None:
    without = pixels(ask(webui, FOREGROUND))
    try:
        merged = ask(webui, FOREGROUND, override_settings={"token_merging_ratio": 0.5})
        assert merged.images[0].mode == "RGBA"
        assert pixels(merged) != without
        refused = ask(webui, TOGETHER, override_settings={"token_merging_ratio": 0.5})
        assert refused.status == 422
        assert "token merging" in refused.body["detail"]
    finally:  # AUTOMATIC1111 keeps a setting that it had no value for
        webui.post("/sdapi/v1/options", {"token_merging_ratio": 0})


@pytest.mark.seen("foreground", "interrupted by the API")
def test_interruption_by_the_api(webui: WebUIServer) -> None:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(ask(webui, FOREGROUND, steps=60)))
    thread.start()
    while webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["sampling_step"] < 3:
        assert thread.is_alive()
        time.sleep(0.1)
    assert webui.post("/sdapi/v1/interrupt").status == 200
    thread.join()
    assert [image.mode for image in answers[0].images] == ["RGBA"]


def pixels(answer: Answer) -> list[bytes]:
    """Without the infotexts, which name the checkpoint."""
    return [np.asarray(image).tobytes() for image in answer.images]
