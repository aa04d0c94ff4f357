"""A package for Node that a test reads the project's files with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def install(package: str, script: str, folder: Path) -> Path:
    """Install a package in `folder`, from npm's own cache, since tests fetch nothing; the path of `script` beside it.

    Skips the test where Node or the package isn't at hand.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    words = ["install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), package]
    if subprocess.run([npm, *words], capture_output=True).returncode:
        pytest.skip(f"needs {package} in npm's cache: `npm install --prefix SOME_EMPTY_FOLDER {package}` puts it there")
    path = folder / "read.mjs"
    path.write_text(script)
    return path
