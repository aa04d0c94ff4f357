"""Another extension with a package of the same name, without an `__init__.py`: both load, whichever comes first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODULES = {
    "enums": "from enum import Enum\nclass Kind(Enum):\n    FOREGROUND = 'theirs'\n",
    "utils": "LOADED = []\nLOADED.append(__file__)\n",
    "models": "from lib_layerdiffusion.enums import Kind\nfrom .utils import LOADED\nWHOSE = Kind.FOREGROUND.value\n",
    "attention_sharing": "from lib_layerdiffusion.models import WHOSE\nimport lib_layerdiffusion.enums as enums\n",
}
THEIRS = """
from lib_layerdiffusion.attention_sharing import WHOSE, enums
from lib_layerdiffusion.enums import Kind
from lib_layerdiffusion import utils

def later():
    from lib_layerdiffusion.models import WHOSE
    from lib_layerdiffusion.enums import Kind as again
    return WHOSE, again is Kind
"""
# Loads scripts as WebUIs do: each with its extension first on sys.path, which is put back afterwards.
HOST = """
import importlib.abc, importlib.machinery, logging, sys, types
from pathlib import Path
from unittest.mock import MagicMock

class Stub(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {}) if name in ("Script", "Api") else MagicMock()
        setattr(self, name, value)
        return value

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] == "modules" else None
    def create_module(self, spec):
        return Stub(spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Finder())
logging.basicConfig(level=logging.WARNING)

def load(script):
    before = sys.path
    sys.path = [str(script.parent.parent), *sys.path]
    try:
        module = types.ModuleType(script.stem)
        module.__file__ = str(script)
        exec(compile(script.read_text("utf-8"), script, "exec"), module.__dict__)
        return module
    finally:
        sys.path = before

OURS, THEIRS = Path(sys.argv[1]), Path(sys.argv[2])
if sys.argv[3] == "Forge":  # it has all extensions on sys.path before it loads the first
    sys.path = [str(OURS.parent.parent), str(THEIRS.parent.parent), *sys.path]
loaded = [load(THEIRS if name == "theirs" else OURS) for name in sys.argv[4:]]
import lib_layerdiffusion
from lib_layerdiffusion import doctor  # loaded by what is open already, or now
root = OURS.resolve().parent.parent
for module in (lib_layerdiffusion, doctor):
    assert Path(module.__file__).resolve().is_relative_to(root), module.__file__
for theirs in [module for module, name in zip(loaded, sys.argv[4:]) if name == "theirs"]:
    assert theirs.WHOSE == "theirs" and theirs.later() == ("theirs", True)
assert len(theirs.utils.LOADED) == 1 and Path(theirs.utils.LOADED[0]).is_relative_to(THEIRS.parent.parent)
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The script of an extension whose package has this one's name and modules of other names."""
    package = tmp_path / "other-extension" / "lib_layerdiffusion"
    package.mkdir(parents=True)
    for name, text in MODULES.items():
        (package / f"{name}.py").write_text(text, "utf-8")
    script = package.parent / "scripts" / "other.py"
    script.parent.mkdir()
    script.write_text(THEIRS, "utf-8")
    return script


@pytest.mark.parametrize("linked", [False, True], ids=["folder", "link"])
@pytest.mark.parametrize("webui", ["A1111", "Forge"])
@pytest.mark.parametrize("order", [("ours", "theirs"), ("theirs", "ours")], ids="-".join)
def test_both_load(theirs: Path, tmp_path: Path, order: tuple[str, ...], webui: str, linked: bool) -> None:
    pytest.importorskip("gradio")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which has the package
    host = tmp_path / "host.py"
    host.write_text(HOST, "utf-8")
    ours = tmp_path / "sd-webui-layerdiffusion" if linked else ROOT
    if linked:
        ours.symlink_to(ROOT, target_is_directory=True)
    twice = (*order, *order)  # the second time by "Reload UI"
    words = [sys.executable, str(host), str(ours / "scripts" / "layerdiffusion.py"), str(theirs), webui, *twice]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    warned = "Another extension has a package lib_layerdiffusion" in done.stderr
    assert warned == (order[0] == "theirs" and webui == "A1111")  # in Forge theirs finds ours, and is found by it
