"""The doctor inside a real WebUI, by its route and by the button on the WebUI's settings page."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import opened

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer

PATIENCE = 120  # seconds
REPORT = "#setting_layerdiffusion_report"
CLICK = "document.querySelector(arguments[0]).click()"


def check_report(report: str) -> None:
    """It has the WebUI, the checkpoint, a layer file, and how the last run ended."""
    lines = report.splitlines()
    assert not [line for line in lines if line.startswith("broken")]
    for start in ("WebUI ", "host: ", "checkpoint: SD1.5", "layer_sd15_transparent_attn", "last run "):
        assert any(line.startswith("ok") and line[8:].startswith(start) for line in lines), start
    assert "foreground, weight 1" in lines[-1]
    assert lines[-1].endswith(": ok")


@pytest.mark.seen("any", "doctor, by its route")
def test_route(webui: WebUIServer) -> None:
    assert webui.ask({"mode": "foreground"}).status == 200
    with urllib.request.urlopen(f"{webui.address}/layerdiffusion/v1/doctor", timeout=60) as reply:
        check_report(reply.read().decode())


@pytest.mark.seen("any", "doctor, on the settings page")
def test_button_on_the_settings_page(webui: WebUIServer, tmp_path: Path) -> None:
    assert webui.ask({"mode": "foreground"}).status == 200
    with opened(webui.address, tmp_path, PATIENCE) as page:
        page.wait(lambda: page.find(f"{REPORT}_button"), "the button")
        page.run(CLICK, f"{REPORT}_button")
        box = page.wait(lambda: page.find(f"{REPORT} textarea"), "the box")[0]
        check_report(page.wait(lambda: box.get_attribute("value"), "the report"))
