"""Reads and writes the adjusted latent of one RGBA image as a .safetensors file that says what it is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lib_layerdiffusion.export import whole_file
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights.header import UnreadableFileError, read_header

FORMAT = "layerdiffusion latent, VAE space"
LATENT_SIDE_LIMIT = 2048  # of the latent: 16384 pixels


@dataclass(frozen=True)
class LatentFile:
    """An adjusted latent [1, 4, h, w] in VAE space and the (width, height) of the image that it holds."""

    latent: Tensor
    width: int
    height: int
    model: str = ""

    def to_bytes(self) -> bytes:
        """The content of the file, in float32."""
        about = {"format": FORMAT, "width": str(self.width), "height": str(self.height), "model": self.model}
        return save({"latent": self.latent.detach().float().cpu().contiguous()}, metadata=about)

    def save(self, path: Path) -> None:
        """Write the file; it appears whole or not at all."""
        with whole_file(path) as file:
            file.write(self.to_bytes())


def read_latent(path: str | os.PathLike[str]) -> LatentFile:
    """Read a file that `LatentFile.save` wrote, or refuse with what is wrong with it."""
    path = Path(path)
    cure = "make one with `layerdiffusion encode`"
    if not path.is_file():
        raise Refusal(f"There is no latent file at {path}; {cure}.")
    try:
        read_header(path)
        with safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata() or {}
            latent: Tensor | None = file.get_tensor("latent") if "latent" in file.keys() else None  # noqa: SIM118
            if latent is not None:  # narrow types, such as float8, can't be computed with
                latent = latent.float() if latent.is_floating_point() else None
    except UnreadableFileError as problem:
        raise Refusal(f"{path} {problem}; {cure}.") from problem
    except (SafetensorError, OSError, AttributeError) as error:  # AttributeError: a type that this torch doesn't know
        raise Refusal(f"{path} isn't a readable .safetensors file; {cure}.") from error
    if latent is None or about.get("format") != FORMAT:
        raise Refusal(f"{path} doesn't hold a LayerDiffusion latent; {cure}.")
    if (
        latent.ndim != 4
        or latent.shape[:2] != (1, 4)
        or not 1 <= min(latent.shape[2:]) <= max(latent.shape[2:]) <= LATENT_SIDE_LIMIT
    ):
        raise Refusal(f"The latent in {path} has the shape {tuple(latent.shape)} instead of (1, 4, h, w); {cure}.")
    if not torch.isfinite(latent).all():
        raise Refusal(f"The latent in {path} holds NaN or infinite values; {cure}.")
    height, width = (
        _size(about, name, 8 * side) for name, side in (("height", latent.shape[2]), ("width", latent.shape[3]))
    )
    return LatentFile(latent, width, height, about.get("model", ""))


def _size(about: dict[str, str], name: str, whole: int) -> int:
    """Read the image's side from the metadata; what is absent or impossible means the whole latent."""
    text = about.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,6}", text) and 1 <= int(text) <= whole else whole
