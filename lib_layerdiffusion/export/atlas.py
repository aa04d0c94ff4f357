"""Texture atlases for game engines: named pictures on one sheet, and a text that says where each lies.

The forms are TexturePacker's "JSON (Hash)" and "JSON (Array)", which Phaser, PixiJS and others read, and the text of
libGDX, which Spine's runtimes read as well. Packing is by the package rectpack, imported when an atlas is made.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from ..layers import Bytes, Size, check_rgba
from ..options import FIELDS, LayerOptions
from ..refusal import Refusal, using_path
from ..upscaling import continue_colour
from ..version import __version__
from . import png, whole_file

Form = Literal["hash", "array", "libgdx"]
FORMS: tuple[Form, ...] = ("hash", "array", "libgdx")

APP = "https://arxiv.org/abs/2402.17113 (sd-webui-layerdiffusion)"  # by which a sheet is known again


@dataclass(frozen=True)
class AtlasOptions:
    """How pictures are put on a sheet. A value that isn't allowed is a Refusal at construction.

    Defaults and limits are those of the fields of LayerOptions that begin with "atlas_".
    """

    trim: bool = LayerOptions.atlas_trim  # cut off invisible borders; the JSON says where they were
    common_canvas: bool = LayerOptions.atlas_common_canvas  # first bring all to the largest size, each in the middle
    padding: int = LayerOptions.atlas_padding  # empty pixels between two pictures
    extrude: int = LayerOptions.atlas_extrude  # pixels by which the outermost ones are repeated, for opaque tiles
    # 0..1 of the whole picture, from its left top corner
    pivot: tuple[float, float] = (LayerOptions.atlas_pivot_x, LayerOptions.atlas_pivot_y)
    power_of_two: bool = LayerOptions.atlas_power_of_two  # sides of the sheet
    max_side: int = LayerOptions.atlas_max_side  # of the sheet; what doesn't fit goes to further sheets
    form: Form = "hash"

    @classmethod
    def of(cls, options: LayerOptions) -> AtlasOptions:
        """Those of a generation."""
        names = [each.name for each in fields(cls) if each.name != "pivot"]
        values = {name: getattr(options, f"atlas_{name}") for name in names}
        return cls(**values, pivot=(options.atlas_pivot_x, options.atlas_pivot_y))

    def __post_init__(self) -> None:
        for name in ("padding", "extrude", "max_side"):
            low, high = (FIELDS[f"atlas_{name}"].metadata[limit] for limit in ("minimum", "maximum"))
            if not low <= getattr(self, name) <= high:
                raise Refusal(f"{name} must be a whole number from {low} to {high}, not {getattr(self, name)!r}.")
        if len(self.pivot) != 2 or not all(0 <= value <= 1 for value in self.pivot):
            raise Refusal(f"pivot must be two numbers from 0 to 1, not {self.pivot!r}.")
        if self.form not in FORMS:
            raise Refusal(f"There is no form {self.form!r} of an atlas: choose hash, array or libgdx.")
        if self.form == "libgdx" and self.pivot != AtlasOptions.pivot:
            raise Refusal("libGDX's form has no pivot: leave it out, or choose the form hash or array.")


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture on a sheet: what is shown of it [h, w, 4], where that lies in the picture, and where on the sheet."""

    name: str
    image: Bytes
    offset: tuple[int, int]  # x, y of the shown part in the whole picture
    source: Size  # width, height of the whole picture
    place: tuple[int, int] = (0, 0)  # x, y on the sheet


@dataclass(frozen=True, eq=False)
class Sheet:
    """One image [H, W, 4] uint8 with its frames."""

    image: Bytes
    frames: tuple[Frame, ...]

    @property
    def occupancy(self) -> float:
        """Share of the sheet that frames cover, 0..1."""
        return sum(frame.image.shape[0] * frame.image.shape[1] for frame in self.frames) / self.image[..., 0].size


def make_sheets(pictures: Mapping[str, Bytes], options: AtlasOptions | None = None) -> list[Sheet]:
    """Put straight RGBA pictures [H, W, 4] uint8 by name on as few sheets as hold them, none turned.

    A frame's pixels are the picture's own, byte for byte. Between the frames alpha is 0, and the colour is that of the
    nearest frame, so that no filter brings another in. Refusal when a picture is larger than a sheet may be.
    """
    options = options or AtlasOptions()
    if not pictures:
        raise Refusal("There is no picture for an atlas: give one or more.")
    for name, picture in pictures.items():
        check_rgba(picture, f"The picture {name!r}")
    if options.common_canvas:
        pictures = _share_canvas(pictures)
    frames = [_cut(name, picture, options.trim) for name, picture in pictures.items()]
    return [_draw(size, placed, options) for size, placed in _pack(frames, options)]


def describe(
    sheet: Sheet, image_name: str, options: AtlasOptions | None = None, others: Sequence[str] = ()
) -> dict[str, Any]:
    """The JSON of a sheet, as an object that `json.dump` takes; `others` are the JSON files of its further sheets."""
    options = options or AtlasOptions()
    height, width = sheet.image.shape[:2]
    frames = [(frame.name, _describe(frame, options)) for frame in sheet.frames]
    meta: dict[str, Any] = {
        "app": APP,
        "version": __version__,
        "image": image_name,
        "format": "RGBA8888",
        "size": {"w": width, "h": height},
        "scale": "1",
    }
    if others:
        meta["related_multi_packs"] = list(others)  # TexturePacker's word; PixiJS loads them with the first
    if options.form == "array":
        return {"frames": [{"filename": name, **about} for name, about in frames], "meta": meta}
    return {"frames": dict(frames), "meta": meta}


def describe_libgdx(sheets: Sequence[Sheet], images: Sequence[str]) -> str:
    """The text of all sheets in the form that every libGDX reads; images: the names of their files.

    Frames have their pictures' names without ending, as libGDX's packer gives them. Refusal for a name that its
    readers take for something else.
    """
    pages: list[str] = []
    taken: set[str] = set()
    for sheet, image in zip(sheets, images, strict=True):
        height, width = sheet.image.shape[:2]
        lines = [_check_line(image), f"size: {width},{height}", "format: RGBA8888", "filter: Linear,Linear"]
        lines.append("repeat: none")
        for frame in sheet.frames:
            name = _check_line(Path(frame.name).stem)
            if name in taken:
                raise Refusal(f"Two pictures are called {name!r}, which libGDX finds by that name: rename one.")
            taken.add(name)
            lines += [name, *_describe_libgdx(frame)]
        pages.append("".join(f"{line}\n" for line in lines))
    return "\n".join(pages)


def write(
    pictures: Mapping[str, Bytes],
    path: Path,
    options: AtlasOptions | None = None,
    keep: Collection[Path] = (),
    infotext: str | None = None,
) -> list[Sheet]:
    """Write `<path>.png` and `<path>.json`, or `<path>-0.png` and so on where one sheet doesn't hold all.

    In the form of libGDX one `<path>.atlas` says what is on all sheets.

    Each file appears whole or not at all. Sheets that an earlier call wrote under this name, and this one didn't, are
    removed. infotext: text chunk `parameters` of the sheets, by which WebUIs find the settings again. Refusal when a
    file can't be written, or would replace one of `keep`.
    """
    options = options or AtlasOptions()
    sheets = make_sheets(pictures, options)
    files = list_files(path, len(sheets), options.form)
    images = [file for file in files if file.suffix == ".png"]
    kept = {file.resolve(): file for file in keep}
    for image in images:
        if image.resolve() in kept:
            name = kept[image.resolve()]
            raise Refusal(f"The sheet would replace the image {name}: choose another name or folder for it.")
    texts = _describe_files(sheets, files, options)
    earlier = _find_earlier(path)
    for sheet, image in zip(sheets, images, strict=True):
        # a sheet without JSON is known again by itself
        png.write(sheet.image, image, infotext, APP if options.form == "libgdx" else None)
    for file, text in texts.items():
        with whole_file(file) as opened:
            opened.write(text.encode())
    with using_path(path.parent):
        for file in earlier - {*files}:
            file.unlink()
    return sheets


def list_files(path: Path, count: int, form: Form) -> list[Path]:
    """The files of so many sheets that `write` makes."""
    sheets = [f"{sheet.name}{ending}" for sheet in name_sheets(path, count) for ending in (".png", ".json")]
    if form == "libgdx":  # one text for all of them
        sheets = [*(name for name in sheets if name.endswith(".png")), f"{path.name}.atlas"]
    return [path.with_name(name) for name in sheets]


def name_sheets(path: Path, count: int) -> list[Path]:
    """The paths of so many sheets, without their endings."""
    return [path] if count == 1 else [path.with_name(f"{path.name}-{number}") for number in range(count)]


def name_new_sheets(path: Path) -> Path:
    """The path for sheets that replace nothing: as it is, else with the first number from 2 on that is free."""
    with using_path(path.parent):
        there = [each.name.casefold() for each in path.parent.iterdir()]

    def is_free(new: Path) -> bool:
        own = re.compile(re.escape(new.name.casefold()) + r"(-\d+)?\.(png|json|atlas)")
        return not any(map(own.fullmatch, there))

    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(filter(is_free, itertools.chain([path], numbered)))


def read_meta(image: Path) -> dict[str, Any] | None:
    """What the JSON beside an image says of the sheet; None when it isn't a sheet that `write` made."""
    try:
        meta: Any = json.loads(image.with_suffix(".json").read_text("utf-8"))["meta"]
        return meta if (meta["app"], meta["image"]) == (APP, image.name) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def is_sheet(image: Path) -> bool:
    """Whether an image is a sheet that `write` made."""
    return read_meta(image) is not None or _is_marked(image)


def _is_marked(image: Path) -> bool:
    try:
        with Image.open(image) as opened:
            return opened.info.get("Software") == APP
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _find_earlier(path: Path) -> set[Path]:
    """The files of sheets of this name, numbered or not, that an earlier call wrote."""
    numbered = re.compile(re.escape(path.name) + r"-\d+\.json")
    found: set[Path] = set()
    with using_path(path.parent):
        for image in path.parent.glob("*.png"):
            if image.stem != path.name and not numbered.fullmatch(f"{image.stem}.json"):
                continue
            meta = read_meta(image)
            # an atlas of one sheet may itself be called like a numbered sheet
            if meta and (image.stem == path.name or any(map(numbered.fullmatch, meta.get("related_multi_packs", ())))):
                found |= {image, image.with_suffix(".json")}
            elif _is_marked(image) and (image.stem == path.name or not image.with_suffix(".atlas").exists()):
                found |= {image, path.with_name(f"{path.name}.atlas")}
    return {file for file in found if file.exists()}


def _describe_files(sheets: Sequence[Sheet], files: Sequence[Path], options: AtlasOptions) -> dict[Path, str]:
    """The texts of an atlas by their files."""
    images, texts = ([file for file in files if (file.suffix == ".png") is wanted] for wanted in (True, False))
    if options.form == "libgdx":
        return {texts[0]: describe_libgdx(sheets, [image.name for image in images])}
    described: dict[Path, str] = {}
    for sheet, image, text in zip(sheets, images, texts, strict=True):
        about = describe(sheet, image.name, options, [other.name for other in texts if other != text])
        described[text] = json.dumps(about, ensure_ascii=False, indent=1)
    return described


def _share_canvas(pictures: Mapping[str, Bytes]) -> dict[str, Bytes]:
    height, width = (max(picture.shape[axis] for picture in pictures.values()) for axis in (0, 1))
    canvases: dict[str, Bytes] = {}
    for name, picture in pictures.items():
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        canvases[name] = np.zeros((height, width, 4), np.uint8)
        canvases[name][top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvases


def _cut(name: str, picture: Bytes, trim: bool) -> Frame:
    """Cut the invisible borders off; of a picture without anything visible one pixel is left."""
    height, width = picture.shape[:2]
    x, y, shown_width, shown_height = 0, 0, width, height
    if trim:
        x, y, shown_width, shown_height = cv2.boundingRect(picture[..., 3])
        shown_width, shown_height = max(1, shown_width), max(1, shown_height)
    return Frame(name, picture[y : y + shown_height, x : x + shown_width], (x, y), (width, height))


def _pack(frames: list[Frame], options: AtlasOptions) -> list[tuple[Size, list[Frame]]]:
    """Places for all frames on sheets as small as they are found."""
    around = options.padding + 2 * options.extrude
    boxes = [(frame.image.shape[1] + around, frame.image.shape[0] + around) for frame in frames]
    # the padding lies on one side of each box, and once more at the sheet's left and top
    largest = _largest(options)
    limit = largest - options.padding
    limited = "" if largest == options.max_side else f", the largest power of two up to {options.max_side}"
    for frame, box in zip(frames, boxes, strict=True):
        if max(box) > limit:
            raise Refusal(
                f"The picture {frame.name!r} needs {box[0]}x{box[1]} pixels with its padding, which doesn't fit on a "
                f"sheet of {largest}x{largest}{limited}: allow a larger one, or make it smaller."
            )
    sheets: list[tuple[Size, list[Frame]]] = []
    left = list(range(len(frames)))
    while left:
        size, places = _fill([boxes[index] for index in left], limit, options)
        inset = options.padding + options.extrude
        placed = [
            Frame(f.name, f.image, f.offset, f.source, (x + inset, y + inset))
            for f, (x, y) in ((frames[left[number]], place) for number, place in sorted(places.items()))
        ]
        sheets.append((size, placed))
        left = [index for number, index in enumerate(left) if number not in places]
    return sheets


def _fill(boxes: list[Size], limit: int, options: AtlasOptions) -> tuple[Size, dict[int, tuple[int, int]]]:
    """The smallest sheet that holds all boxes, or the largest with what it holds: its size, and places by number."""
    best: tuple[Size, dict[int, tuple[int, int]]] | None = None
    for bin_size in _list_sizes(boxes, limit, options):
        places = _place(boxes, bin_size)
        if len(places) < len(boxes):
            continue
        size = _measure(boxes, places, options)
        if best is None or size[0] * size[1] < best[0][0] * best[0][1]:
            best = size, places
    if best is None:
        places = _place(boxes, (limit, limit))
        best = _measure(boxes, places, options), places
    return best


def _list_sizes(boxes: list[Size], limit: int, options: AtlasOptions) -> list[Size]:
    """Inner sizes of sheets to try: about square ones from the boxes' total area on."""
    area = sum(width * height for width, height in boxes)
    least = max(max(box) for box in boxes)
    if options.power_of_two:
        sides = [2**power - options.padding for power in range(4, 15)]
        sizes = [(a, b) for a in sides for b in (a, (a + options.padding) // 2 - options.padding)]
    else:
        square = math.sqrt(area)
        sizes = [(max(least, math.ceil(square * factor)), limit) for factor in np.linspace(1.0, 1.3, 13)]
    return [(w, h) for w, h in sizes if least <= w <= limit and 0 < h <= limit and w * h >= area]


def _place(boxes: list[Size], bin_size: Size) -> dict[int, tuple[int, int]]:
    """Left top corners by the boxes' number, of those that find a place."""
    import rectpack

    make: Any = rectpack.newPacker  # its annotations know the defaults only
    packer = make(rotation=False, pack_algo=rectpack.SkylineBlWm, sort_algo=rectpack.SORT_LSIDE)
    packer.add_bin(*bin_size)
    for number, box in enumerate(boxes):
        packer.add_rect(*box, rid=number)
    packer.pack()
    return {number: (x, y) for _, x, y, _, _, number in packer.rect_list()}


def _measure(boxes: list[Size], places: Mapping[int, tuple[int, int]], options: AtlasOptions) -> Size:
    """The sheet's size around what was placed."""
    width, height = (
        options.padding + max(places[number][axis] + boxes[number][axis] for number in places) for axis in (0, 1)
    )
    if options.power_of_two:
        return 1 << (width - 1).bit_length(), 1 << (height - 1).bit_length()
    return width, height


def _largest(options: AtlasOptions) -> int:
    """The largest side that a sheet may have."""
    return 1 << (options.max_side.bit_length() - 1) if options.power_of_two else options.max_side


def _draw(size: Size, frames: list[Frame], options: AtlasOptions) -> Sheet:
    sheet, empty = np.zeros((size[1], size[0], 4), np.uint8), np.ones((size[1], size[0]), np.uint8)
    reach = options.extrude
    for frame in frames:
        x, y = (side - reach for side in frame.place)
        around = np.pad(frame.image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        invisible = around[..., 3] == 0
        around[invisible, :3] = continue_colour(around)[invisible]
        sheet[y : y + around.shape[0], x : x + around.shape[1]] = around
        empty[y : y + around.shape[0], x : x + around.shape[1]] = 0
    _fill_empty(sheet, empty)
    for frame in frames:
        (x, y), (height, width) = frame.place, frame.image.shape[:2]
        sheet[y : y + height, x : x + width] = frame.image
    return Sheet(sheet, tuple(frames))


def _fill_empty(sheet: Bytes, empty: Bytes) -> None:
    """Give pixels that are not 0 in `empty` [H, W] the colour of the nearest one that is."""
    labels: Any = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    drawn = empty == 0
    colours = np.empty((labels.max() + 1, 3), np.uint8)
    colours[labels[drawn]] = sheet[drawn, :3]
    sheet[~drawn, :3] = colours[labels[~drawn]]


def _describe(frame: Frame, options: AtlasOptions) -> dict[str, Any]:
    height, width = frame.image.shape[:2]
    (x, y), (left, top) = frame.place, frame.offset
    pivot = {"x": options.pivot[0], "y": options.pivot[1]}
    return {
        "frame": {"x": x, "y": y, "w": width, "h": height},
        "rotated": False,
        "trimmed": (width, height) != frame.source,
        "spriteSourceSize": {"x": left, "y": top, "w": width, "h": height},
        "sourceSize": {"w": frame.source[0], "h": frame.source[1]},
        "pivot": pivot,
        "anchor": pivot,  # what PixiJS reads, and Phaser before the pivot
    }


def _describe_libgdx(frame: Frame) -> list[str]:
    height, width = frame.image.shape[:2]
    below = frame.source[1] - height - frame.offset[1]  # its offset counts from the left bottom corner
    return [
        "  rotate: false",
        "  xy: {}, {}".format(*frame.place),
        f"  size: {width}, {height}",
        "  orig: {}, {}".format(*frame.source),
        f"  offset: {frame.offset[0]}, {below}",
        "  index: -1",
    ]


def _check_line(name: str) -> str:
    """A name that can stand on a line of libGDX's form."""
    if not name or name != name.strip() or ":" in name or len(name.splitlines()) > 1:
        raise Refusal(
            f"libGDX's form can't have the name {name!r}: rename it, without colons, line breaks and spaces around it."
        )
    return name
