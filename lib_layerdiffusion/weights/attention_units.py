"""Reads the attention-sharing format of the published `layer_sd15_*` files into units and their control encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import (
    ATTENTION_ORDER,
    CONTROL_CHANNELS,
    AttentionSharingUnit,
    ControlEncoder,
    ControlWidths,
    known_widths,
)

UNITS_PREFIX = "hookers.layers."
CONTROL_PREFIX = "kwargs_encoder."


def read_units(
    state: Mapping[str, Tensor], attentions: Sequence[nn.Module]
) -> tuple[list[AttentionSharingUnit], ControlEncoder | None]:
    """Make the units of an attention-sharing file, in the order of ATTENTION_ORDER, and its control encoder if any.

    Frames, rank, control and all widths are read from the file; the tensors are used as they are, without a copy, and
    need no gradient. Refuses a UNet that isn't of SD1.5's structure or width, and a file with missing, left-over or
    misshapen tensors.
    """
    if not any(key.startswith(UNITS_PREFIX) for key in state):
        raise Refusal(
            f"This file has no {UNITS_PREFIX}* tensors, so it isn't an attention-sharing file: "
            "take one of the layer_sd15_* files of the layer mode."
        )
    if len(attentions) != len(ATTENTION_ORDER):
        raise Refusal(
            f"The loaded UNet has {len(attentions)} attention modules and the attention-sharing file is made for the "
            f"{len(ATTENTION_ORDER)} of Stable Diffusion 1.5: load an SD1.5 checkpoint or choose a mode of its family."
        )
    widths = _read_control_widths(state)
    with torch.device("meta"):
        units = [_shape_unit(state, index, attention, widths) for index, attention in enumerate(attentions)]
        control = ControlEncoder(widths) if widths else None
    expected = {
        f"{UNITS_PREFIX}{index}.{key}": value.shape
        for index, unit in enumerate(units)
        for key, value in unit.state_dict().items()
    }
    if control is not None:
        expected |= {f"{CONTROL_PREFIX}{key}": value.shape for key, value in control.state_dict().items()}
    _check_state(state, expected)
    for index, unit in enumerate(units):
        _fill(unit, state, f"{UNITS_PREFIX}{index}.")
    if control is not None:
        _fill(control, state, CONTROL_PREFIX)
    return units, control


def _read_control_widths(state: Mapping[str, Tensor]) -> ControlWidths | None:
    """Widths of the file's control encoder, narrower than the published one's where the UNet is; None without one."""
    if not any(key.startswith(CONTROL_PREFIX) for key in state):
        return None
    names = [f"{CONTROL_PREFIX}blocks_0.{layer}.weight" for layer in (0, 4, 8, 12)]
    missing = [name for name in names if name not in state]
    if missing:
        raise Refusal(f"The attention-sharing file lacks {_name_some(missing)}: download it again.")
    for name in names:
        if state[name].ndim != 4 or 0 in state[name].shape:
            raise Refusal(
                f"{name} of the attention-sharing file is {list(state[name].shape)} and should be a convolution: "
                "download it again."
            )
    first, second, third, fourth = (state[name].shape[0] for name in names)
    return first, second, third, fourth


def _shape_unit(
    state: Mapping[str, Tensor], index: int, attention: nn.Module, control: ControlWidths | None
) -> AttentionSharingUnit:
    """A unit without numbers, of the file's frames, rank and widths, which must be the attention module's."""
    prefix = f"{UNITS_PREFIX}{index}."
    frames = 0
    while f"{prefix}to_q_lora.{frames}.down.weight" in state:
        frames += 1
    first = f"{prefix}to_q_lora.0.down.weight"
    missing = [key for key in (first, f"{prefix}to_k_lora.0.down.weight") if key not in state]
    if missing:
        raise Refusal(f"The attention-sharing file lacks {missing[0]}: download it again.")
    rank, hidden = _two_sizes(state, first)
    _, context = _two_sizes(state, f"{prefix}to_k_lora.0.down.weight")
    own = known_widths(attention)
    if any(size is not None and size != wanted for size, wanted in zip(own, (hidden, context), strict=True)):
        raise Refusal(
            f"The attention-sharing file is made for widths {hidden} and {context} in {ATTENTION_ORDER[index]}, "
            f"and the loaded UNet has {own[0]} and {own[1]}: load a checkpoint of the file's family (SD1.5 "
            "for layer_sd15_*), or choose a mode of the checkpoint's."
        )
    channels = control[-1] if control else CONTROL_CHANNELS
    return AttentionSharingUnit(attention, frames, control is not None, rank, (hidden, context), channels)


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    missing = [key for key in expected if key not in state]
    if missing:
        raise Refusal(f"The attention-sharing file lacks {_name_some(missing)}: download it again.")
    extra = [key for key in state if key not in expected]
    if extra:
        raise Refusal(
            f"The attention-sharing file has {_name_some(extra)}, which no layer mode knows: take the published file."
        )
    for key, shape in expected.items():
        if state[key].shape != shape:
            raise Refusal(
                f"{key} of the attention-sharing file is {list(state[key].shape)} and should be {list(shape)}: "
                "take the published file, and a checkpoint of its family."
            )


def _name_some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 1} more tensors" if len(keys) > 1 else ""
    return f"{keys[0]}{more}"


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    own = {key: state[f"{prefix}{key}"] for key in module.state_dict()}
    module.load_state_dict(own, assign=True)
    module.requires_grad_(False).eval()


def _two_sizes(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    shape = state[key].shape
    if len(shape) != 2 or 0 in shape:
        raise Refusal(
            f"{key} of the attention-sharing file is {list(shape)} and should be a matrix: download it again."
        )
    return shape[0], shape[1]
