"""The second part of the probe: a user's LoRA and layer patches, as the WebUI computes them and merged by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from modules import script_callbacks, shared
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_layerdiffusion import hosts, injection

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from tests.e2e.forge_parity import differ, make_diff, make_lora, multiply_out

STRENGTH = 0.8

Changes: TypeAlias = "Iterable[tuple[str, Tensor]]"
"""What is added to the parameters of these names."""


class Captured:
    """A call of the UNet while a LoRA was on: its arguments, its output, and that with a side path as well."""

    arguments: tuple[Any, Any] = ((), {})
    lora: Any = None
    lora_and_patches: Any = None


def capture() -> None:
    """Call the UNet a second time, with a side path, when it is next called."""
    unet = hosts.detect()(shared.sd_model).unet
    before = unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        del unet.forward
        Captured.arguments = args, kwargs
        Captured.lora = before(*args, **kwargs)
        with injection.side_path(unet, make_patches(unet), STRENGTH):
            Captured.lora_and_patches = unet(*args, **kwargs)
        return Captured.lora

    unet.forward = forward


def compare(lora: str) -> dict[str, float]:
    """Repeat that call with the LoRA off and both added to the weights by hand: the relative differences."""
    unet = hosts.detect()(shared.sd_model).unet
    args, kwargs = Captured.arguments
    with torch.inference_mode():
        plain = unet(*args, **kwargs)
        with added(unet, read_lora(Path(lora), unet)):
            merged_lora = unet(*args, **kwargs)
            patches = make_patches(unet).items()
            with added(unet, ((name, STRENGTH * multiply_out(patch)) for name, patch in patches)):
                merged_both = unet(*args, **kwargs)
    return {
        "lora": differ(Captured.lora, merged_lora),
        "lora and patches": differ(Captured.lora_and_patches, merged_both),
        "effect of the lora": differ(plain, merged_lora),
        "effect of the patches": differ(merged_lora, merged_both),
    }


def make_patches(unet: nn.Module) -> injection.Patches:
    """Low-rank patches of all attentions, full ones of the middle block."""
    middle = {name: patch for name, patch in make_diff(unet).items() if name.startswith("middle_block.")}
    return {**make_lora(unet), **middle}


def read_lora(path: Path, unet: nn.Module) -> Changes:
    state = load_file(path)
    for name, parameter in unet.named_parameters():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{key}.lora_up.weight" in state:
            up, down = (state[f"{key}.lora_{part}.weight"].float().flatten(1) for part in ("up", "down"))
            yield name, (up @ down).reshape(parameter.shape)


@contextmanager
def added(unet: nn.Module, changes: Changes) -> Iterator[None]:
    before: dict[str, Tensor] = {}
    try:
        for name, change in changes:
            parameter = unet.get_parameter(name)
            before[name] = parameter.data
            parameter.data = (before[name].float() + change.float()).to(before[name].dtype)
        yield
    finally:
        for name, data in before.items():
            unet.get_parameter(name).data = data


def add_routes(_page: Any, app: Any) -> None:
    app.post("/layerdiffusion-probe/capture")(capture)
    app.post("/layerdiffusion-probe/compare")(compare)


script_callbacks.on_app_started(add_routes)
