"""An extension for the end-to-end suite only: looks into the running WebUI and makes it fail on demand.

`tests.e2e.server` links it into the WebUI's extensions for as long as its server runs.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import script_callbacks, shared
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_layerdiffusion import hosts, injection
from lib_layerdiffusion.transparent_vae import TransparentDecoder

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # for `tests`

OURS = "lib_layerdiffusion"
STRENGTH = 0.8


def list_networks() -> Iterator[nn.Module]:
    """The loaded checkpoint: one module, or in Forge and its kin three in patchers."""
    model: Any = shared.sd_model
    if isinstance(model, nn.Module):
        yield model
    else:
        objects = model.forge_objects
        yield from (objects.unet.model, objects.vae.first_stage_model, objects.clip.cond_stage_model)


def look_at_model() -> dict[str, Any]:
    """A checksum of all weights, and the names of modules on which something of ours hangs."""
    checksum, left = 0, []
    for network in list_networks():
        for tensor in (*network.parameters(), *network.buffers()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            checksum = zlib.crc32(flat.view(torch.uint8).numpy(), checksum) if flat.numel() else checksum
        left += [name for name, module in network.named_modules() if any(map(is_ours, list_attached(module)))]
    return {"checksum": checksum, "left": left}


def list_attached(module: nn.Module) -> Iterator[Any]:
    """Hooks and instance attributes."""
    for value in vars(module).values():
        yield from value.values() if isinstance(value, dict) else (value,)


def is_ours(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").startswith(OURS)


def fail_at(place: str, kind: str, times: int) -> None:
    """Let the next calls of the UNet or of the decoder fail, run out of memory, or find an interruption."""
    owner, name = {
        "sampling": (hosts.detect()(shared.sd_model).unet, "forward"),
        "decoding": (TransparentDecoder, "decode"),
    }[place]
    own = vars(owner).get(name)
    before: Callable[..., Any] = getattr(owner, name)
    left = times

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        if kind == "interrupt":
            shared.state.interrupt()
            return before(*args, **kwargs)
        raise {"error": RuntimeError, "memory": torch.cuda.OutOfMemoryError}[kind]("can't allocate, on demand")

    setattr(owner, name, failing)


class Captured:
    """A call of the UNet while a user's LoRA was on: its arguments, its output, and that with a side path as well."""

    arguments: tuple[Any, Any] = ((), {})
    plain: Tensor | None = None
    ours: Tensor | None = None


def capture() -> None:
    """Call the UNet a second time, with a side path, when it is next called."""
    unet = hosts.detect()(shared.sd_model).unet
    before = unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        del unet.forward
        Captured.arguments = args, kwargs
        Captured.plain = before(*args, **kwargs)
        with injection.side_path(unet, make_patches(unet), STRENGTH):
            Captured.ours = unet(*args, **kwargs)
        return Captured.plain

    unet.forward = forward


def compare_merged(lora: str) -> dict[str, float]:
    """Repeat that call without LoRA or side path, both added to the weights by hand: the relative differences."""
    unet = hosts.detect()(shared.sd_model).unet
    args, kwargs = Captured.arguments
    with torch.inference_mode():
        without = unet(*args, **kwargs)
        with added(unet, read_lora(lora, unet)):
            alone = unet(*args, **kwargs)
            with added(unet, {name: STRENGTH * full(patch) for name, patch in make_patches(unet).items()}):
                both = unet(*args, **kwargs)
    return {
        "lora": differ(Captured.plain, alone),
        "lora and side path": differ(Captured.ours, both),
        "of the side path": differ(alone, both),
        "of the call without LoRA": differ(without, both),
    }


def make_patches(unet: nn.Module) -> injection.Patches:
    """Low-rank patches of all attentions, full ones of the middle block."""
    from tests.e2e.forge_parity import make_diff, make_lora

    middle = {name: patch for name, patch in make_diff(unet).items() if name.startswith("middle_block.")}
    return {**make_lora(unet), **middle}


def full(patch: injection.Patch) -> Tensor:
    return patch.delta if isinstance(patch, injection.DiffPatch) else patch.scale * patch.up @ patch.down


def read_lora(path: str, unet: nn.Module) -> dict[str, Tensor]:
    """What a LoRA file changes in each of the UNet's weights."""
    state, changes = load_file(path), {}
    for name, parameter in unet.named_parameters():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{key}.lora_up.weight" in state:
            up, down = (state[f"{key}.lora_{part}.weight"].float().flatten(1) for part in ("up", "down"))
            changes[name] = (up @ down).reshape(parameter.shape)
    return changes


@contextmanager
def added(unet: nn.Module, changes: dict[str, Tensor]) -> Iterator[None]:
    """Add to the weights themselves, as long as the block lasts."""
    before = {name: unet.get_parameter(name).data for name in changes}
    for name, change in changes.items():
        unet.get_parameter(name).data = (before[name].float() + change.float()).to(before[name].dtype)
    try:
        yield
    finally:
        for name, data in before.items():
            unet.get_parameter(name).data = data


def differ(value: Any, expected: Any) -> float:
    return float((value - expected).norm() / expected.norm())


def add_routes(_page: Any, app: Any) -> None:
    app.get("/layerdiffusion-probe/model")(look_at_model)
    app.post("/layerdiffusion-probe/fail")(fail_at)
    app.post("/layerdiffusion-probe/capture")(capture)
    app.post("/layerdiffusion-probe/compare")(compare_merged)
    app.post("/layerdiffusion-probe/reload")(shared.state.request_restart)


script_callbacks.on_app_started(add_routes)
