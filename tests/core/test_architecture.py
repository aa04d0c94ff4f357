"""The layers that pyproject.toml names: every module of the package is in one, so that the linter sees all imports."""

from __future__ import annotations

import pkgutil
import re
import sys
from pathlib import Path

import pytest

import lib_layerdiffusion

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_module_is_in_exactly_one_layer():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = pytest.importorskip("tomli")
    contracts = tomllib.loads(PROJECT.read_text(encoding="utf8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = [module for layer in layers for module in re.split(r"[|:]", layer.replace(" ", ""))]
    assert sorted(named) == sorted(module.name for module in pkgutil.iter_modules(lib_layerdiffusion.__path__))
