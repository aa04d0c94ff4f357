"""What users change between and within requests to a real WebUI; afterwards everything is unchanged."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest

from tests.e2e.server import CHECKPOINTS, HIRES, LORA, Answer, read
from tests.e2e.test_embedded_checkpoint import CHECKPOINT, SETTINGS, check_apple, embedded

if TYPE_CHECKING:
    from tests.e2e.server import State, WebUIServer

__all__ = ["embedded"]  # a fixture

FOREGROUND, TOGETHER = {"mode": "foreground"}, {"mode": "together"}
SECOND = "layerdiffusion-seeded-second"  # the same weights under another name


@pytest.fixture(scope="module", autouse=True)
def second_checkpoint(webui_server: WebUIServer) -> None:
    folder = webui_server.folder / "models" / "Stable-diffusion"
    if not (second := folder / f"{SECOND}.safetensors").exists():
        second.symlink_to((folder / f"{CHECKPOINTS['sd15']}.safetensors").resolve())
    assert webui_server.post("/sdapi/v1/refresh-checkpoints").status == 200


@pytest.mark.seen("foreground", "checkpoint of another width between requests")
def test_checkpoint_of_another_width(webui: WebUIServer, embedded: WebUIServer, before: State) -> None:
    own = {**SETTINGS, "prompt": "red apple", "seed": 5}
    images = []
    for _ in range(2):
        images.append(webui.ask(FOREGROUND, CHECKPOINT, **own).images[0])
        check_apple(images[-1])
        assert webui.ask(FOREGROUND).encoded == before.layers
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.seen("foreground", "checkpoint of the same shape between requests")
def test_checkpoint_of_the_same_shape(webui: WebUIServer) -> None:
    assert pixels(webui.ask(FOREGROUND, SECOND)) == pixels(webui.ask(FOREGROUND))


@pytest.mark.seen("foreground", "checkpoint switched while requests are queued")
def test_checkpoint_switched_while_requests_are_queued(webui: WebUIServer, before: State) -> None:
    with ThreadPoolExecutor() as pool:
        names = (CHECKPOINTS["sd15"], SECOND, CHECKPOINTS["sd15"])
        answers = [pool.submit(webui.ask, FOREGROUND, name) for name in names]
    expected = [np.asarray(read(text)).tobytes() for text in before.layers]
    assert [pixels(answer.result()) for answer in answers] == [expected] * len(names)


@pytest.mark.seen("foreground", "refiner")
@pytest.mark.parametrize("layers", [FOREGROUND, TOGETHER], ids=["foreground", "together"])
def test_refiner_of_the_same_shape(webui: WebUIServer, layers: Any) -> None:
    """Its weights are the same, so nothing may change."""
    without = pixels(webui.ask(layers, steps=4))
    refined = webui.ask(layers, steps=4, refiner_checkpoint=f"{SECOND}.safetensors", refiner_switch_at=0.5)
    assert pixels(refined) == without


@pytest.mark.seen("foreground", "hires fix with a second checkpoint")
def test_second_pass_with_another_checkpoint(webui: WebUIServer) -> None:
    second_pass = HIRES | {"hr_upscaler": "Latent" if "Latent" in webui.upscalers else "None"}
    without = pixels(webui.ask(FOREGROUND, **second_pass))
    assert pixels(webui.ask(FOREGROUND, **second_pass, hr_checkpoint_name=f"{SECOND}.safetensors")) == without


@pytest.mark.seen("foreground", "LoRA on, off and changed between requests")
def test_lora_between_requests(webui: WebUIServer) -> None:
    prompts = [f"a red apple <lora:{LORA}:{weight}>" for weight in ("1", "0.5")]
    first = {}
    for prompt in [*prompts, "a red apple", *reversed(prompts), "a red apple"]:
        got = pixels(webui.ask(FOREGROUND, prompt=prompt))
        assert first.setdefault(prompt, got) == got
    assert len(set(map(tuple, first.values()))) == 3
    assert first["a red apple"] == pixels(webui.ask(FOREGROUND))


@pytest.mark.seen("any", "LoRA and patches compared with merged weights")
def test_lora_and_patches_equal_merged_weights(webui: WebUIServer) -> None:
    """The WebUI's own LoRA (attention and convolutions) and side paths, in one call of its UNet."""
    webui.post("/layerdiffusion-probe/capture")
    assert webui.ask(prompt=f"a red apple <lora:{LORA}:1>", steps=1).status == 200
    assert webui.ask(steps=1).status == 200  # removes the LoRA again
    file = webui.folder / "models" / "Lora" / f"{LORA}.safetensors"
    answer = webui.post(f"/layerdiffusion-probe/compare?lora={quote(str(file))}")
    assert answer.status == 200, answer.body
    differences = answer.body
    assert differences["lora"] < 1e-3
    assert differences["lora and patches"] < 1e-3
    assert differences["effect of the lora"] > 0.01
    assert differences["effect of the patches"] > 0.01


@pytest.mark.seen("foreground", "prompts with AND")
def test_combined_prompts(webui: WebUIServer) -> None:
    answer = webui.ask(FOREGROUND, prompt="a red apple AND a green leaf :0.5")
    assert answer.images[0].mode == "RGBA"
    refused = webui.ask(TOGETHER, prompt="a red apple AND a green leaf :0.5")
    assert refused.status == 422
    assert "AND" in refused.body["detail"]


@pytest.mark.seen("foreground", "token merging")
def test_token_merging(webui: WebUIServer) -> None:
    without = pixels(webui.ask(FOREGROUND))
    try:
        merged = webui.ask(FOREGROUND, override_settings={"token_merging_ratio": 0.5})
        assert merged.images[0].mode == "RGBA"
        assert pixels(merged) != without
        refused = webui.ask(TOGETHER, override_settings={"token_merging_ratio": 0.5})
        assert refused.status == 422
        assert "token merging" in refused.body["detail"]
    finally:  # AUTOMATIC1111 keeps a setting that had no value before
        webui.ask(override_settings={"token_merging_ratio": 0})


@pytest.mark.seen("foreground", "interrupted by the API")
def test_interruption_by_the_api(webui: WebUIServer) -> None:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(webui.ask(FOREGROUND, steps=60)))
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
