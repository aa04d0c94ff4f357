"""A package of the reference extension's shape next to this one in a real WebUI: both load, and both work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.server import WebUIServer

# Its folder has no `__init__.py`, and it has modules that this project's package of the same name hasn't.
FILES = {
    "lib_layerdiffusion/enums.py": "from enum import Enum\n\n\nclass Method(Enum):\n    ATTENTION = 'theirs'\n",
    "lib_layerdiffusion/utils.py": "from lib_layerdiffusion.enums import Method\n\nMETHOD = Method.ATTENTION.value\n",
    "scripts/forge_layerdiffusion_shape.py": """
from modules import scripts
from lib_layerdiffusion.enums import Method
from lib_layerdiffusion.utils import METHOD


class Shape(scripts.Script):
    def title(self):
        return "Shape of the reference"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return []  # None, as without this method, keeps a script off the API's list

    def process(self, p, *args):
        from lib_layerdiffusion.enums import Method as imported_late
        p.extra_generation_params["Shape"] = f"{METHOD} {imported_late is Method}"
""",
}


@pytest.mark.seen("foreground", "other extension: one with the same package")
@pytest.mark.parametrize("folder", ["sd-forge-layerdiffuse", "zz-forge-layerdiffuse"], ids=["first", "second"])
def test_both_extensions_work(webui_places: tuple[Path, Path], tmp_path: Path, folder: str) -> None:
    """Extensions are loaded in the order of their names."""
    checkout, python = webui_places
    place = checkout / "extensions" / folder
    if place.exists() and not (place / "scripts" / "forge_layerdiffusion_shape.py").exists():
        pytest.skip(f"{folder} is installed")
    for name, text in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, "utf-8")
    webui = WebUIServer(checkout, python, tmp_path)
    try:
        webui.wait()
        assert {"layerdiffuse", "shape of the reference"} <= set(webui.get("/sdapi/v1/scripts")["txt2img"])
        answer = webui.ask({"mode": "foreground"})
        assert [image.mode for image in answer.images] == ["RGBA"]
        assert answer.info["extra_generation_params"]["Shape"] == "theirs True"
        assert "No module named 'lib_layerdiffusion" not in webui.read_log()
    finally:
        webui.stop()
        shutil.rmtree(place)
