"""The self-test behind `layerdiffusion doctor` and a WebUI's: what is found, missing or damaged, and the cure."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lib_layerdiffusion.version import __version__
from lib_layerdiffusion.weights import WeightStore
from lib_layerdiffusion.weights.header import UnreadableFileError, describe_bytes, read_header

REQUIRED = ("torch", "numpy", "pillow", "safetensors")
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
OPTIONAL = ("diffusers", "transformers", "tqdm", "accelerate")
EMBEDDED_FILES = (
    "model_index.json",
    "captions.json",
    "backgrounds.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "scheduler/scheduler_config.json",
    "layer_model/layer_sd15_transparent_attn.safetensors",
    "layer_model/layer_sd15_joint.safetensors",
    "layer_model/layer_sd15_fg2bg.safetensors",
    "layer_model/layer_sd15_bg2fg.safetensors",
    "layer_model/layer_sd15_vae_transparent_decoder.safetensors",
    "layer_model/layer_sd15_vae_transparent_encoder.safetensors",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: a state ("ok", "absent" or "broken"), a subject, and a cure where there is one."""

    state: str
    subject: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.state:7} {self.subject}" + (f" -> {self.cure}" if self.cure else "")


def examine(store: WeightStore, embedded: Path) -> Iterator[Finding]:
    """Look at everything that a generation with diffusers needs; "broken" is what stops one."""
    yield from examine_installation()
    yield from _examine_diffusers()
    yield from examine_machine()
    yield from _examine_embedded(embedded)
    yield from examine_weights(store)


def examine_installation() -> Iterator[Finding]:
    """Versions of this package, of Python and of what the package can't do without."""
    yield Finding("ok", f"lib_layerdiffusion {__version__}, Python {platform.python_version()}, {platform.platform()}")
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        yield Finding("broken", "this Python is not one of 3.10 to 3.13", "use one of them")
    for package in REQUIRED:
        found = find_version(package)
        cure = "" if found else f"pip install {package}"
        yield Finding("ok" if found else "broken", f"{package} {found or 'is missing'}", cure)
    found = find_version(*OPENCV)
    cure = "" if found else f"pip install {OPENCV[0]}"
    yield Finding("ok" if found else "broken", f"opencv {found or 'is missing'}", cure)


def find_version(*names: str) -> str | None:
    """Version of the first of these packages that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203 a handful of names
            continue
    return None


def _examine_diffusers() -> Iterator[Finding]:
    for package in OPTIONAL:
        found = find_version(package)
        cure = "" if found else f"pip install {package}"
        yield Finding("ok" if found else "absent", f"{package} {found or 'is not installed'}", cure)
    found = find_version("diffusers")
    yield (
        Finding("ok", f"host: diffusers {found}")
        if found
        else Finding("broken", "host: none found", "pip install diffusers transformers")
    )


def examine_machine() -> Iterator[Finding]:
    """Processor, memory and devices."""
    total = memory_bytes()
    memory = f"{total / 2**30:.1f} GiB of memory" if total else "memory unknown"
    yield Finding("ok", f"{os.cpu_count() or 1} CPU cores, {memory}")
    if find_version("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding("ok", f"device cuda:{index}: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "device mps")
    else:
        yield Finding("ok", f"device cpu, {torch.get_num_threads()} threads (no GPU that torch can use)")


def memory_bytes() -> int | None:
    """Read the machine's memory in bytes; None where the system doesn't say."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _windows_memory() -> int | None:
    """Ask GlobalMemoryStatusEx, whose structure is two 32-bit and seven 64-bit numbers."""

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("numbers", ctypes.c_uint64 * 7)]

    status = Status(length=ctypes.sizeof(Status))
    found = getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # noqa: B009 absent elsewhere
    return status.numbers[0] if found else None


def _examine_embedded(folder: Path) -> Iterator[Finding]:
    problems = [f"{name} {problem}" for name in EMBEDDED_FILES if (problem := _diagnose(folder / name))]
    for problem in problems:
        yield Finding("broken", f"embedded model: {problem}", f"install the package again ({folder})")
    if not problems:
        yield Finding("ok", f"embedded model in {folder}")


def _diagnose(path: Path) -> str:
    """Say what is wrong with a file, "" when nothing is."""
    if not path.is_file():
        return "is missing"
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except UnreadableFileError as problem:
            return str(problem)
    return ""


def examine_weights(store: WeightStore, unfit: Mapping[str, str] = MappingProxyType({})) -> Iterator[Finding]:
    """Where layer files are looked for, and the state of each.

    `unfit`: the files that can't be used with the loaded checkpoint, and why, in place of how to get them.
    """
    folders = ", ".join(str(folder) for folder in store.folders)
    yield Finding("ok", f"layer weights are looked for in {folders}{', and never downloaded' if store.offline else ''}")
    states = {"found": "ok", "missing": "absent", "damaged": "broken"}
    for row in store.check():
        yield Finding(
            states[row.state], f"{row.name}: {row.state} ({describe_bytes(row.size)})", unfit.get(row.name, row.cure)
        )
