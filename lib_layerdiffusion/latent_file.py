"""Reads and writes the adjusted latent of one RGBA image as a .safetensors file that says what it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lib_layerdiffusion.export import whole_file
from lib_layerdiffusion.refusal import Refusal, using_path
from lib_layerdiffusion.weights.header import UnreadableFileError, read_header, read_tensors

FORMAT = "layerdiffusion latent, VAE space"
CURE = "make one with `layerdiffusion encode`"
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


def read_latent(source: str | os.PathLike[str] | BufferedIOBase, name: str = "", cure: str = CURE) -> LatentFile:
    """Read a file that `LatentFile.save` wrote, by its path or open, or refuse with what is wrong with it.

    `name` and `cure`: of the sentence, where it isn't about a path.
    """
    if isinstance(source, str | os.PathLike):
        source = Path(source)
        name = str(source)
        with using_path(source):
            if not source.is_file():
                raise Refusal(f"There is no latent file at {name[:200]}; {cure}.")
    try:
        header = read_header(source)
        shape = header.shapes.get("latent", ())
        whole_numbers = not header.dtypes.get("latent", "").startswith(("F", "BF"))
        if whole_numbers or header.metadata.get("format") != FORMAT or len(header.shapes) > 1:
            raise Refusal(f"{name} doesn't hold a LayerDiffusion latent; {cure}.")
        if len(shape) != 4 or shape[:2] != (1, 4) or not 1 <= min(shape[2:]) <= max(shape[2:]) <= LATENT_SIDE_LIMIT:
            raise Refusal(f"The latent in {name} has the shape {shape} instead of (1, 4, h, w); {cure}.")
        ((_, latent),) = read_tensors(source, header)
    except UnreadableFileError as problem:
        raise Refusal(f"{name} {problem}; {cure}.") from problem
    latent = latent.float()  # narrow types, such as float8, can't be computed with
    if not torch.isfinite(latent).all():
        raise Refusal(f"The latent in {name} holds NaN or infinite values; {cure}.")
    about = header.metadata
    height, width = (_size(about, name, 8 * side) for name, side in (("height", shape[2]), ("width", shape[3])))
    return LatentFile(latent, width, height, about.get("model", ""))


def _size(about: Mapping[str, str], name: str, whole: int) -> int:
    """Read the image's side from the metadata; what is absent or impossible means the whole latent."""
    text = about.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,6}", text) and 1 <= int(text) <= whole else whole
