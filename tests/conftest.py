"""What all tests share: no network, few threads, and where the embedded model lies."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores, so each one and what it starts takes one
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

EMBEDDED_FOLDER = Path(__file__).parents[1] / "lib_layerdiffusion" / "embedded" / "model"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Write lone surrogates in what a test logged as escapes: the processes hand their reports over as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of the embedded model, or of the one that LAYERDIFFUSION_TEST_MODEL names."""
    folder = Path(os.environ.get("LAYERDIFFUSION_TEST_MODEL", EMBEDDED_FOLDER))
    assert (folder / "model_index.json").is_file(), f"no model in {folder}"
    return folder
