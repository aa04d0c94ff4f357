"""What all tests share: no network, few threads, and where the embedded model lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

EMBEDDED_FOLDER = Path(__file__).parents[1] / "lib_layerdiffusion" / "embedded" / "model"


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of the embedded model, or of the one that LAYERDIFFUSION_TEST_MODEL names."""
    folder = Path(os.environ.get("LAYERDIFFUSION_TEST_MODEL", EMBEDDED_FOLDER))
    assert (folder / "model_index.json").is_file(), f"no model in {folder}"
    return folder
