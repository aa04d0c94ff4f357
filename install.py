"""Run by a WebUI at its start: installs nothing, since WebUIs have what is needed, and says so if one hasn't."""

import importlib.util
import sys

NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "cv2": "opencv-python-headless",
}


def missing_packages() -> list[str]:
    """List the packages that are needed and not there."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


if missing := missing_packages():
    sys.exit(f"LayerDiffusion needs {', '.join(missing)}; install it into this WebUI's Python environment.")
