"""What a weight file holds, by its header, so that damage, pickles and mix-ups show first; then its tensors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Source: TypeAlias = "Path | BufferedIOBase"  # of a file's content
Kind = Literal["decoder", "encoder", "attention_sharing", "patches", "other"]

MAX_HEADER = 2**24  # bytes; those of the published files have some 100,000
MAX_AXES = 8  # of a tensor

# fmt: off
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
})
# fmt: on

# Beginnings of what people save as .safetensors by mistake.
_FOREIGN_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "is a PyTorch pickle (.ckpt, .pt or .bin) under another name, which can run code and is not read"),
    (b"\x80", "is a Python pickle (.ckpt or .pt) under another name, which can run code and is not read"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself"),
    (b"GGUF", "is a GGUF file under another name"),
    (b"\x1f\x8b", "is a gzip archive under another name"),
    (b"{", "is a JSON text, such as a download site's error message, not weights"),
)

# What else the keys of a well-formed file can belong to; the first pattern that any key matches counts.
_FOREIGN_KEYS: tuple[tuple[str, str], ...] = (
    (r"^model\.diffusion_model\.", "a Stable Diffusion checkpoint"),
    (r"^control_model\.", "a ControlNet"),
    (r"^(lora_unet_|lora_te)|\.lora_[AB]\.|\.lora\.(up|down)\.", "an ordinary LoRA"),
    (r"^(first_stage_model\.|decoder\.conv_in\.)", "an ordinary VAE"),
    (r"^diffusion_model\.|^down_blocks\.0\.attentions\.0\.transformer_blocks\.", "a UNet"),
)


# Every key of a file of that kind; with the number of keys, a renamed or foreign one shows.
_KEYS: dict[Kind, re.Pattern[str]] = {
    "decoder": re.compile(
        r"((latent_)?conv_in|conv_norm_out|conv_out"
        r"|(down_blocks\.\d|mid_block|up_blocks\.\d)\."
        r"(resnets\.\d\.(norm1|conv1|norm2|conv2|conv_shortcut)|attentions\.\d\.(group_norm|to_q|to_k|to_v|to_out\.0)"
        r"|(down|up)samplers\.0\.conv))\.(weight|bias)"
    ),
    "encoder": re.compile(r"blocks\.\d+\.(weight|bias)"),
    "attention_sharing": re.compile(
        r"hookers\.layers\.\d+\.(to_(q|k|v|out)_lora\.\d+\.(down|up)\.weight"
        r"|temporal_[iqkvon]\.(weight|bias)|control_convs\.\d+\.[02]\.(weight|bias))"
        r"|kwargs_encoder\.blocks_\d\.\d+\.(weight|bias)"
    ),
    "patches": re.compile(r"diffusion_model\.[\w.]+::(lora|diff)::\d"),
}


class UnreadableFileError(Exception):
    """What is wrong with a file, as the rest of a sentence that begins with its path."""


@dataclass(frozen=True)
class Header:
    """Names, shapes, types and places of the tensors in a safetensors file, and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]  # as the format names them, such as F16
    starts: Mapping[str, int]  # of each tensor's bytes in the file, in their order there
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """What a file is for, by its keys and not by its size: small models have the same keys as the published ones."""

    kind: Kind
    frames: int = 0  # attention sharing: images of a set
    control: bool = False  # attention sharing: with a control encoder
    channels: int = 0  # patches: input channels of the first conv
    note: str = ""  # other: what it seems to be

    def __str__(self) -> str:
        match self.kind:
            case "decoder":
                return "a transparent decoder"
            case "encoder":
                return "a transparent encoder"
            case "attention_sharing":
                control = " and a control encoder" if self.control else ""
                return f"attention sharing for {self.frames} frame{'s' * (self.frames != 1)}{control}"
            case "patches":
                return f"weight patches for a UNet with {self.channels} input channels"
            case _:
                return self.note or "none of the LayerDiffusion files"


def read_header(source: Source) -> Header:
    """Read and check the header against the file's length; UnreadableFileError says what is wrong."""
    try:
        with _open(source) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(64)
            _recognise_foreign(start, size)
            length = int.from_bytes(start[:8], "little")
            if length > min(size - 8, MAX_HEADER):
                what = "is cut off" if length <= MAX_HEADER else "has a damaged header"
                raise UnreadableFileError(f"{what} (its header claims {length:,} bytes, the file has {size:,})")
            file.seek(8)
            text = file.read(length)
    except (OSError, ValueError) as error:  # NUL in the name
        raise UnreadableFileError(f"can't be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        shapes = {name: _read_shape(entry["shape"]) for name, entry in entries.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
        starts, end = {}, 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = map(_whole, entry["data_offsets"])
            dtype = _DTYPES.get(dtypes[name])
            if start != end or stop < start or (dtype and stop - start != dtype.itemsize * math.prod(shapes[name])):
                raise ValueError(name)
            starts[name], end = 8 + length + start, stop
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableFileError("has a damaged header") from error
    expected = 8 + length + end
    if size < expected:
        raise UnreadableFileError(f"is cut off ({size:,} of {expected:,} bytes)")
    if size > expected:
        raise UnreadableFileError(f"has a wrong length ({size:,} bytes instead of {expected:,})")
    return Header(shapes, dtypes, starts, metadata)


def read_tensors(source: Source, header: Header) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file one after the other, in memory of their own.

    A mapped file that is cut off later would end the process. UnreadableFileError says what is wrong.
    """
    try:
        with _open(source) as file:
            for name, start in header.starts.items():
                dtype = _DTYPES.get(header.dtypes[name])
                if dtype is None:
                    raise UnreadableFileError(f"holds numbers of the type {header.dtypes[name][:20]!r}, unknown here")
                tensor = torch.empty(header.shapes[name], dtype=dtype)
                file.seek(start)
                content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
                if file.readinto(content) != tensor.nbytes:
                    raise UnreadableFileError("was cut off while it was read")
                yield name, tensor
    except OSError as error:
        raise UnreadableFileError(f"can't be read ({error.strerror or error})") from error


def _open(source: Source) -> AbstractContextManager[BufferedIOBase]:
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def _read_shape(value: Any) -> tuple[int, ...]:
    shape = tuple(map(_whole, value))
    if len(shape) > MAX_AXES:
        raise ValueError(len(shape))
    return shape


def _whole(value: object) -> int:
    """A size or place as the header has it; ValueError when it can't be one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def find_integers(header: Header) -> str | None:
    """A tensor of whole numbers, which no weight is; None if all are floating-point."""
    return next((name for name, dtype in header.dtypes.items() if not dtype.startswith(("F", "BF"))), None)


def is_wide(header: Header, name: str) -> bool:
    """Whether a tensor is in single precision or above, and not of a control encoder."""
    return header.dtypes[name] in ("F32", "F64") and not name.startswith("kwargs_encoder.")


def recognise(header: Header) -> Contents:
    """What the file is for."""
    shapes = header.shapes
    if _side(shapes, "latent_conv_in.weight", 1) == 4 and _side(shapes, "conv_in.weight", 1) == 3:
        return Contents("decoder")
    if _side(shapes, "blocks.0.weight", 1) == 4 and _side(shapes, "blocks.16.weight", 0) == 4:
        return Contents("encoder")
    frames = {
        int(found[1]) for name in shapes if (found := re.match(r"hookers\.layers\.\d+\.to_q_lora\.(\d+)\.", name))
    }
    if frames:
        control = any(name.startswith("kwargs_encoder.") for name in shapes)
        return Contents("attention_sharing", frames=max(frames) + 1, control=control)
    if any(name.count("::") == 2 for name in shapes):
        return Contents("patches", channels=_count_channels(shapes))
    return Contents("other", note=_name_foreign(shapes))


def find_width(header: Header) -> int | None:
    """Channels of the UNet's first level that an attention-sharing file is made for; None for other files."""
    return _side(header.shapes, "hookers.layers.0.to_q_lora.0.down.weight", 1)


def find_stray(header: Header, kind: Kind) -> str | None:
    """A key that no file of this kind has, None if all are known."""
    pattern = _KEYS[kind]
    return next((name for name in header.shapes if not pattern.fullmatch(name)), None)


def _recognise_foreign(start: bytes, size: int) -> None:
    if size == 0:
        raise UnreadableFileError("is empty (0 bytes)")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UnreadableFileError("is a web page, not weights")
    # The second eight bytes of a safetensors file open its JSON header, whatever the first eight happen to be.
    if start[8:9] != b"{":
        for prefix, problem in _FOREIGN_STARTS:
            if start.startswith(prefix):
                raise UnreadableFileError(problem)
    if size < 10:
        raise UnreadableFileError(f"is cut off ({size} bytes)")


def _side(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _count_channels(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Input channels that a patch file gives the UNet's first conv; 4 when it leaves that conv alone."""
    first = "diffusion_model.input_blocks.0.0.weight"
    return _side(shapes, f"{first}::diff::0", 1) or _side(shapes, f"{first}::lora::1", 1) or 4


def _name_foreign(names: Iterable[str]) -> str:
    names = list(names)
    for pattern, what in _FOREIGN_KEYS:
        if any(re.search(pattern, name) for name in names):
            return what
    return "" if names else "an empty file"


def describe_bytes(count: float) -> str:
    """A size as people read it: 2.4 MB, 350 MB, 3.6 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} bytes"
