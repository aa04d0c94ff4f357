"""What the page calls the choices of options: its components hold these texts, as the WebUIs' file of defaults does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..modes import FAMILIES, MODE_NAMES, MODES, any_row
from ..options import AS_NEEDED, RESIZE_MODES

ADVANCED = "Advanced"
EDGES = "Edges of the transparent image"
WHOLE_JOB = "Sheet and animation of all pictures"
# Modes that are one step of several, or a variant for experts.
EXPERT_MODES = (
    "foreground_to_blend",
    "foreground_blend_to_background",
    "background_to_blend",
    "background_blend_to_foreground",
    "foreground_conv",
)
OUTPUT_LABELS: Mapping[str, str] = {
    "rgba": "Transparent image",
    "background": "Background",
    "blend": "Blend",
    "checker": "Checkerboard preview",
    "over_black": "Preview over black",
    "over_white": "Preview over white",
    "over_image": "Preview over an image",
    "alpha": "Alpha mask",
    "recomposite": "Recomposite",
    "psd": "Photoshop file (.psd)",
    "ora": "OpenRaster file (.ora)",
}


def _name_mode(name: str) -> str:
    families = [mode.family for mode in MODES if mode.name == name]
    text = any_row(name).label
    note = f" \u00b7 {', '.join(FAMILIES[family] for family in families)}" if len(families) < len(FAMILIES) else ""
    return f"{ADVANCED}: {text}{note}" if name in EXPERT_MODES else f"{text}{note}"


LABELS: Mapping[str, Mapping[Any, str]] = {
    "mode": {name: _name_mode(name) for name in MODE_NAMES},
    "resize_mode": RESIZE_MODES,
    "views": {AS_NEEDED: "As needed", 1: "1 (fastest)", 2: "2", 4: "4", 8: "8 (best)"},
    "atlas_form": {"hash": "JSON (Hash)", "array": "JSON (Array)"},
    "animation_format": {"png": "APNG (exact)", "webp": "WebP (smaller)"},
}
SCENE_LABELS: Mapping[str, Mapping[Any, str]] = {  # of the script for scenes
    "first": {"auto": "Automatic", "background": "Background", "foreground": "Foreground"},
    "views": LABELS["views"],
    "resize_mode": LABELS["resize_mode"],
    "outputs": {
        "layers": "Layers",
        "recomposite": "Recomposite",
        "blend": "Blends",
        "psd": OUTPUT_LABELS["psd"],
        "ora": OUTPUT_LABELS["ora"],
    },
}


def to_label(option: str, value: Any, labels: Mapping[str, Mapping[Any, str]] = LABELS) -> Any:
    """What the page shows for an option's value; a value of an option without such labels as it is."""
    return labels.get(option, {}).get(value, value)


def from_label(option: str, shown: Any, labels: Mapping[str, Mapping[Any, str]] = LABELS) -> Any:
    """The option's value for what the page shows; anything else as it is."""
    values = {label: value for value, label in labels.get(option, {}).items()}
    return values.get(shown, shown) if isinstance(shown, str) else shown
