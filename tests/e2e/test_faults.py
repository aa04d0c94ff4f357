"""Faults on demand in a real WebUI: each answer says what happened, and the next pictures are as if nothing had."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

FOREGROUND = {"mode": "foreground"}
MODES = ["foreground", "together"]


@dataclass(frozen=True)
class Before:
    """Answers before any fault."""

    plain: list[str]
    layers: list[str]
    model: dict[str, Any]


@pytest.fixture(scope="module")
def before(webui_server: WebUIServer) -> Before:
    plain, layers = webui_server.txt2img().encoded, webui_server.txt2img(FOREGROUND).encoded
    return Before(plain, layers, webui_server.look_at_model())


@pytest.fixture
def webui(webui_server: WebUIServer, before: Before) -> Iterator[WebUIServer]:
    yield webui_server
    assert webui_server.look_at_model() == before.model
    assert before.model["left"] == []
    assert webui_server.txt2img().encoded == before.plain
    assert webui_server.txt2img(FOREGROUND).encoded == before.layers


@pytest.mark.seen("any", "nothing left in the model")
def test_nothing_stays_in_the_model(webui: WebUIServer) -> None:
    for mode in MODES:
        assert webui.txt2img({"mode": mode}).status == 200


@pytest.mark.seen("any", "exception while {place}")
@pytest.mark.parametrize("place", ["sampling", "decoding"])
def test_exceptions(webui: WebUIServer, place: str) -> None:
    webui.fail_at(place, "error")
    answer = webui.txt2img({"mode": "together"})
    assert answer.status == 500
    assert "on demand" in str(answer.body)


@pytest.mark.seen("any", "interrupted while {place}")
@pytest.mark.parametrize("place", ["sampling", "decoding"])
@pytest.mark.parametrize("mode", MODES)
def test_interruptions(webui: WebUIServer, place: str, mode: str) -> None:
    webui.fail_at(place, "interrupt")
    answer = webui.txt2img({"mode": mode}, n_iter=2)
    assert answer.images[0].mode == "RGBA"
    assert len(answer.images) == {"foreground": 1, "together": 3}[mode], "the second batch was made all the same"


@pytest.mark.seen("any", "memory short while decoding, {times} times")
@pytest.mark.parametrize("times", [1, 2])
def test_short_memory(webui: WebUIServer, before: Before, times: int) -> None:
    """Tiles and the processor give the same picture; a small one is one tile."""
    webui.fail_at("decoding", "memory", times)
    assert webui.txt2img(FOREGROUND).encoded == before.layers


@pytest.mark.seen("any", "memory short in every way")
def test_no_memory_at_all(webui: WebUIServer) -> None:
    webui.fail_at("decoding", "memory", 3)
    answer = webui.txt2img(FOREGROUND)
    assert answer.status == 422
    assert "enough memory" in answer.body["detail"]


@pytest.mark.seen("any", "two requests at once")
def test_two_requests_at_once(webui: WebUIServer, before: Before) -> None:
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(webui.txt2img, args) for args in (FOREGROUND, None, FOREGROUND)]
    assert [answer.result().encoded for answer in answers] == [before.layers, before.plain, before.layers]


@pytest.mark.seen("any", "UI reloaded")
def test_reloaded_page(webui: WebUIServer) -> None:
    webui.reload()
    assert webui.txt2img(FOREGROUND).images[0].mode == "RGBA"


@pytest.mark.seen("any", "extension disabled and enabled again")
def test_disabled_extension(webui: WebUIServer, before: Before) -> None:
    webui.reload(webui.extension)
    try:
        assert webui.txt2img(FOREGROUND).status == 422
        assert webui.txt2img().encoded == before.plain
    finally:
        webui.reload()
