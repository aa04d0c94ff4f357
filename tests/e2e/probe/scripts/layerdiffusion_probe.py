"""An extension for the end-to-end suite only: it inspects the running WebUI and makes it fail on demand.

`tests/e2e/conftest.py` links it into the WebUI's extensions for as long as the tests run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from modules import script_callbacks, shared
from torch import nn

from lib_layerdiffusion import hosts
from lib_layerdiffusion.transparent_vae import TransparentDecoder

PACKAGE = "lib_layerdiffusion"
RANDOM = "clip_l.transformer.text_projection.weight"  # Forge Neo fills it at random with each load; nothing uses it


def list_networks() -> Iterator[nn.Module]:
    """The loaded checkpoint: one module, or in Forge and its forks three in patchers."""
    model: Any = shared.sd_model
    if isinstance(model, nn.Module):
        yield model
    else:
        objects = model.forge_objects
        yield from (objects.unet.model, objects.vae.first_stage_model, objects.clip.cond_stage_model)


def look_at_model() -> dict[str, Any]:
    """A checksum of all weights, and the names of modules that have a hook or an override of this extension.

    Half precision is widened to float32, which is exact: Forge Neo stores embeddings so from their second use.
    """
    checksum, hooked = 0, []
    for network in list_networks():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith(RANDOM):
                continue
            wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            flat = wide.detach().cpu().contiguous().reshape(-1)
            checksum = zlib.crc32(flat.view(torch.uint8).numpy(), checksum) if flat.numel() else checksum
        hooked += [name for name, module in network.named_modules() if any(map(is_own, list_attached(module)))]
    return {"checksum": checksum, "hooked": hooked}


def list_attached(module: nn.Module) -> Iterator[Any]:
    """Hooks and instance attributes."""
    for value in vars(module).values():
        yield from value.values() if isinstance(value, dict) else (value,)


def is_own(value: Any) -> bool:
    """Whether it is a function of this extension; the embedded checkpoint has modules of its classes."""
    return not isinstance(value, nn.Module) and (getattr(value, "__module__", None) or "").startswith(PACKAGE)


def fail_at(place: str, kind: str, times: int) -> None:
    """Make the next calls of the UNet or the decoder fail, run out of memory, find an interruption, or be opaque."""
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
        if kind == "opaque":
            decoded = before(*args, **kwargs)
            return torch.cat([torch.ones_like(decoded[:, :1]), decoded[:, 1:]], 1)
        raise {
            "error": RuntimeError("a fault, on demand"),
            "memory": torch.cuda.OutOfMemoryError("out of memory, on demand"),
        }[kind]

    setattr(owner, name, failing)


def count_threads() -> int:
    return torch.get_num_threads()


def set_threads(number: int) -> None:
    torch.set_num_threads(number)


def add_routes(_page: Any, app: Any) -> None:
    app.get("/layerdiffusion-probe/model")(look_at_model)
    app.post("/layerdiffusion-probe/fail")(fail_at)
    app.get("/layerdiffusion-probe/threads")(count_threads)
    app.post("/layerdiffusion-probe/threads")(set_threads)
    app.post("/layerdiffusion-probe/reload")(shared.state.request_restart)


script_callbacks.on_app_started(add_routes)
