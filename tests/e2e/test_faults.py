"""Provoked faults in a real WebUI: each answer says what happened, and the next pictures are unchanged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.server import State, WebUIServer

FOREGROUND = {"mode": "foreground"}
MODES = ["foreground", "together"]


@pytest.mark.seen("any", "no hook remains on any module")
def test_no_hook_remains_on_any_module(webui: WebUIServer) -> None:
    for mode in MODES:
        assert webui.ask({"mode": mode}).status == 200


@pytest.mark.seen("any", "exception while {place}")
@pytest.mark.parametrize("place", ["sampling", "decoding"])
def test_exceptions(webui: WebUIServer, place: str) -> None:
    webui.fail_at(place, "error")
    answer = webui.ask({"mode": "together"})
    assert answer.status == 500
    assert "on demand" in str(answer.body)


@pytest.mark.seen("any", "interrupted while {place}")
@pytest.mark.parametrize("place", ["sampling", "decoding"])
@pytest.mark.parametrize("mode", MODES)
def test_interruptions(webui: WebUIServer, place: str, mode: str) -> None:
    webui.fail_at(place, "interrupt")
    answer = webui.ask({"mode": mode}, n_iter=2)
    assert answer.images[0].mode == "RGBA"
    assert len(answer.images) == {"foreground": 1, "together": 3}[mode], (
        "the second batch was generated despite the interruption"
    )


@pytest.mark.seen("any", "out of memory while decoding, {often}")
@pytest.mark.parametrize(("often", "times"), [("once", 1), ("twice", 2)])
def test_out_of_memory(webui: WebUIServer, before: State, often: str, times: int) -> None:
    """Tiles and the processor give the same picture; a small one is one tile."""
    webui.fail_at("decoding", "memory", times)
    assert webui.ask(FOREGROUND).encoded == before.layers


@pytest.mark.seen("any", "out of memory in every way of decoding")
def test_out_of_memory_in_every_way(webui: WebUIServer) -> None:
    webui.fail_at("decoding", "memory", 3)
    answer = webui.ask(FOREGROUND)
    assert answer.status == 422
    assert "enough memory" in answer.body["detail"]


@pytest.mark.seen("any", "two requests at once")
def test_two_requests_at_once(webui: WebUIServer, before: State) -> None:
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(webui.ask, args) for args in (FOREGROUND, None, FOREGROUND)]
    assert [answer.result().encoded for answer in answers] == [before.layers, before.plain, before.layers]


@pytest.mark.seen("any", "UI reloaded")
def test_reloaded_page(webui: WebUIServer) -> None:
    webui.reload()
    assert webui.ask(FOREGROUND).images[0].mode == "RGBA"


@pytest.mark.seen("any", "extension disabled and enabled again")
def test_disabled_extension(webui: WebUIServer, before: State) -> None:
    webui.reload(webui.extension)
    try:
        assert webui.ask(FOREGROUND).status == 422
        assert webui.ask().encoded == before.plain
    finally:
        webui.reload()
