"""Transparency of pictures that the WebUIs' own page hands over without it, in the tabs that read them as RGB."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..image_file import is_opaque
from .replacing import replace_method

UPLOAD = "img_inpaint_base"  # the tab Inpaint upload
SKETCHES = ("img2img_sketch", "inpaint_sketch")  # where what is drawn has no transparency of its own
KEPT = "layerdiffusion_rgba"  # in an image's `info`: the same image with its transparency; None for a sketch
SKETCHED = (
    "The tabs for sketches hand pictures over without their transparency, so this one was taken as opaque: "
    "use img2img, Inpaint or Inpaint upload for a transparent picture."
)


def watch(component: Any) -> None:
    """Let an image component of these tabs attach what it drops; nothing else of what it hands over changes."""
    elem_id = getattr(component, "elem_id", None)
    if elem_id == UPLOAD or elem_id in SKETCHES:
        replace_method(component, "preprocess", lambda preprocess: _attach_alpha(component, preprocess))


def _attach_alpha(component: Any, preprocess: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def preprocess_and_attach(payload: Any) -> Any:
        made = preprocess(payload)
        if isinstance(made, Image.Image) and made.mode == "RGB":
            same = copy.copy(component)
            same.image_mode = "RGBA"
            whole = type(component).preprocess(same, payload)
            if not is_opaque(whole):
                made.info[KEPT] = whole if component.elem_id == UPLOAD else None
        return made

    return preprocess_and_attach


def give_back_alpha(image: Any) -> Any:
    """An image of a request with the transparency that the page dropped, if it is at hand."""
    return getattr(image, "info", {}).get(KEPT) or image


def is_sketch(image: Any) -> bool:
    """Whether the page dropped an image's transparency for good."""
    return KEPT in getattr(image, "info", {}) and image.info[KEPT] is None
