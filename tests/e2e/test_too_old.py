"""A real AUTOMATIC1111 before 1.10, which has no hook at the sampler: one sentence, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_layerdiffusion.hosts import HOOK
from tests.e2e.server import WebUIServer, is_forge


@pytest.mark.seen("any", "refused as too old")
def test_one_sentence(webui_places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, python = webui_places
    if is_forge(folder) or HOOK in (folder / "modules/scripts.py").read_text("utf-8"):
        pytest.skip("this WebUI isn't too old")
    webui = WebUIServer(folder, python, tmp_path)
    try:
        webui.wait()
        plain = webui.ask().encoded
        answer = webui.ask({"mode": "foreground"})
        assert answer.status == 422
        assert "update AUTOMATIC1111 to 1.10" in answer.body["detail"]
        assert webui.ask().encoded == plain
        assert webui.look_at_model()["hooked"] == []
    finally:
        webui.stop()
