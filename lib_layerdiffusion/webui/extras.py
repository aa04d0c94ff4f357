"""The script of the WebUI's Extras tab that keeps a picture's transparency while upscalers see its colour alone."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from PIL import Image

from ..upscaling import continue_colour, join

logger = logging.getLogger(__name__)

TITLE = "LayerDiffusion transparency"
ALPHA = "layerdiffusion_alpha"  # attribute of the WebUI's picture: alpha uint8 [H, W] as it was before any script


def make_extras() -> type[Any] | None:
    """The script for the WebUI to find; None in a WebUI whose Extras tab has no scripts."""
    try:
        from modules import scripts_postprocessing
    except ImportError:
        return None

    class KeepTransparency(scripts_postprocessing.ScriptPostprocessing):
        """It takes alpha off and continues the colour under it; after all other scripts alpha comes back, scaled."""

        name = TITLE
        order = 1_000_000

        def ui(self) -> dict[str, Any]:
            return {}

        def process_firstpass(self, pp: Any, **args: Any) -> None:
            if pp.image.mode == "RGBA":
                rgba = np.asarray(pp.image)
                if rgba[..., 3].min() < 255:
                    setattr(pp, ALPHA, rgba[..., 3].copy())
                    pp.image = _replace_pixels(pp.image, continue_colour(rgba))

        def process(self, pp: Any, **args: Any) -> None:
            alpha = getattr(pp, ALPHA, None)
            if alpha is None:
                return
            colour = np.asarray(pp.image.convert("RGB"))
            if not is_scaled(alpha.shape, colour.shape[:2]):
                logger.warning(
                    "A script of the Extras tab changed the picture's proportions, so its transparency can't be placed "
                    "and the result is opaque: switch off cropping."
                )
                return
            pp.image = _replace_pixels(pp.image, join(colour, alpha))

    return KeepTransparency


def is_scaled(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a height and width come from another by scaling, but for sides that were rounded to eights."""
    factors = [new / old for old, new in zip(before, after, strict=True)]
    return all(abs(factor * old - new) <= 8 for factor in factors for old, new in zip(before, after, strict=True))


def _replace_pixels(image: Image.Image, pixels: Any) -> Image.Image:
    """A picture of these pixels with the other's texts."""
    new = Image.fromarray(pixels)
    new.info = image.info
    return new
