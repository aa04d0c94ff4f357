"""Reads the patch format of the published `layer_xl_*` files: low-rank and full changes of a UNet's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from lib_layerdiffusion.refusal import Refusal

FILE_PREFIX = "diffusion_model."
LORA_PARTS = ("up", "down", "alpha", "mid", "dora")


@dataclass(frozen=True)
class LoraPatch:
    """Low-rank change of a weight: alpha / rank * (up @ down), in the weight's shape; without alpha the factor is 1."""

    up: Tensor  # [out, rank]
    down: Tensor  # [rank, in], or [rank, in, kernel, kernel]
    alpha: float | None = None
    mid: Tensor | None = None  # [rank, rank, kernel, kernel] between them, for convolutions
    dora: Tensor | None = None  # refused

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]


@dataclass(frozen=True)
class DiffPatch:
    """Full change of a parameter; of the first convolution it may have more input channels than the model."""

    delta: Tensor


Patch: TypeAlias = "LoraPatch | DiffPatch"
Patches: TypeAlias = "Mapping[str, LoraPatch | DiffPatch]"


def parse_patches(state: Mapping[str, Tensor]) -> dict[str, Patch]:
    """Read `diffusion_model.<parameter>::<lora or diff>::<index>` tensors to patches by LDM parameter name.

    The format of the published `layer_xl_*` files. Refusal when a key is of another kind or a part is missing.
    """
    parts: dict[str, dict[tuple[str, str], Tensor]] = {}
    for key, tensor in state.items():
        name, kind, index = key.split("::") if key.count("::") == 2 else ("", "", "")
        known = (kind, index) == ("diff", "0") or (kind == "lora" and index in {"0", "1", "2", "3", "4"})
        if not name.startswith(FILE_PREFIX) or not known:
            raise Refusal(
                f"{key!r} isn't a patch of a UNet ({FILE_PREFIX}...::lora::0 or ::diff::0), so this isn't a layer_xl_* "
                "file: take the file that the layer mode names."
            )
        parts.setdefault(name.removeprefix(FILE_PREFIX), {})[kind, index] = tensor
    if not parts:
        raise Refusal("The patch file is empty: download it again.")
    return {name: _make_patch(name, tensors) for name, tensors in parts.items()}


def _make_patch(name: str, tensors: Mapping[tuple[str, str], Tensor]) -> Patch:
    if ("diff", "0") in tensors:
        if len(tensors) > 1:
            raise Refusal(f"The patch file changes {name} both by lora and by diff: download it again.")
        return DiffPatch(tensors["diff", "0"])
    given = {part: tensors[key] for index, part in enumerate(LORA_PARTS) if (key := ("lora", str(index))) in tensors}
    missing = [part for part in ("up", "down") if part not in given]
    if missing:
        raise Refusal(f"The patch file lacks the {missing[0]} factor of {name}: download it again.")
    alpha = given.pop("alpha", None)
    return LoraPatch(**given, alpha=None if alpha is None else float(alpha))  # pyright: ignore[reportArgumentType]
