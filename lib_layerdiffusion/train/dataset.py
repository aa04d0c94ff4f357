"""RGBA images with captions from a folder, archive or shards, and the augmented batches that trainings draw of them."""

from __future__ import annotations

import codecs
import json
import logging
import math
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..image_file import read_content
from ..layers import pad_rgb
from ..options import check_text
from ..refusal import Refusal
from .config import strict
from .shards import Member, find_shards, read_samples

log = logging.getLogger(__name__)

IMAGE_ENDINGS = {".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".gif", ".bmp"}
TEXT_ENDINGS = (".txt", ".caption")
METADATA = "metadata.jsonl"
IMAGE_KEYS = ("file_name", "foreground", "background", "blend")
TEXT_KEYS = ("text", "caption", "kind", "split", "foreground_text", "background_text", "blend_text")
LARGEST_FILE = 2**29  # bytes; the largest image that is read, uncompressed
HELD_OUT_EVERY = 12  # where the data set names no splits
Premultiplied = NDArray[np.float32]  # [H, W, 4] colour times alpha, then alpha, all 0..1


@dataclass(frozen=True)
class Stored:
    """A picture that stays in its shard and is read each time that it is drawn."""

    member: Member
    size: int
    cover: bool

    def read(self) -> NDArray[np.uint8]:
        """Straight RGBA [size, size, 4]."""
        return read_square(self.member.read(), str(self.member), self.size, self.cover)


Picture = NDArray[np.uint8] | Stored


def open_picture(picture: Picture) -> NDArray[np.uint8]:
    """A picture's pixels, straight RGBA [S, S, 4], read now if they weren't."""
    return picture.read() if isinstance(picture, Stored) else picture


@dataclass(frozen=True)
class Sprite:
    """One training image, square, with its caption and role in the set."""

    name: str
    text: str
    picture: Picture
    kind: str = "opaque"
    split: str = "train"
    prompt: bool = False

    @property
    def rgba(self) -> NDArray[np.uint8]:
        """Straight RGBA [S, S, 4]."""
        return open_picture(self.picture)

    @property
    def premultiplied(self) -> Premultiplied:
        pixels = self.rgba.astype(np.float32) / 255
        pixels[..., :3] *= pixels[..., 3:]
        return pixels


def read_square(data: bytes, name: str, size: int, cover: bool) -> NDArray[np.uint8]:
    """Decode, make square and resize (premultiplied, so that edges keep their colour), without a larger square between.

    Square by cutting off what is too long (`cover`), or else by centring on a transparent square.
    """
    image = Image.fromarray(read_content(data, name))
    if cover:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    factor = size / max(image.size)
    fitted = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image if image.size == fitted else image.resize(fitted, Image.Resampling.LANCZOS)
    if fitted == (size, size):
        return np.asarray(image)
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square)


def read_files(path: Path) -> dict[str, bytes]:
    """Contents of the images, texts and metadata, by their paths inside the data set."""
    try:
        if path.is_dir():
            found = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
            return {
                _normalise(name): _check_length(file.stat().st_size, name) and file.read_bytes()
                for name, file in found.items()
                if _belongs(name)
            }
        if path.exists() and not path.is_file():
            raise Refusal(f"The data set {path} is not an ordinary file; name a folder or a zip archive.")
        with zipfile.ZipFile(path) as archive:
            return {
                _normalise(entry.filename): _check_length(entry.file_size, entry.filename) and archive.read(entry)
                for entry in archive.infolist()
                if _belongs(entry.filename)
            }
    except (OSError, RuntimeError, NotImplementedError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Refusal(
            f"The data set {str(path)[:200]!r} can't be read as a folder or a zip archive ({error}); name one that can."
        ) from error


def _check_length(length: int, name: str) -> bool:
    if length > LARGEST_FILE:
        raise Refusal(f"{name} has {length} bytes, more than the {LARGEST_FILE} that are read; leave it out.")
    return True


def _normalise(name: str) -> str:
    """One spelling for the paths that systems write differently: slashes, and accents as letters of their own."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _belongs(name: str) -> bool:
    file = PurePosixPath(name)
    endings = {*IMAGE_ENDINGS, *TEXT_ENDINGS}
    return not file.name.startswith(".") and (file.name == METADATA or file.suffix.lower() in endings)


def _decode(text: bytes) -> str:
    """A text in UTF-8, or in UTF-16 where it begins with that mark."""
    utf16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text.decode("utf-16" if utf16 else "utf-8-sig", "replace")


def read_facts(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The lines of every metadata.jsonl; each names its image (`file_name`) or its scene's `foreground`.

    Images are named from the folder of the metadata.jsonl on, and here from that of the data set on.
    """
    facts: list[dict[str, Any]] = []
    ignored: set[str] = set()
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        for number, line in enumerate(_decode(content).splitlines() if name == METADATA else (), 1):
            if line.strip():
                facts.append(_read_fact(line, f"Line {number} of {path}", folder))
                ignored |= facts[-1].keys() - {*IMAGE_KEYS, *TEXT_KEYS, "prompt"}
    if ignored:
        log.warning("The keys %s of %s are left out.", ", ".join(sorted(ignored))[:200], METADATA)
    return facts


def _read_fact(line: str, where: str, folder: str) -> dict[str, Any]:
    row = _read_object(line, where)
    if not ("file_name" in row or "foreground" in row):
        raise Refusal(f"{where} must be a JSON object with a file_name; mend it.")
    for key in row.keys() & {*IMAGE_KEYS}:
        row[key] = _normalise(f"{folder}/{row[key]}" if folder else row[key])
    return row


def _read_object(text: str, where: str) -> dict[str, Any]:
    """What a JSON object says of an image or a scene; values of a wrong kind are refused."""
    try:
        row: Any = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise Refusal(f"{where} must be a JSON object; mend it.")
    known: dict[str, Any] = row  # pyright: ignore[reportUnknownVariableType]
    for key in known.keys() & {*IMAGE_KEYS, *TEXT_KEYS}:
        check_text(f"{where}: {key}", known[key])
    if not isinstance(known.get("prompt", False), bool):
        raise Refusal(f"{where}: prompt must be true or false; mend it.")
    if "split" in known:
        known["split"] = _read_split(known["split"], where)
    return known


def _read_split(split: str, where: str) -> str:
    """`train` or `held-out`, by the names that data sets have for them."""
    match split.lower():
        case "train" | "training":
            return "train"
        case "held-out" | "validation" | "valid" | "val" | "test" | "dev":
            return "held-out"
        case _:
            raise Refusal(f"{where} has the split {split[:60]!r}; write train or held-out.")


def hold_out(index: int) -> bool:
    """Whether the image with this place in its data set is held out: each twelfth, from the first on."""
    return index % HELD_OUT_EVERY == 0


def reading_size(size: int) -> int:
    """Side at which images are kept for a training at `size`: twice, so that turned and scaled ones stay sharp."""
    return size * 2


def read_sprites(path: Path, size: int = 256, cover: bool = False) -> list[Sprite]:
    """Every RGBA image of a folder or zip, read into memory, or of WebDataset shards, as squares of `size` pixels.

    Captions come from `metadata.jsonl` (lines with `file_name`, `text` or `caption`, `kind`, `split`, `prompt`), in
    shards from the sample's JSON with these keys; else from a text file beside the image, else from the file's name.
    Non-square images are centred on a transparent square, or with `cover` (backgrounds) cut to their middle.
    Where the metadata names no splits, each twelfth image is held out if there are twelve.
    """
    shards = find_shards(path)
    sprites, named = _list_stored(shards, size, cover) if shards else _read_all(path, size, cover)
    if not sprites:
        raise Refusal(f"The data set {path} holds no {', '.join(sorted(IMAGE_ENDINGS))} images; name one that does.")
    if named or len(sprites) < HELD_OUT_EVERY:
        return sprites
    return [replace(s, split="held-out") if hold_out(i) else s for i, s in enumerate(sprites)]


def _read_all(path: Path, size: int, cover: bool) -> tuple[list[Sprite], bool]:
    """The images of a folder or zip, and whether their metadata names splits."""
    files = read_files(path)
    rows = read_facts(files)
    if any("file_name" not in row for row in rows):
        raise Refusal(
            f"{METADATA} of {path} lists scenes, which this training doesn't take; give lines with file_name."
        )
    facts = {row["file_name"]: row for row in rows}
    if len(facts) < len(rows):
        raise Refusal(f"{METADATA} of {path} names an image twice; keep one line for each.")
    if absent := [name for name in facts if name not in files]:
        raise Refusal(
            f"{METADATA} names {absent[0][:200]}, which {path} doesn't hold; add the image or remove the line."
        )
    images = [name for name in files if PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS]
    chosen = [name for name in images if not facts or name in facts]
    if left_out := len(images) - len(chosen):
        log.warning("%d images of %s are left out, since %s doesn't name them.", left_out, path, METADATA)
    sprites: list[Sprite] = []
    for name in chosen:
        file = PurePosixPath(name)
        beside = [_decode(files[text]) for end in TEXT_ENDINGS if (text := str(file.with_suffix(end))) in files]
        picture = read_square(files[name], name, size, cover)
        sprites.append(_describe(name, picture, facts.get(name, {}), beside, file.stem))
    return sprites, any("split" in row for row in facts.values())


def _describe(name: str, picture: Picture, row: Mapping[str, Any], beside: Sequence[str], stem: str) -> Sprite:
    """An image with what its metadata, else the texts beside it, else its name says of it."""
    caption = " ".join((beside[0] if beside else "").split())
    words = stem.encode("utf-8", "replace").decode().replace("_", " ")
    extra = {key: row[key] for key in ("kind", "split", "prompt") if key in row}
    return Sprite(name, row.get("text") or row.get("caption") or caption or words, picture, **extra)


def _list_stored(shards: Sequence[Path], size: int, cover: bool) -> tuple[list[Sprite], bool]:
    """The images of shards, which stay there, and whether their metadata names splits."""
    sprites: list[Sprite] = []
    named = False
    for shard in shards:
        for key, members in read_samples(shard):
            images = [ending for ending in members if f".{ending}" in IMAGE_ENDINGS]
            if len(images) != 1:
                raise Refusal(
                    f"The sample {key[:200]} of {shard} has {len(images)} files that are an image; give it one."
                )
            row = read_json(members)
            beside = [_decode(members[end[1:]].read()) for end in TEXT_ENDINGS if end[1:] in members]
            picture = Stored(members[images[0]], size, cover)
            sprites.append(_describe(str(picture.member), picture, row, beside, PurePosixPath(key).name))
            named |= "split" in row
    return sprites, named


def read_json(members: Mapping[str, Member]) -> dict[str, Any]:
    """What a sample's JSON file says, if it has one; the sample's other members aren't too large."""
    for member in members.values():
        _check_length(member.length, str(member))
    return _read_object(_decode(members["json"].read()), str(members["json"])) if "json" in members else {}


def read_backgrounds(path: Path | None, size: int) -> tuple[list[Sprite], list[Sprite]]:
    """Background pictures to train on and held-out ones, square, for a training at `size`; none without a path."""
    return split_sprites(read_sprites(path, reading_size(size), cover=True)) if path is not None else ([], [])


def split_sprites(sprites: Sequence[Sprite]) -> tuple[list[Sprite], list[Sprite]]:
    """Images to train on, and held-out ones to measure on; those trained on stand in where none are held out."""
    known = [sprite for sprite in sprites if sprite.split == "train"]
    if not known:
        raise Refusal("The data set holds no image of the split train; give some images that split.")
    return known, [sprite for sprite in sprites if sprite.split == "held-out"] or known


def find_prompts(sprites: Sequence[Sprite]) -> list[Sprite]:
    """The images marked as prompts; all of them where none is marked."""
    return [sprite for sprite in sprites if sprite.prompt] or list(sprites)


@strict
@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random placement of a sprite in its image."""

    flip: bool = True
    scale: tuple[float, float] = (0.70, 0.86)
    rotate: float = 8.0  # degrees, both ways
    shift: float = 0.03  # share of the side, both ways


def augment(pixels: Premultiplied, size: int, ranges: Augmentation, rng: np.random.Generator) -> Premultiplied:
    """Place premultiplied RGBA [S, S, 4] at random in [size, size, 4]."""
    zoom, angle = rng.uniform(*ranges.scale), rng.uniform(-ranges.rotate, ranges.rotate)
    shift = rng.uniform(-ranges.shift, ranges.shift, 2)
    return place(pixels, size, zoom, angle, shift, flip=ranges.flip and rng.random() < 0.5)


def place(
    pixels: Premultiplied, size: int, zoom: float, angle: float, shift: NDArray[np.float64], flip: bool
) -> Premultiplied:
    """Premultiplied RGBA [S, S, 4] turned by `angle` degrees, at `zoom` of [size, size, 4], off its centre by `shift`.

    Drawn at twice the size and averaged: interpolation alone would blur what is shrunk a little.
    """
    side, canvas = pixels.shape[0], 2 * size
    factor = zoom * canvas / side
    if factor < 0.75:  # warpAffine samples points: shrink by area first
        shrunk = max(8, round(side * factor * 1.2))
        pixels = cv2.resize(pixels, (shrunk, shrunk), interpolation=cv2.INTER_AREA)  # pyright: ignore[reportAssignmentType]
        factor, side = factor * side / shrunk, shrunk
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, factor)
    matrix[:, 2] += (canvas - side) / 2 + shift * canvas
    if flip:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    warped = cv2.warpAffine(pixels, matrix, (canvas, canvas), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0))
    return np.asarray(cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA), np.float32)


def draw_view(background: Sprite, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random crop of a background picture, mirrored or not, a little lighter or darker; [size, size, 3], 0..1."""
    rgba = background.rgba
    cut = round(len(rgba) * rng.uniform(0.8, 1.0))
    top, left = rng.integers(0, len(rgba) - cut + 1, 2)
    pixels = rgba[top : top + cut, left : left + cut, :3].astype(np.float32) / 255
    if rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    how = cv2.INTER_AREA if cut > size else cv2.INTER_LINEAR
    picture = cv2.resize(pixels, (size, size), interpolation=how) * rng.uniform(0.92, 1.06)
    return np.clip(picture, 0, 1).astype(np.float32)


def draw_fade(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth random opacity [size, size], 0..1, that the picture doesn't tell: constant, cloudy or a ramp."""
    match rng.integers(3):
        case 0:
            field = np.full((size, size), rng.uniform(0.15, 0.9))
        case 1:
            cells = int(rng.integers(2, 5))
            noise = rng.random((cells, cells), dtype=np.float32)
            field = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) * 1.4 - 0.2
        case _:
            angle = rng.uniform(0, 2 * np.pi)
            axis = np.linspace(-1, 1, size, dtype=np.float32)
            x, y = np.meshgrid(axis, axis)
            field = 0.5 + 0.7 * (x * np.cos(angle) + y * np.sin(angle))
    return np.clip(field, 0, 1).astype(np.float32)


def make_background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A plain colour or a two-colour gradient, [size, size, 3], 0..1."""
    first, second = rng.random((2, 3), dtype=np.float32)
    if rng.random() < 0.5:
        return np.broadcast_to(first, (size, size, 3)).astype(np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    ramp = ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
    return np.broadcast_to(first * (1 - ramp) + second * ramp, (size, size, 3)).astype(np.float32)


def make_photo_background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Photo-like texture: coloured noise with the 1/f spectrum of natural images, [size, size, 3], 0..1."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = 1 / size
    spectrum = np.fft.fft2(rng.standard_normal((3, size, size)), axes=(1, 2)) / frequency
    image = np.real(np.fft.ifft2(spectrum, axes=(1, 2)))
    image = (image - image.mean()) / (image.std() + 1e-6) * 0.22 + rng.uniform(0.3, 0.7, (3, 1, 1))
    return np.clip(image.transpose(1, 2, 0), 0, 1).astype(np.float32)


def unpremultiplied(pixels: Premultiplied) -> NDArray[np.uint8]:
    """Straight RGBA uint8 of premultiplied 0..1; colour is 0 where alpha is."""
    alpha = pixels[..., 3:]
    colour = np.where(alpha > 1 / 512, pixels[..., :3] / np.maximum(alpha, 1 / 512), 0)
    return np.round(np.clip(np.concatenate([colour, alpha], axis=-1), 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class TransparentBatch:
    """What the latent transparency networks see; all [B, C, H, W], 0..1."""

    alpha: Tensor  # 1 channel
    padded: Tensor  # 3 channels, colour continued into the invisible part
    grey: Tensor  # 3 channels, composited on mid-grey: what the frozen VAE encodes

    @classmethod
    def of(cls, images: Sequence[Premultiplied], fades: Sequence[NDArray[np.float32] | None] = ()) -> TransparentBatch:
        """Images [H, W, 4]; a fade [H, W] multiplies the alpha, the colour stays."""
        padded = np.stack([pad_rgb(unpremultiplied(pixels)) for pixels in images])
        alpha = np.stack([pixels[..., 3:] for pixels in images])
        for row, field in enumerate(fades):
            if field is not None:
                alpha[row] *= field[..., None]
        padded_t, alpha_t = (torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2))) for a in (padded, alpha))
        return cls(alpha_t, padded_t, 0.5 + (padded_t - 0.5) * alpha_t)

    def to(self, device: torch.device) -> TransparentBatch:
        return TransparentBatch(self.alpha.to(device), self.padded.to(device), self.grey.to(device))


def step_rng(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The random numbers of one training step: a function of seed, step and process, so that resuming is exact."""
    return np.random.default_rng([seed, step, rank])


def draw(sprites: Sequence[Sprite], count: int, rng: np.random.Generator) -> list[Sprite]:
    """`count` sprites drawn with replacement."""
    return [sprites[int(i)] for i in rng.integers(len(sprites), size=count)]


def list_rows(total: int, seed: int, first: int, count: int) -> list[int]:
    """The rows at the places `first` and after in an endless sequence: all `total` rows in random order, then anew.

    Processes that take neighbouring places share each of these epochs out without a gap, and a resumed training finds
    its place again.
    """
    places = range(first, first + count)
    return [int(_shuffle(total, seed, place // total)[place % total]) for place in places]


@lru_cache(maxsize=8)
def _shuffle(total: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, 1 << 17]).permutation(total)


@dataclass(frozen=True)
class Mixture:
    """An endless sequence of images from several pools, of each pool every image once before any comes again."""

    pools: Sequence[Sequence[Sprite]]
    shares: Sequence[float]  # of the sequence, for each pool but the last, which has the rest
    seed: int

    def draw(self, first: int, count: int) -> list[Sprite]:
        """The images at the places `first` and after."""
        return [self._find(place) for place in range(first, first + count)]

    def _find(self, place: int) -> Sprite:
        rest = 1.0
        for pool, share in zip(self.pools, self.shares, strict=False):
            share, rest = share / rest if share < rest else 1.0, rest - share  # of what the pools before it leave
            taken = math.floor(place * share)
            if math.floor((place + 1) * share) > taken:
                return pool[list_rows(len(pool), self.seed, taken, 1)[0]]
            place -= taken
        last = self.pools[-1]
        return last[list_rows(len(last), self.seed, place, 1)[0]]
