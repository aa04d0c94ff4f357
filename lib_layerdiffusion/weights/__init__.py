"""The published weight files, and the store that finds, downloads, checks and loads them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import torch
from torch import Tensor

from lib_layerdiffusion.refusal import Refusal, list_choices, show_path, using_path
from lib_layerdiffusion.weights.download import Download, Progress, Source, hash_file
from lib_layerdiffusion.weights.header import (
    Contents,
    Header,
    UnreadableFileError,
    describe_bytes,
    find_integers,
    find_stray,
    find_width,
    is_wide,
    read_header,
    read_tensors,
    recognise,
)

logger = logging.getLogger(__name__)

HUB = "https://huggingface.co"
REPOSITORY = "LayerDiffusion/layerdiffusion-v1"
SUFFIX = ".safetensors"
UNET_WIDTH = 320  # channels of the first level of the UNets that all published files are made for
Identity: TypeAlias = "tuple[int, int]"  # size and time of change, by which a replaced file is told


@dataclass(frozen=True)
class WeightFile:
    """One published file."""

    name: str  # without ".safetensors"
    size: int  # bytes, about: the hub's pages round it
    contents: Contents
    tensors: int | None = None  # without 1x1 shortcuts, which come and go with the widths; None: any number
    sha256: str = ""  # of the published file; re-uploads and files of one's own differ legitimately

    @property
    def file_name(self) -> str:
        """Name in a folder."""
        return self.name + SUFFIX

    def url(self, endpoint: str = HUB) -> str:
        """Where it is published."""
        return f"{endpoint}/{REPOSITORY}/resolve/main/{self.file_name}"


_DECODER = Contents("decoder")
_ENCODER = Contents("encoder")


def _shares(frames: int, control: bool = False) -> Contents:
    return Contents("attention_sharing", frames=frames, control=control)


def _patches(channels: int) -> Contents:
    return Contents("patches", channels=channels)


# fmt: off
_FILES: tuple[WeightFile, ...] = (
    WeightFile("layer_xl_transparent_attn", 743_000_000, _patches(4),
               sha256="b7919c5b4837fb64f24c97a7abdf1a9c6e8d60de080a5dae089dde098266df95"),
    WeightFile("layer_xl_transparent_conv", 3_620_000_000, _patches(4),
               sha256="5ee958d80dcd515fa7ac915274c536fadd3db5d919adeb5ff45107b6169aacc7"),
    WeightFile("layer_xl_fg2ble", 702_000_000, _patches(8),
               sha256="50a29851ad56308f14d6c9ed375be17df6921efeca240b31f567f6b8c76d1e70"),
    WeightFile("layer_xl_bg2ble", 702_000_000, _patches(8),
               sha256="2901d1353cc4ca763c8bedc48453b36e88680605f417c7f7ec730a7c36845d7c"),
    WeightFile("layer_xl_fgble2bg", 702_000_000, _patches(12),
               sha256="179a61fdcdb149af1897b2840f24ba09466ab6265b2c792b0e99df557f0439be"),
    WeightFile("layer_xl_bgble2fg", 3_620_000_000, _patches(12),
               sha256="1688f0c17447f74662686fadd431f24d26a1ba8ffea322c6f56c8b5ed581b78d"),
    WeightFile("vae_transparent_encoder", 2_370_000, _ENCODER, 18,
               sha256="47d048bd7c6f873b55d123ff424c0b584bbfb8a666f20aa634336e922f5c821c"),
    WeightFile("vae_transparent_decoder", 208_000_000, _DECODER, 488,
               sha256="59dc8feefe40d26b6cb7186aed7af70c60d94ac4f9db8ebe7f121a01ba27a2fc"),
    WeightFile("layer_sd15_vae_transparent_encoder", 2_370_000, _ENCODER, 18,
               sha256="4c6bd4fa714bcdc83ee73fac9092f0723c5cafc60befccf490c697c0a378725a"),
    WeightFile("layer_sd15_vae_transparent_decoder", 208_000_000, _DECODER, 488,
               sha256="6df4712dfbb3783231b22f869a5da5cbfea782ebb05f782bd9e8744bfb0cdf03"),
    WeightFile("layer_sd15_transparent_attn", 350_000_000, _shares(1), 640,
               sha256="cc9ee87452bf1ccdd419035bf9618f6bdcaac1a2d3e23694d62e5a9c721da295"),
    WeightFile("layer_sd15_joint", 554_000_000, _shares(3), 1152,
               sha256="2cc81c33c1a786bdc376c6d1bfb43dbdffda2f610f7c6b4ebd776505a29712bd"),
    WeightFile("layer_sd15_fg2bg", 563_000_000, _shares(2, control=True), 1180,
               sha256="5bade856ec3e55d6ceb0e35bbc97cea7fa4953f7776c8032f2fe52ba740ed580"),
    WeightFile("layer_sd15_bg2fg", 563_000_000, _shares(2, control=True), 1180,
               sha256="8367f976da1cc4275e513c7fb40f977ca312e79e720d7db7ae94978a9359fb62"),
)
# fmt: on

WEIGHTS: Mapping[str, WeightFile] = MappingProxyType({file.name: file for file in _FILES})


@dataclass(frozen=True)
class WeightRow:
    """State of one file, for `doctor`."""

    name: str
    state: Literal["found", "missing", "damaged"]
    path: Path | None
    size: int  # bytes on disk, or about what a download takes
    cure: str  # "" when found


def cache_folder() -> Path:
    """The user's folder for downloaded weights, for use without a WebUI and its `models/layer_model`."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "layerdiffusion"


class WeightStore:
    """Finds weight files in folders, downloads what is missing, checks it, and reads it into memory.

    `folders` are searched in order, then `download_to`, which is also where downloads go (None: nothing is downloaded).
    `offline` (or HF_HUB_OFFLINE=1) forbids downloads; `endpoint` (or HF_ENDPOINT) is a mirror of the hub. Everything
    that is wrong with a file or a download is a Refusal that names path, address and cure.
    """

    def __init__(
        self,
        folders: Sequence[Path | str] = (),
        download_to: Path | str | None = None,
        offline: bool = False,
        endpoint: str | None = None,
        timeout: float = 15.0,
    ) -> None:
        self.download_to = Path(download_to).expanduser() if download_to else None
        searched = [Path(folder).expanduser() for folder in folders]
        if self.download_to and self.download_to not in searched:
            searched.append(self.download_to)
        self.folders = tuple(searched)
        self.offline = offline or os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT", "").strip() or HUB).rstrip("/")
        self.timeout = timeout
        self._headers: dict[Path, tuple[Identity, Header]] = {}
        self._loaded: dict[Path, tuple[Identity, torch.dtype | None, Mapping[str, Tensor]]] = {}

    def find(self, name: str) -> Path | None:
        """Path of a published file in the first folder that has it, intact or damaged; None if none has it."""
        entry = _look_up(name)
        for path in (folder / entry.file_name for folder in self.folders):
            with using_path(path):
                if path.is_file():
                    return path
        return None

    def unet_width(self, name: str) -> int | None:
        """Channels of the first level of the UNet that a file is made for; None if it is damaged or doesn't tell.

        A file that isn't in the folders is the published one.
        """
        path = self.find(name)
        try:
            return UNET_WIDTH if path is None else find_width(self._read_header(path))
        except UnreadableFileError:
            return None

    def fetch(self, name: str, progress: Progress | None = None) -> Path:
        """Path of a published file, checked, after downloading it if it is nowhere; `progress(bytes done, in all)`."""
        entry = _look_up(name)
        path = self.find(name)
        if path is None:
            return self._download(entry, progress)
        self._check(path, entry)
        return path

    def load(
        self, name_or_path: str | Path, progress: Progress | None = None, half: torch.dtype | None = None
    ) -> Mapping[str, Tensor]:
        """The tensors of a published file (by name) or of any file (by path), read into memory and cached.

        `half`: what tensors in single precision are kept in, but those of a control encoder, which always computes in
        that. The cache goes by path, size, time of change and `half`: a replaced file is read anew, and no second copy
        is kept. The tensors are shared, so they must not be written to.
        """
        path = self._locate(name_or_path, progress)
        identity = _identify(path)
        cached = self._loaded.get(path)
        try:
            header = self._read_header(path)
            half = half if any(is_wide(header, name) for name in header.dtypes) else None
            if cached and cached[:2] == (identity, half):
                return cached[2]
            tensors = read_tensors(path, header)
            state = {name: tensor.to(half) if half and is_wide(header, name) else tensor for name, tensor in tensors}
        except UnreadableFileError as problem:
            raise self._refuse(path, str(problem), WEIGHTS.get(path.stem)) from problem
        self._loaded[path] = (identity, half, MappingProxyType(state))
        return self._loaded[path][2]

    def release(self) -> None:
        """Forget the loaded tensors; memory is freed when nobody else holds them."""
        self._loaded.clear()

    def check(self, names: Iterable[str] | None = None, values: bool = False) -> list[WeightRow]:
        """State and cure of each file, without downloading any; with `values`, all numbers of a file are read, too."""
        return [self._report(_look_up(name), values) for name in (WEIGHTS if names is None else names)]

    def _locate(self, name_or_path: str | Path, progress: Progress | None) -> Path:
        if isinstance(name_or_path, str) and name_or_path in WEIGHTS:
            return self.fetch(name_or_path, progress).resolve()
        with using_path(name_or_path):
            path = Path(name_or_path).expanduser()
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "isn't there"
                if path.suffix or len(path.parts) > 1:
                    raise Refusal(f"{str(path)[:200]} {what}: name a {SUFFIX} file, or one of {', '.join(WEIGHTS)}.")
                _look_up(str(name_or_path))
        self._check(path, None)
        return path.resolve()

    def _report(self, entry: WeightFile, values: bool) -> WeightRow:
        path = self.find(entry.name)
        if path is None:
            return WeightRow(entry.name, "missing", None, entry.size, self._get(entry))
        problem = self._diagnose(path, entry, values)
        size = path.stat().st_size
        if problem is None:
            return WeightRow(entry.name, "found", path, size, "")
        return WeightRow(entry.name, "damaged", path, size, f"{path} {problem}: {self._replace(entry)}")

    # -- what is wrong, and the cure

    def _diagnose(self, path: Path, entry: WeightFile, values: bool = False) -> str | None:
        """What is wrong with a file, as the rest of a sentence that begins with its path; None if nothing is."""
        try:
            header = self._inspect(path, entry)
            for name, tensor in read_tensors(path, header) if values else ():
                if not bool(torch.isfinite(tensor.float()).all()):
                    return f"holds NaN or infinite values ({name[:80]})"
        except UnreadableFileError as problem:
            return str(problem)
        return None

    def _check(self, path: Path, entry: WeightFile | None) -> Header:
        try:
            return self._inspect(path, entry)
        except UnreadableFileError as problem:
            raise self._refuse(path, str(problem), entry or WEIGHTS.get(path.stem)) from problem

    def _inspect(self, path: Path, entry: WeightFile | None) -> Header:
        """The file's header, checked against what the table says is in it; UnreadableFileError otherwise."""
        header = self._read_header(path)
        if entry is None:
            return header
        contents = recognise(header)
        if contents != entry.contents:
            others = [file.name for file in _FILES if file.contents == contents]
            known = f" like {' or '.join(others)}" if others else ""
            raise UnreadableFileError(f"is the wrong file: it holds {contents}{known}, not {entry.contents}")
        if stray := find_stray(header, contents.kind):
            raise UnreadableFileError(f"has a tensor {stray[:80]!r}, which {contents} doesn't have")
        if integers := find_integers(header):
            raise UnreadableFileError(f"holds whole numbers instead of weights ({integers[:80]})")
        tensors = sum(".conv_shortcut." not in name for name in header.shapes)
        if entry.tensors and tensors != entry.tensors:
            raise UnreadableFileError(f"is incomplete or altered ({tensors} tensors instead of {entry.tensors})")
        return header

    def _read_header(self, path: Path) -> Header:
        """The file's header, read again only when its size or time of change has changed."""
        try:
            identity = _identify(path)
        except OSError:
            return read_header(path)  # which says what is wrong
        known = self._headers.get(path)
        if known is None or known[0] != identity:
            known = self._headers[path] = identity, read_header(path)
        return known[1]

    def _refuse(self, path: Path, problem: str, entry: WeightFile | None) -> Refusal:
        return Refusal(f"{path} {problem}: {self._replace(entry) if entry else 'replace it by an intact copy'}.")

    def _replace(self, entry: WeightFile) -> str:
        """The cure for a wrong or damaged file."""
        source = f"{entry.url(self.endpoint)} ({describe_bytes(entry.size)})"
        if self.download_to and not self.offline:
            return f"delete it and run again, which downloads {source}"
        return f"replace it by {source}"

    def _get(self, entry: WeightFile) -> str:
        """The cure for a missing file."""
        source = f"{entry.url(self.endpoint)} ({describe_bytes(entry.size)})"
        if self.download_to and not self.offline:
            return f"it is downloaded when a mode needs it, or put {source} into {self.download_to}"
        folder = self.download_to or (self.folders[0] if self.folders else "the folder of the weights")
        return f"download {source} and put it into {show_path(folder)}"

    # -- download

    def _download(self, entry: WeightFile, progress: Progress | None) -> Path:
        if self.offline or self.download_to is None:
            why = "downloads are switched off" if self.offline else "no folder for downloads is set"
            searched = ", ".join(map(show_path, self.folders)) or "no folder"
            raise Refusal(f"{entry.file_name} is not in {searched}, and {why}: {self._get(entry)}.")
        if not _is_address(self.endpoint):
            raise Refusal(
                f"HF_ENDPOINT {self.endpoint!r} is not an address: give one that begins with https://, such as {HUB}."
            )
        target = self.download_to / entry.file_name
        url = entry.url(self.endpoint)

        def accept(part: Path, source: Source) -> None:
            problem = self._diagnose(part, entry)
            if problem:
                raise Refusal(
                    f"What {url} sent {problem}, and was deleted: run again, or set HF_ENDPOINT to another mirror."
                )
            digest = hash_file(part)
            if source.sha256 and digest != source.sha256:
                raise Refusal(
                    f"What {url} sent has the checksum {digest[:12]}..., not {source.sha256[:12]}... as the hub says, "
                    "and was deleted: run again, or set HF_ENDPOINT to another mirror."
                )
            if digest != entry.sha256 and not source.sha256:
                apart = target.with_name(f"{entry.file_name}.unverified")
                part.replace(apart)
                raise Refusal(
                    f"What {url} sent isn't the published {entry.file_name} (its SHA-256 is {digest[:12]}..., not "
                    f"{entry.sha256[:12]}...) and may be damaged: it is kept as {apart}, so rename that to use it all "
                    "the same, or set HF_ENDPOINT to another mirror."
                )
            if digest != entry.sha256:
                logger.warning("%s is not the file known as %s (SHA-256 %s): a re-upload?", url, entry.name, digest)

        logger.info("Downloading %s to %s", url, target)
        Download(url, target, entry.size, timeout=self.timeout).run(accept, progress)
        self._check(target, entry)
        return target


def _look_up(name: str) -> WeightFile:
    entry = WEIGHTS.get(name.removesuffix(SUFFIX))
    if entry is None:
        raise Refusal(f"There is no published file {name!r}: {list_choices(name, WEIGHTS)}.")
    return entry


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and text.isprintable()


def _identify(path: Path) -> Identity:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
