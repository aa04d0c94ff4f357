"""The three primitives on a small UNet: the same numbers as changed weights, and nothing left behind."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib_layerdiffusion import injection
from lib_layerdiffusion.injection import (
    LowRankChange,
    Resident,
    posterior,
    shared_attention,
    side_path,
    timestep_window,
)
from lib_layerdiffusion.joining import Room
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import AttentionSharingUnit
from lib_layerdiffusion.weights.patches import DiffPatch, LoraPatch, Patch, parse_patches

diffusers = pytest.importorskip("diffusers")
STRENGTH = 0.7


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def call(unet: nn.Module, x: Tensor, timestep: int = 5) -> Tensor:
    context = torch.randn(len(x), 7, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(x, torch.tensor(timestep), context).sample


def snapshot(unet: nn.Module) -> tuple[dict[str, Tensor], list[int], list[bool]]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules()]
    return (
        {k: v.clone() for k, v in unet.state_dict().items()},
        hooks,
        ["forward" in m.__dict__ for m in unet.modules()],
    )


def assert_untouched(unet: nn.Module, before: tuple[dict[str, Tensor], list[int], list[bool]]) -> None:
    after = snapshot(unet)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())


def change_everything(unet: nn.Module) -> tuple[dict[str, Patch], nn.Module]:
    """A patch for every parameter, low-rank and full mixed, with a widened first conv; and a copy with them merged."""
    torch.manual_seed(2)
    merged = deepcopy(unet)
    wide = nn.Conv2d(8, 16, 3, padding=1)
    patches: dict[str, Patch] = {}
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :4] = merged.conv_in.weight
        wide.bias.copy_(merged.conv_in.bias)
        merged.conv_in = wide
        for name, parameter in merged.named_parameters():
            if parameter.ndim == 2 and "attn" in name:
                up, down = torch.randn(parameter.shape[0], 4) * 0.1, torch.randn(4, parameter.shape[1]) * 0.1
                patches[name], delta = LoraPatch(up, down, alpha=2.0), 0.5 * up @ down
            elif name.endswith("resnets.0.conv1.weight"):
                up = torch.randn(parameter.shape[0], 3, 1, 1) * 0.1
                mid, down = torch.randn(3, 3, 3, 3) * 0.1, torch.randn(3, parameter.shape[1], 1, 1) * 0.1
                patches[name] = LoraPatch(up, down, mid=mid)
                delta = torch.einsum("or,rqhw,qi->oihw", up.flatten(1), mid, down.flatten(1))
            elif name.endswith("resnets.0.conv2.weight"):
                up, down = torch.randn(parameter.shape[0], 4) * 0.1, torch.randn(4, *parameter.shape[1:]) * 0.1
                patches[name], delta = LoraPatch(up, down), (up @ down.flatten(1)).reshape(parameter.shape)
            else:
                delta = torch.randn_like(parameter) * 0.05
                patches[name] = DiffPatch(delta.clone())
            parameter.add_(STRENGTH * delta)
    return patches, merged


def test_side_path_equals_merged_weights(unet: nn.Module) -> None:
    patches, merged = change_everything(unet)
    x, concat = torch.randn(4, 4, 8, 24), torch.randn(2, 4, 8, 24)
    wanted = call(merged, torch.cat([x, concat.repeat(2, 1, 1, 1)], dim=1))
    plain, before = call(unet, x), snapshot(unet)
    with side_path(unet, patches, STRENGTH, concat=concat) as live:
        output = call(unet, x)
        live.strength = 0
        assert torch.equal(call(unet, x), plain)
    assert live.matched == len(patches)
    assert (output - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (wanted - plain).abs().max() > 0.1
    assert_untouched(unet, before)
    assert torch.equal(call(unet, x), plain)


class Copies(TorchDispatchMode):
    """Counts the tensors that are copied to another device or dtype."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_patches_are_brought_to_the_model_once(unet: nn.Module) -> None:
    """A patch file of gigabytes isn't to be copied to the GPU in each step."""
    patches, _ = change_everything(unet)
    half = {
        name: type(patch)(**{k: v.half() if isinstance(v, torch.Tensor) else v for k, v in vars(patch).items()})
        for name, patch in patches.items()
    }
    x, copies = torch.randn(1, 4, 8, 8), []
    with side_path(unet, half, STRENGTH, concat=torch.randn(1, 4, 8, 8)), torch.inference_mode():
        for _ in range(2):
            with Copies() as mode:
                call(unet, x)
            copies.append(mode.count)
    assert copies[0] - copies[1] >= len(patches)


def test_exception_leaves_nothing_behind(unet: nn.Module) -> None:
    patches, before = {"conv_in.bias": DiffPatch(torch.ones(16))}, snapshot(unet)
    unit = AttentionSharingUnit(unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1"), 1, rank=2)
    units = {"mid_block.attentions.0.transformer_blocks.0.attn1": unit}
    with pytest.raises(RuntimeError, match="sampler"), side_path(unet, patches, 1.0), shared_attention(unet, units):
        raise RuntimeError("sampler")
    assert_untouched(unet, before)


def interrupt_undoing(place: int) -> Any:
    """A trace function that raises KeyboardInterrupt, once, at that line of what is undone."""
    left = [place]

    def trace_lines(frame: Any, event: str, _given: Any) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace_lines

    return lambda frame, _event, _given: trace_lines if frame.f_code.co_name in ("undo", "remove", "release") else None


def test_ctrl_c_in_the_undoing_leaves_nothing_behind(unet: nn.Module) -> None:
    """At each line of it: the rest is undone, too, and the interrupt arrives."""
    before, name = snapshot(unet), "mid_block.attentions.0.transformer_blocks.0.attn1"
    patch = DiffPatch(torch.zeros_like(unet.get_parameter("conv_out.weight")))
    units = {name: AttentionSharingUnit(unet.get_submodule(name), 1, rank=2)}
    interrupted = 0
    for place in range(1, 200):
        try:
            with (
                side_path(unet, {"conv_out.weight": patch}, STRENGTH),
                shared_attention(unet, units),
                timestep_window(unet, 9, 0),
            ):
                sys.settrace(interrupt_undoing(place))
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(None)
        assert_untouched(unet, before)
    assert interrupted > 10


def test_other_hooks_compose(unet: nn.Module) -> None:
    """A user's own hook on the same layer sees and keeps its effect, whoever leaves first."""
    x = torch.randn(1, 4, 8, 8)
    own = unet.get_submodule("conv_in").register_forward_hook(lambda _m, _i, output: output + 1)
    try:
        with_own = call(unet, x)
        with side_path(unet, {"conv_in.bias": DiffPatch(torch.full((16,), 2.0))}, 0.5):
            both = call(unet, x)
        assert torch.equal(call(unet, x), with_own)
    finally:
        own.remove()
    shifted = deepcopy(unet)
    with torch.no_grad():
        shifted.get_submodule("conv_in").bias.add_(2)
    assert torch.allclose(both, call(shifted, x), atol=1e-5)


def trained_unit(attention: nn.Module, frames: int = 1) -> AttentionSharingUnit:
    torch.manual_seed(3)
    unit = AttentionSharingUnit(attention, frames, rank=2)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return unit.requires_grad_(False)


def test_shared_attention_weight_and_window(unet: nn.Module) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    unit = trained_unit(unet.get_submodule(name), frames=2)
    keys = set(unit.state_dict())
    x = torch.randn(4, 4, 8, 16)
    plain = call(unet, x)
    with (
        timestep_window(unet, 800, 400) as window,
        shared_attention(unet, {name: unit}, active=lambda: window.active) as live,
    ):
        inside, below, above = (call(unet, x, timestep) for timestep in (400, 399, 801))
        live.weight = 0
        weightless = call(unet, x, 600)
    assert set(unit.state_dict()) == keys
    assert not torch.allclose(inside, call(unet, x, 400), atol=1e-4)
    assert torch.allclose(weightless, call(unet, x, 600), atol=1e-5)
    assert torch.equal(below, call(unet, x, 399))
    assert torch.equal(above, call(unet, x, 801))
    assert torch.equal(call(unet, x), plain)


def test_posterior_is_replaced_and_restored() -> None:
    vae = nn.Module()
    vae.quant_conv = nn.Conv2d(8, 8, 1)
    x = torch.randn(1, 8, 2, 2)
    plain = vae.quant_conv(x)
    with posterior(vae, lambda moments: moments * 2):
        assert torch.equal(vae.quant_conv(x), plain * 2)
    assert torch.equal(vae.quant_conv(x), plain)
    with pytest.raises(Refusal, match="quant_conv"), posterior(nn.Module(), lambda moments: moments):
        pass


@pytest.mark.parametrize(
    ("patches", "sentence"),
    [
        ({"conv_in.gone": DiffPatch(torch.zeros(16))}, "1 of the 1 parameters"),
        ({"input_blocks.4.1.transformer_blocks.1.attn1.to_q.weight": DiffPatch(torch.zeros(1))}, "made for SDXL"),
        ({"conv_in.bias": DiffPatch(torch.zeros(17))}, "is of shape"),
        ({"conv_in.weight": DiffPatch(torch.zeros(16, 8, 3, 3))}, "condition of 4 channels and none"),
        ({"conv_in.bias": LoraPatch(torch.zeros(16, 1), torch.zeros(1, 1))}, "can't be changed"),
        ({"conv_in.weight": LoraPatch(torch.zeros(16, 2), torch.zeros(2, 4, 3, 3), dora=torch.ones(1))}, "DoRA"),
        ({}, "0 of the 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_hooked(
    unet: nn.Module, patches: dict[str, Patch], sentence: str
) -> None:
    before = snapshot(unet)
    with pytest.raises(Refusal, match=sentence), side_path(unet, patches, 1.0):
        pass
    assert_untouched(unet, before)


def test_condition_without_widened_conv_is_refused(unet: nn.Module) -> None:
    patches: dict[str, Patch] = {"conv_in.bias": DiffPatch(torch.zeros(16))}
    with (
        pytest.raises(Refusal, match="takes no condition"),
        side_path(unet, patches, 1.0, concat=torch.zeros(1, 4, 8, 8)),
    ):
        pass


def test_condition_of_another_size_is_refused(unet: nn.Module) -> None:
    patches: dict[str, Patch] = {"conv_in.weight": DiffPatch(torch.zeros(16, 8, 3, 3))}
    with side_path(unet, patches, 1.0, concat=torch.zeros(2, 4, 8, 8)), pytest.raises(Refusal, match="2 images"):
        call(unet, torch.zeros(3, 4, 8, 8))


def test_parse_patches_reads_lora_and_diff() -> None:
    state = {
        "diffusion_model.a.weight::lora::0": torch.ones(4, 2),
        "diffusion_model.a.weight::lora::1": torch.ones(2, 3),
        "diffusion_model.a.weight::lora::2": torch.tensor(6.0),
        "diffusion_model.b.bias::diff::0": torch.ones(5),
    }
    patches = parse_patches(state)
    first, second = patches["a.weight"], patches["b.bias"]
    assert isinstance(first, LoraPatch)
    assert first.scale == 3.0
    assert isinstance(second, DiffPatch)
    assert torch.equal(second.delta, torch.ones(5))


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["a.weight"],
        ["model.a.weight::diff::0"],
        ["diffusion_model.a.weight::glora::0"],
        ["diffusion_model.a.weight::lora::0"],
        ["diffusion_model.a.weight::diff::0", "diffusion_model.a.weight::lora::0"],
    ],
)
def test_parse_patches_refuses_other_keys(keys: list[str]) -> None:
    with pytest.raises(Refusal, match=r":"):
        parse_patches({key: torch.ones(2, 2) for key in keys})


class Linear(nn.Module):
    """A WebUI's own linear layer: none of torch's, and it doesn't tell its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@pytest.mark.parametrize("kind", [Linear, lambda: nn.Linear(4, 6)], ids=["own", "torch"])
def test_linear_layers_of_any_class_are_patched(kind) -> None:
    torch.manual_seed(3)
    holder, x = nn.ModuleDict({"layer": kind()}), torch.randn(5, 4)
    layer, up, down, full, bias = (
        holder["layer"],
        torch.randn(6, 2),
        torch.randn(2, 4),
        torch.randn(6, 4),
        torch.ones(6),
    )
    before = layer(x)
    for patches, change in (
        ({"layer.weight": LoraPatch(up, down)}, x @ (up @ down).T),
        ({"layer.weight": DiffPatch(full), "layer.bias": DiffPatch(bias)}, x @ full.T + bias),
    ):
        with side_path(holder, patches, STRENGTH):
            assert torch.allclose(layer(x), before + STRENGTH * change, atol=1e-5)
    assert torch.equal(layer(x), before)


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Strengths with which a layer's weight was joined with its patch."""
    made: list[float] = []
    own = LowRankChange.join

    def join(change: LowRankChange, weight: Tensor, factor: float) -> Tensor:
        made.append(factor)
        return own(change, weight, factor)

    monkeypatch.setattr(LowRankChange, "join", join)
    return made


def make_patched_layer() -> tuple[nn.ModuleDict, dict[str, Patch], Tensor]:
    """An ordinary linear layer, a low-rank patch of it with an alpha, and an input of enough rows."""
    torch.manual_seed(4)
    patch = LoraPatch(torch.randn(6, 2), torch.randn(2, 4), alpha=3.0)
    return nn.ModuleDict({"layer": nn.Linear(4, 6)}), {"layer.weight": patch}, torch.randn(2, 9, 4)


def merge(layer: nn.Module, patch: Patch, strength: float) -> nn.Linear:
    """A layer without hooks that computes what the patched one should."""
    merged = nn.Linear(4, 6)
    merged.load_state_dict(layer.state_dict())
    with torch.no_grad():
        merged.weight += strength * 1.5 * patch.up @ patch.down
    return merged


@torch.no_grad()
def test_ordinary_layers_are_joined_with_their_patches(joins: list[float]) -> None:
    """Once for a strength and a weight, without a change of the layer, and not where the patch is off."""
    holder, patches, x = make_patched_layer()
    layer, patch, on = holder["layer"], patches["layer.weight"], True
    plain, before = layer(x), snapshot(holder)
    with side_path(holder, patches, STRENGTH, active=lambda: on) as live:
        for _ in range(2):
            assert torch.allclose(layer(x), merge(layer, patch, STRENGTH)(x), atol=1e-5)
        assert joins == [STRENGTH]
        on = False
        assert torch.equal(layer(x), plain)
        on, live.strength = True, 0.2
        assert torch.allclose(layer(x), merge(layer, patch, 0.2)(x), atol=1e-5)
        live.strength = 0
        assert torch.equal(layer(x), plain)
        assert joins == [STRENGTH, 0.2]
        live.strength = 0.2
        patch.up.mul_(2)
        layer.bias.mul_(2)
        assert torch.allclose(layer(x), merge(layer, patch, 0.2)(x), atol=1e-5)
        layer.bias.div_(2)
    assert joins == [STRENGTH, 0.2, 0.2]
    assert_untouched(holder, before)
    assert torch.equal(layer(x), plain)


@torch.no_grad()
def test_a_patch_whose_strength_changes_in_every_step_is_not_joined_for_ever(joins: list[float]) -> None:
    holder, patches, x = make_patched_layer()
    with side_path(holder, patches, 1.0) as live:
        for step in range(1, 7):
            live.strength = step / 10
            wanted = merge(holder["layer"], patches["layer.weight"], step / 10)(x)
            assert torch.allclose(holder["layer"](x), wanted, atol=1e-5)
    assert joins == [0.1, 0.2, 0.3]


@torch.no_grad()
@pytest.mark.parametrize("room", [4 * 6 * 4 - 1, 4 * 6 * 4])
def test_joined_patches_stay_within_their_budget(
    room: int, joins: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection, "Room", lambda: Room(room))
    holder, patches, x = make_patched_layer()
    with side_path(holder, patches, 1.0):
        assert torch.allclose(holder["layer"](x), merge(holder["layer"], patches["layer.weight"], 1)(x), atol=1e-5)
    assert len(joins) == (room == 4 * 6 * 4)


def test_patches_that_learn_are_not_joined(joins: list[float]) -> None:
    holder, patches, x = make_patched_layer()
    patches["layer.weight"].up.requires_grad_()
    with side_path(holder, patches, 1.0):
        holder["layer"](x).sum().backward()
    assert patches["layer.weight"].up.grad is not None
    assert joins == []


@torch.no_grad()
def test_a_layer_with_another_hook_keeps_what_it_computes(joins: list[float]) -> None:
    holder, patches, x = make_patched_layer()
    holder["layer"].register_forward_hook(lambda _layer, _inputs, output: 2 * output)
    doubled, wanted = holder["layer"](x), merge(holder["layer"], patches["layer.weight"], 1)(x)
    with side_path(holder, patches, 1.0):
        assert torch.allclose(holder["layer"](x), wanted + doubled / 2, atol=1e-5)
    assert joins == []


@pytest.mark.parametrize(
    "patch", [DiffPatch(torch.tensor(1.0)), DiffPatch(torch.ones(6)), LoraPatch(torch.ones(6, 2), torch.ones(2))]
)
def test_patches_of_too_few_axes_are_refused(patch: Patch) -> None:
    holder = nn.ModuleDict({"layer": nn.Linear(4, 6)})
    with pytest.raises(Refusal, match="is of shape"), side_path(holder, {"layer.weight": patch}, STRENGTH):
        pass


def test_a_patch_in_half_precision_is_used_as_it_is_under_autocast() -> None:
    """As AUTOMATIC1111 computes: layers are given float32, and their products are in half precision."""
    patch, x = torch.rand(4, 4).bfloat16(), torch.rand(2, 4)
    resident = Resident(patch)
    with torch.autocast("cpu", torch.bfloat16):
        assert resident.like(x) is patch
    assert torch.equal(resident.like(x), patch.float())
