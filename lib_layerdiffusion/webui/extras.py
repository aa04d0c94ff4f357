"""The scripts of the WebUI's Extras tab that keep a picture's transparency while upscalers see its colour alone.

The tab's scripts run in order: first those that paint pixels anew (upscalers, faces), then those that cut the picture
or copy it. Notes on a picture are missing from its copies. So our first script takes alpha off before all others and,
after the painters, binds it to the picture, so that it is cut and mirrored with it. Our second script is the very last
one and makes each picture transparent again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ..layers import Bytes
from ..upscaling import continue_colour, join

logger = logging.getLogger(__name__)

TITLE = "LayerDiffusion transparency"
ALPHA = (
    "layerdiffusion_alpha"  # attribute of the WebUI's picture: alpha uint8 [H, W], scaled once the painters are done
)
HAD_ALPHA = "layerdiffusion_had_alpha"  # attribute of what a picture shares with its copies
AFTER_PAINTERS = 3900  # CodeFormer has 3000, and the first script that cuts 4000
LAST = 1_000_000
LOST = (
    "A script of the Extras tab changed the picture's proportions or made a copy, so its transparency can't be placed "
    "and is lost: switch off cropping, or let that script run after the upscalers."
)


def make_extras() -> tuple[type[Any] | None, type[Any] | None]:
    """The scripts for the WebUI to find; None in a WebUI whose Extras tab has no scripts."""
    try:
        from modules import scripts_postprocessing
    except ImportError:
        return None, None

    class KeepTransparency(scripts_postprocessing.ScriptPostprocessing):
        """It takes alpha off and continues the colour under it; later it binds the two, alpha scaled."""

        name = TITLE
        order = AFTER_PAINTERS

        def ui(self) -> dict[str, Any]:
            return {}

        def process_firstpass(self, pp: Any, **args: Any) -> None:
            if pp.image.mode == "RGBA":
                rgba = np.asarray(pp.image)
                if rgba[..., 3].min() < 255:
                    setattr(pp, ALPHA, rgba[..., 3].copy())
                    setattr(pp.shared, HAD_ALPHA, True)
                    pp.image = _replace_pixels(pp.image, continue_colour(rgba))

        def process(self, pp: Any, **args: Any) -> None:
            rgba = _put_back(pp)
            if rgba is not None:
                setattr(pp, ALPHA, rgba[..., 3])
                pp.image = _bind(_replace_pixels(pp.image, rgba[..., :3]), Image.fromarray(rgba[..., 3]))

    class GiveTransparency(scripts_postprocessing.ScriptPostprocessing):
        """It makes pictures and their copies transparent again."""

        name = f"{TITLE}, last"
        order = LAST

        def ui(self) -> dict[str, Any]:
            return {}

        def process(self, pp: Any, **args: Any) -> None:
            if not getattr(getattr(pp, "shared", None), HAD_ALPHA, False):
                return
            rgba = _put_back(pp)
            if rgba is None:
                logger.warning(LOST)
                pp.info[TITLE] = LOST  # the page shows this under the picture
            else:
                pp.image = _replace_pixels(pp.image, rgba)

    return KeepTransparency, GiveTransparency


def is_scaled(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a height and width come from another by scaling, but for sides that were rounded to eights."""
    factors = [new / old for old, new in zip(before, after, strict=True)]
    return all(abs(factor * old - new) <= 8 for factor in factors for old, new in zip(before, after, strict=True))


def _along(method: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """Make a method that does to a bound alpha what it does to the picture."""

    def change(self: BoundImage, *args: Any, **settings: Any) -> Image.Image:
        changed = method(self, *args, **settings)
        return changed if self.alpha is None else _bind(changed, method(self.alpha, *args, **settings))

    return change


class BoundImage(Image.Image):
    """An RGB picture whose alpha is cut, mirrored and scaled with it, and unseen by all else."""

    alpha: Image.Image | None = None  # it stays so in a copy by Python's own means

    copy = _along(Image.Image.copy)
    crop = _along(Image.Image.crop)
    resize = _along(Image.Image.resize)
    transpose = _along(Image.Image.transpose)


def _bind(image: Image.Image, alpha: Image.Image) -> BoundImage:
    bound = BoundImage()
    vars(bound).update(vars(image))
    bound.alpha = alpha
    return bound


def _put_back(pp: Any) -> Bytes | None:
    """Straight RGBA [H, W, 4] uint8 of the WebUI's picture with its own alpha, times one that a script made since.

    None when its own alpha isn't known or doesn't fit.
    """
    bound = getattr(pp.image, "alpha", None)
    alpha: Bytes | None = getattr(pp, ALPHA, None) if bound is None else np.asarray(bound)
    if alpha is None or not is_scaled(alpha.shape, pp.image.size[::-1]):
        return None
    rgba = join(np.asarray(pp.image.convert("RGB")), alpha)
    if "A" in pp.image.getbands():
        made = np.asarray(pp.image.getchannel("A"), np.float32)
        rgba[..., 3] = np.rint(rgba[..., 3] * (made / 255))
    return rgba


def _replace_pixels(image: Image.Image, pixels: Any) -> Image.Image:
    """A picture of these pixels with the other's texts."""
    new = Image.fromarray(pixels)
    new.info = image.info
    return new
