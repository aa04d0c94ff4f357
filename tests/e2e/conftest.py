"""The real WebUI that the end-to-end tests talk to, if there is one on this machine."""

from __future__ import annotations

import datetime
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.server import State, WebUIServer

FLAGS = "LAYERDIFFUSION_WEBUI_FLAGS"


@pytest.fixture(scope="session")
def webui_places() -> Iterator[tuple[Path, Path]]:
    """The WebUI's checkout, LAYERDIFFUSION_WEBUI, and its Python, LAYERDIFFUSION_WEBUI_PYTHON.

    While the tests run, the probe is linked into the WebUI's extensions; its name makes it load after this extension.
    """
    from tests.e2e.server import PROBE

    checkout, python = os.environ.get("LAYERDIFFUSION_WEBUI"), os.environ.get("LAYERDIFFUSION_WEBUI_PYTHON")
    if not checkout or not python:
        pytest.skip("set LAYERDIFFUSION_WEBUI to a WebUI's checkout and LAYERDIFFUSION_WEBUI_PYTHON to its Python")
    probe = Path(checkout) / "extensions" / "zz-layerdiffusion-probe"
    probe.unlink(missing_ok=True)  # left by a run that was killed
    probe.symlink_to(PROBE, target_is_directory=True)
    yield Path(checkout), Path(python)
    probe.unlink()


@pytest.fixture(scope="session")
def webui_server(webui_places: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUIServer]:
    """That WebUI, running, with the additional flags in LAYERDIFFUSION_WEBUI_FLAGS.

    The extension has to be in its `extensions` folder; `python -m tests.e2e.seeded_files <checkout>` makes its models.
    """
    from tests.e2e.server import WebUIServer

    flags = os.environ.get(FLAGS, "").split()
    server = WebUIServer(*webui_places, tmp_path_factory.mktemp("webui"), flags)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def before(webui_server: WebUIServer) -> State:
    """Its state before the first test."""
    state = webui_server.observe()
    assert state.model["hooked"] == []
    return state


@pytest.fixture
def webui(webui_server: WebUIServer, before: State, request: pytest.FixtureRequest) -> Iterator[WebUIServer]:
    """That WebUI; after the test its weights, modules and next pictures have to be the same, byte for byte."""
    yield webui_server
    if not request.node.stash.get(SKIPPED, False):
        assert not before.changes(webui_server.observe())


SKIPPED = pytest.StashKey[bool]()  # whether the phase of the test that ended last was skipped
OUTCOMES = pytest.StashKey[dict[tuple[str, str], str]]()  # of the cells of docs/hosts.json that this run has seen


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[SKIPPED] = report.skipped
    if isinstance(item, pytest.Function) and (marker := item.get_closest_marker("seen")):
        values = item.callspec.params if hasattr(item, "callspec") else {}
        mode, path = (text.format(**values) for text in marker.args)
        outcomes = item.config.stash[OUTCOMES]
        if report.failed or (report.when == "call" and report.passed and (mode, path) not in outcomes):
            outcomes[mode, path] = report.outcome
            write_down(mode, path, report.outcome)
    return report


def write_down(mode: str, path: str, outcome: str) -> None:
    """Keep an outcome in the file that LAYERDIFFUSION_HOSTS names, at once: a long run may be cut off."""
    file, checkout = os.environ.get("LAYERDIFFUSION_HOSTS"), os.environ.get("LAYERDIFFUSION_WEBUI")
    if not (file and checkout):
        return
    from tests.e2e.hosts_page import Cell, name_checkout, name_commit, record

    host, host_commit = name_checkout(Path(checkout))
    flags, date = os.environ.get(FLAGS, ""), datetime.date.today().isoformat()
    record(Path(file), Cell(host, host_commit, mode, path, flags, date, name_commit(Path(__file__).parent), outcome))
