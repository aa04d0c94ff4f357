"""What a generation hands back: transparent images that follow the WebUI's pictures, previews, files, API answers."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..export import png
from ..image_file import has_transparency, is_opaque
from ..infotext import PREFIX, mark_preview
from ..layers import Layer, LayerStack, composite, fit, paint
from ..modes import Role
from ..options import OUTPUTS, LayerOptions
from ..outputs import WRITERS, arrange, make_previews, name_layer, write_files
from ..planning import SIZE_STEP, Plan
from ..refusal import Refusal

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

CHECKER = "checker"
OPAQUE, EMPTY = 250, 5  # a pixel counts as opaque from that alpha on, and as empty up to that
SHARE = 0.995  # of the pixels, from which on the whole image counts as that


class Batch:
    """The decoded layers of one batch, by the image's place in it."""

    def __init__(self, plan: Plan, sets: Sequence[Mapping[Role, Pixels]], pixels: Tensor) -> None:
        self.plan = plan
        self._seen = [_as_saved(image) for image in pixels]
        self._layers = [frames[role] for frames in sets for role in plan.frames]

    def judge(self) -> Iterator[str]:
        """Name the likely cause, and what to do, for each transparent image that came out opaque or empty."""
        for index, image in enumerate(self._layers):
            if not self._is_transparent(index):
                continue
            if (image[..., 3] >= OPAQUE).mean() > SHARE:
                yield (
                    "The transparent image is practically opaque: prompt for one object without surroundings, and use "
                    "a checkpoint of the layer file's family, weight 1, start at 0, stop at 1 and 20 steps or more "
                    "(some checkpoints, such as Illustrious, don't draw the neutral grey surroundings it needs)."
                )
            elif (image[..., 3] <= EMPTY).mean() > SHARE:
                yield (
                    "The transparent image is practically empty: name an object in the prompt, lower the weight to 1 "
                    "and use CFG 3 or more."
                )

    def finish(self, index: int, picture: Image.Image) -> Image.Image:
        """The layer of an image of the batch with what others changed in the WebUI's picture since it was decoded."""
        layer = self._layers[index]
        if not self._is_transparent(index):
            return picture.crop((0, 0, *self.plan.size)) if picture.size == self._sampled(index) else picture
        return Image.fromarray(self._follow(index, picture, layer))

    def finish_masked(
        self, index: int, picture: Image.Image, start: Pixels, mask: Image.Image, box: tuple[int, int, int, int] | None
    ) -> Image.Image:
        """The layer painted into the image that it started from, by the share that the mask gives it.

        What isn't masked keeps its bytes. box: x, y, width and height of the part that was sampled; None for all.
        """
        if not self._is_transparent(index):
            return picture
        layer = self._layers[index]
        height, width = start.shape[:2]
        placed, share = start.copy(), _read_share(mask, (width, height))
        left, top, wide, high = box or (0, 0, width, height)
        fitted = fit(layer, (wide, high), "stretch")[: height - top, : width - left]
        placed[top : top + high, left : left + wide] = fitted
        return Image.fromarray(paint(start, placed, share))

    def _follow(self, index: int, picture: Image.Image, layer: Pixels) -> Pixels:
        now = np.asarray(picture.convert("RGB"))
        seen = self._seen[index]
        if now.shape == seen.shape and np.array_equal(now, seen):
            return layer
        if now.shape == seen.shape:
            width, height = self.plan.size
            now, seen = now[:height, :width], seen[:height, :width]
        size = now.shape[1::-1]
        layer, seen = fit(layer, size, "stretch"), fit(seen, size, "stretch")
        colour = layer[..., :3].astype(np.int16) + now - seen
        return np.dstack([colour.clip(0, 255).astype(np.uint8), layer[..., 3]])

    def _is_transparent(self, index: int) -> bool:
        return index % len(self.plan.frames) == self.plan.mode.transparent_frame

    def _sampled(self, index: int) -> tuple[int, int]:
        return self._seen[index].shape[1], self._seen[index].shape[0]


@dataclass
class LayerSet:
    """The finished images of one set, by role."""

    plan: Plan
    given: Mapping[Role, Pixels]  # images that the mode started from
    images: dict[Role, Image.Image] = field(default_factory=dict)
    is_complete: bool = True  # the user let all of it be sampled

    def stack(self, infotext: str) -> LayerStack:
        """What files and the recomposite hold."""
        size = next(iter(self.images.values())).size
        made = {role: np.asarray(image.convert("RGBA")) for role, image in self.images.items()}
        given = {role: fit(image, size, "stretch") for role, image in self.given.items()}
        return arrange(made, given, size, infotext)

    @property
    def transparent(self) -> Pixels | None:
        """The transparent layer, if the mode makes one and nothing made it opaque."""
        image = self.images.get("foreground")
        return np.asarray(image) if image is not None and image.mode == "RGBA" else None


def on_grey(rgba: Pixels) -> Pixels:
    """Composite on mid-grey, the surroundings that the layer files know: uint8 [H, W, 3]."""
    return composite([Layer("start", rgba, "foreground")], (128, 128, 128))[..., :3]


def deliver(
    sets: Sequence[LayerSet],
    options: LayerOptions,
    processed: Any,
    with_previews: bool = True,
    save_previews: bool = False,
    behind: Pixels | None = None,
) -> list[str]:
    """Put the wanted outputs into the WebUI's answer: layers first, then previews, all of a kind one after the other.

    Files, and with `save_previews` the previews, are written next to the saved layers and under their names. behind:
    the image for "over_image", RGBA of any size. Returns a sentence for each file that couldn't be written.
    """
    _attach_again(sets, processed)
    texts = {id(image): text for image, text in zip(processed.images, processed.infotexts, strict=False)}
    previews: list[tuple[str, Image.Image, str]] = []
    failed: list[str] = []
    for each in sets:
        first = next(iter(each.images.values()))
        text = texts.get(id(first), processed.info)
        stack, outputs = each.stack(text), options.outputs if with_previews else ()
        fitted = None if behind is None else fit(behind, first.size, options.resize_mode)
        for name, preview in make_previews(stack, each.transparent, outputs, fitted):
            shown, marked = Image.fromarray(preview), mark_preview(text, name)
            previews.append((name, shown, marked))
            if save_previews:
                failed += _save_preview(name, shown, marked, first)
        failed += _write_files(stack, options.outputs, first)
    previews.sort(key=lambda preview: OUTPUTS.index(preview[0]))
    _leave_out(sets, options.outputs, processed)
    missing = len(processed.images) - len(processed.infotexts)
    processed.infotexts += [processed.info] * max(0, missing) + [text for _, _, text in previews]
    for _, image, text in previews:
        image.info["parameters"] = text
        processed.images.append(image)
    return list(dict.fromkeys(failed))


def keep_alpha_in_file(params: Any) -> None:
    """Where a WebUI is about to save a transparent picture of ours in a format without alpha, let it be a PNG.

    params: a WebUI's ImageSaveParams, such as for the Save button.
    """
    path = Path(params.filename)
    text = str((params.pnginfo or {}).get("parameters") or "")
    if path.suffix.lower() == ".png" or f"{PREFIX}mode: " not in text or is_opaque(params.image):
        return
    params.filename = str(path.with_suffix(".png"))
    logger.warning("%s is saved as PNG, since %s has no transparency.", path.stem, path.suffix)


def put_on_background(image: Any, background: str) -> Any:
    """An image as a grid, which has no alpha, shows it: over "checker" or a colour; an opaque one as it is."""
    if not isinstance(image, Image.Image) or not has_transparency(image):
        return image
    layer = Layer("image", np.asarray(image.convert("RGBA")), "foreground")
    try:
        flat = composite([layer], background.strip().casefold() or CHECKER)
    except (Refusal, ValueError):
        logger.warning("Grids can't have the background %r: set it to checker, or to a colour", background)
        flat = composite([layer], CHECKER)
    return Image.fromarray(flat[..., :3])


def _attach_again(sets: Sequence[LayerSet], processed: Any) -> None:
    """Where another extension replaced a transparent picture by an opaque one, give that the lost alpha."""
    made = [(each, role) for each in sets for role in each.images]
    first, present = processed.index_of_first_image, {id(image) for image in processed.images}
    if len(processed.images) - first < len(made):
        return
    for index, (each, role) in enumerate(made, start=first):
        image, other = each.images[role], processed.images[index]
        if id(image) in present or image.mode != "RGBA":
            continue
        if isinstance(other, Image.Image) and other.mode != "RGBA":
            attached = other.convert("RGB")
            attached.putalpha(image.getchannel("A").resize(other.size, Image.Resampling.LANCZOS))
            attached.info = dict(other.info)
            processed.images[index] = each.images[role] = attached


def _write_files(stack: LayerStack, outputs: Sequence[str], saved: Image.Image) -> list[str]:
    """Layered files next to the saved image, under its name; a sentence for each that couldn't be written."""
    path = getattr(saved, "already_saved_as", None)
    if path:
        return write_files(stack, outputs, Path(path))
    names = " or ".join(name.upper() for name in WRITERS if name in outputs)
    if not names:
        return []
    return [why_no_file(names)]


def why_no_file(names: str) -> str:
    """The sentence for files that are wanted without saved images; names: such as "PSD or ORA"."""
    return f"No {names} was written, since these images aren't saved: switch saving on (API: save_images)."


def _save_preview(name: str, preview: Image.Image, infotext: str, saved: Image.Image) -> list[str]:
    """Write a preview next to the saved image, as its name with the preview's added; a sentence if that fails."""
    path = getattr(saved, "already_saved_as", None)
    if not path:  # images that aren't saved have no previews either
        return []
    target = Path(path).with_name(f"{Path(path).stem}-{name}.png")
    try:
        png.write(np.asarray(preview), target, infotext)
    except Refusal as refusal:
        return [str(refusal)]
    preview.already_saved_as = str(target)  # pyright: ignore[reportAttributeAccessIssue] - so WebUIs name and find it
    return []


def _leave_out(sets: Sequence[LayerSet], outputs: Sequence[str], processed: Any) -> None:
    """Take unwanted layers out of the answer, but never all of its images."""
    unwanted = {id(image) for each in sets for role, image in each.images.items() if name_layer(role) not in outputs}
    kept = [index for index, image in enumerate(processed.images) if id(image) not in unwanted]
    if kept and len(kept) < len(processed.images):
        texts = processed.infotexts
        processed.infotexts = [texts[index] for index in kept if index < len(texts)]
        processed.images = [processed.images[index] for index in kept]


def keep_alpha_in_answer(processed: Any, file_format: str | None) -> None:
    """API answers are encoded after the job, in the user's format again: what has alpha becomes a PNG's text here."""
    if file_format in (None, "png"):
        return
    processed.images = [
        encode_png(image) if isinstance(image, Image.Image) and image.mode == "RGBA" else image
        for image in processed.images
    ]


def _read_share(mask: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """The share 0..1 of what is painted, [H, W, 1], by a mask that may continue beyond `size` (width, height)."""
    grey = mask.convert("L")
    is_extended = 0 <= grey.width - size[0] < SIZE_STEP and 0 <= grey.height - size[1] < SIZE_STEP
    fitted = grey.crop((0, 0, *size)) if is_extended else grey.resize(size)
    return np.asarray(np.asarray(fitted)[..., None] / 255, np.float32)


def _as_saved(pixels: Tensor) -> Pixels:
    """[3, H, W], 0..1 to uint8 [H, W, 3], cut off and not rounded, as WebUIs do."""
    return (255.0 * pixels.permute(1, 2, 0).numpy()).astype(np.uint8)


def encode_png(image: Image.Image) -> str:
    """Base64 text of a PNG with the image's infotext."""
    return base64.b64encode(png.encode(np.asarray(image), image.info.get("parameters"))).decode()
