"""Masks of inpainting: which box is painted, and what is put there to start from."""

from __future__ import annotations

from PIL import Image, ImageFilter, ImageOps

Box = tuple[int, int, int, int]  # left, top, right, bottom


def create_binary_mask(image: Image.Image) -> Image.Image:
    """A mask "L" from an image, or from its alpha if it has some."""
    if image.mode == "RGBA" and image.getextrema()[-1] != (255, 255):
        return image.getchannel("A").point(lambda value: 255 if value > 128 else 0)
    return image.convert("L")


def blur(mask: Image.Image, radius: int) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius > 0 else mask


def find_box(mask: Image.Image, padding: int) -> Box | None:
    """The box of what isn't black, with `padding` around it; None if everything is black."""
    box = mask.getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    width, height = mask.size
    return max(left - padding, 0), max(top - padding, 0), min(right + padding, width), min(bottom + padding, height)


def fit_box(box: Box, size: tuple[int, int], image_size: tuple[int, int]) -> Box:
    """Widen a box to the proportions of the job's size, as far as the image goes."""
    left, top, right, bottom = box
    wanted = size[0] / size[1]
    if (right - left) / (bottom - top) < wanted:
        left, right = _widen(left, right, round((bottom - top) * wanted), image_size[0])
    else:
        top, bottom = _widen(top, bottom, round((right - left) / wanted), image_size[1])
    return left, top, right, bottom


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Replace what is masked by its blurred surroundings."""
    filled = Image.new("RGBA", image.size)
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    for radius in (256, 64, 16, 4, 2, 0):
        filled.alpha_composite(kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return filled.convert("RGB")


def _widen(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    length = min(max(length, high - low), limit)
    low = min(max(low - (length - (high - low)) // 2, 0), limit - length)
    return low, low + length
