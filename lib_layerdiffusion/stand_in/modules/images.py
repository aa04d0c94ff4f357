"""Images on their way in and out: resizing, grids, and saving with the infotext inside."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import shared
from .script_callbacks import ImageGridLoopParams, ImageSaveParams, call

EXIF_IFD, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"
LANCZOS = Image.Resampling.LANCZOS
TECHNICAL = ("exif", "dpi", "jfif", "jfif_version", "jfif_unit", "jfif_density", "transparency", "icc_profile")


def resize_image(
    resize_mode: int, im: Image.Image, width: int, height: int, upscaler_name: str | None = None
) -> Image.Image:
    """0 stretch, 1 crop, 2 fill; an image with alpha loses it."""
    im = im.convert("RGB") if im.mode == "RGBA" else im
    resample = Image.Resampling.NEAREST if upscaler_name == "Nearest" else LANCZOS
    if resize_mode in (0, 3):
        return im.resize((width, height), resample)
    choose = max if resize_mode == 1 else min
    scale = choose(width / im.width, height / im.height)
    resized = im.resize((max(round(im.width * scale), 1), max(round(im.height * scale), 1)), resample)
    result = im.resize((width, height), resample) if resize_mode == 2 else Image.new(im.mode, (width, height))
    result.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
    return result


def flatten(image: Image.Image, background: str) -> Image.Image:
    """RGB, with a colour where the image is transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    flat = Image.new("RGBA", image.size, background)
    flat.alpha_composite(image)
    return flat.convert("RGB")


def apply_overlay(image: Image.Image, paste_to: Any, overlay: Image.Image | None) -> Image.Image:
    """Put what inpainting painted back into its place, and the unmasked original over it."""
    if overlay is None:
        return image
    if paste_to is not None:
        x, y, width, height = paste_to
        whole = Image.new("RGBA", overlay.size)
        whole.paste(resize_image(1, image, width, height), (x, y))
        image = whole
    image = image.convert("RGBA")
    image.alpha_composite(overlay)
    return image.convert("RGB")


def image_grid(imgs: Sequence[Image.Image], batch_size: int = 1, rows: int | None = None) -> Image.Image:
    """All images on one, without alpha."""
    rows = min(rows or round(math.sqrt(len(imgs))), len(imgs))
    params = ImageGridLoopParams(imgs, math.ceil(len(imgs) / rows), rows)
    call("image_grid", params)
    width, height = max(image.width for image in imgs), max(image.height for image in imgs)
    grid = Image.new("RGB", (params.cols * width, params.rows * height), "black")
    for index, image in enumerate(params.imgs):
        grid.paste(image, (index % params.cols * width, index // params.cols * height))
    return grid


def save_image(
    image: Image.Image,
    path: str | None,
    basename: str,
    seed: Any = None,
    prompt: str | None = None,
    extension: str = "png",
    info: str | None = None,
    short_filename: bool = False,
    no_prompt: bool = False,
    grid: bool = False,
    pnginfo_section_name: str = "parameters",
    p: Any = None,
    existing_info: dict[str, Any] | None = None,
    forced_filename: str | None = None,
    suffix: str = "",
    save_to_dirs: bool | None = None,
) -> tuple[str, str | None]:
    """Save under the next free number; the path is also put on the image as `already_saved_as`."""
    folder = Path(path or "outputs")
    folder.mkdir(parents=True, exist_ok=True)
    stem = forced_filename or _name(folder, basename, seed, "" if short_filename else prompt)
    pnginfo = dict(existing_info or {})
    if info is not None:
        pnginfo[pnginfo_section_name] = info
    params = ImageSaveParams(image, p, str(folder / f"{stem}{suffix}.{extension}"), pnginfo)
    if shared.opts.enable_pnginfo:
        hide_infotext(params)
    call("before_image_saved", params)
    target = Path(params.filename)
    partial = target.with_suffix(".tmp")
    save_image_with_geninfo(params.image, params.pnginfo.get(pnginfo_section_name), str(partial), target.suffix)
    partial.replace(target)
    params.image.already_saved_as = str(target)
    call("image_saved", params)
    return str(target), None


def save_image_with_geninfo(
    image: Image.Image, geninfo: str | None, filename: str, extension: str | None = None
) -> None:
    """Write a file; only PNG keeps alpha."""
    extension = (extension or Path(filename).suffix).lower()
    image_format = Image.registered_extensions()[extension]
    text = geninfo if shared.opts.enable_pnginfo else None
    if extension == ".png":
        info = PngInfo()
        if text:
            info.add_text("parameters", text)
        image.save(filename, format=image_format, pnginfo=info)
    else:
        flat = image.convert("RGB")
        exif = make_exif(text).tobytes() if text else b""
        flat.save(filename, format=image_format, quality=shared.opts.jpeg_quality, exif=exif)


def make_exif(text: str) -> Image.Exif:
    """An infotext as formats other than PNG carry it."""
    exif = Image.Exif()
    exif[EXIF_IFD] = {USER_COMMENT: UNICODE + text.encode("utf-16-be")}
    return exif


def read_info_from_image(image: Image.Image) -> tuple[str | None, dict[str, Any]]:
    """The infotext of an image, and what else its file says."""
    items = {name: value for name, value in image.info.items() if name not in TECHNICAL}
    text = items.pop("parameters", None)
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if text is None and isinstance(comment, bytes) and comment.startswith(UNICODE):
        text = comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace")
    return text, items


def hide_infotext(params: ImageSaveParams) -> None:
    """What Forge does at its default setting: the image is made opaque, in place, to hold the text in its alpha."""
    if not shared.traits.stealth_infotext or not params.filename.endswith(".png"):
        return
    match shared.opts.data.get("stealth_pnginfo_option", "Alpha"):
        case "Alpha":
            params.image.putalpha(255)
            bits = "".join(f"{byte:08b}" for byte in params.pnginfo.get("parameters", "").encode())
            alpha = [255 - (bit == "0") for bit in bits[: params.image.width * params.image.height]]
            channel = params.image.getchannel("A")
            channel.putdata(alpha)
            params.image.putalpha(channel)
        case "RGB":
            _r, _g, _b = params.image.getpixel((0, 0))  # an image with alpha raises here, as it does there
        case _:
            pass


def _name(folder: Path, basename: str, seed: Any, prompt: str | None) -> str:
    """[basename-]number[-seed-words of the prompt]."""
    start = f"{basename}-" if basename else ""
    numbers = [re.match(rf"{re.escape(start)}(\d+)", path.name) for path in folder.iterdir()]
    number = 1 + max((int(match[1]) for match in numbers if match), default=-1)
    words = re.sub(r"[^\w ,.()-]", "_", prompt or "")[:80].strip()
    parts = [f"{start}{number:05}", "" if seed is None else str(seed), words]
    return "-".join(part for part in parts if part)
