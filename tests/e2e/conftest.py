"""The real WebUI that the end-to-end tests talk to, if there is one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.server import WebUIServer


@pytest.fixture(scope="session")
def webui_places() -> tuple[Path, Path]:
    """The WebUI's checkout, which LAYERDIFFUSION_WEBUI names, and its Python, LAYERDIFFUSION_WEBUI_PYTHON."""
    checkout, python = os.environ.get("LAYERDIFFUSION_WEBUI"), os.environ.get("LAYERDIFFUSION_WEBUI_PYTHON")
    if not checkout or not python:
        pytest.skip("LAYERDIFFUSION_WEBUI and LAYERDIFFUSION_WEBUI_PYTHON name no WebUI")
    return Path(checkout), Path(python)


@pytest.fixture(scope="session")
def webui_server(webui_places: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUIServer]:
    """That WebUI, running.

    The extension has to be in its `extensions` folder; `python -m tests.e2e.seeded_files <checkout>` makes its models.
    """
    from tests.e2e.server import WebUIServer

    server = WebUIServer(*webui_places, tmp_path_factory.mktemp("webui"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()
