"""Layers of WebUIs, in doubles that compute as theirs do: which are joined with low-rank products, with what result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_layerdiffusion.hosts.a1111 import A1111Host
from lib_layerdiffusion.hosts.forge_objects import ForgeObjectsHost
from lib_layerdiffusion.injection import shared_attention, side_path
from lib_layerdiffusion.joining import IsPlain
from lib_layerdiffusion.shared_attention import PROJECTIONS, AttentionSharingUnit, attend
from lib_layerdiffusion.weights.patches import LoraPatch
from tests import seeded

WIDTH, ROWS, TOKENS, FRAMES = 16, 4, 6, 2
Make = Callable[[], nn.Module]


class Unet(nn.Module):
    """An attention module, `attn`, with a WebUI's layers, within a module that calls it."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.Module()
        self.attn.heads = 2
        for name in PROJECTIONS:
            self.attn.add_module(name, make())
        self.attn.forward = self.attend

    def attend(self, x: Tensor) -> Tensor:
        attn: Any = self.attn
        return attn.to_out(attend(attn.to_q(x), attn.to_k(x), attn.to_v(x), attn.heads))

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the projections whose weights were joined."""
    made: list[str] = []
    own = AttentionSharingUnit.join_projection
    monkeypatch.setattr(
        AttentionSharingUnit, "join_projection", lambda unit, name, weight: made.append(name) or own(unit, name, weight)
    )
    return made


def compare(unet: Unet, is_plain: IsPlain, between: Callable[[], Any] = lambda: None) -> None:
    """Twice, with something between: what joined layers give is what products beside the layers give."""
    unit = AttentionSharingUnit(unet.attn, FRAMES, rank=8)
    seeded.fill(unit, 6)
    x = torch.randn(ROWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), shared_attention(unet, {"attn": unit}, is_plain=is_plain) as live:
        for run in range(2):
            if run:
                between()
            own, before = unet(x), live.is_plain
            live.is_plain = lambda _layer: False
            torch.testing.assert_close(own, unet(x), atol=1e-5, rtol=1e-4)
            live.is_plain = before
    patches: Any = {"attn.to_q.weight": LoraPatch(torch.randn(WIDTH, 2), torch.randn(2, WIDTH), alpha=2.0)}
    with torch.inference_mode():
        results = []
        for rule in (is_plain, lambda _layer: False):
            with side_path(unet, patches, 0.7, is_plain=rule):
                results.append(unet(x))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.fixture
def a1111(monkeypatch: pytest.MonkeyPatch) -> Any:
    """AUTOMATIC1111 with its Lora extension: `loaded` LoRAs are written into a layer's weight when it is called."""
    own = nn.Linear.forward

    def network_Linear_forward(layer: Any, x: Tensor) -> Tensor:
        if opts.lora_functional:
            return own(layer, x) + sum(factor * x for factor in networks.loaded)
        if getattr(layer, "current", ()) != tuple(networks.loaded):
            backup = layer.backup = getattr(layer, "backup", layer.weight.detach().clone())
            with torch.no_grad():
                layer.weight.copy_(backup + sum(networks.loaded) * torch.eye(WIDTH))
            layer.current = tuple(networks.loaded)
        return own(layer, x)

    opts = SimpleNamespace(lora_functional=False)
    networks: Any = ModuleType("networks")
    networks.network_Linear_forward, networks.loaded = network_Linear_forward, [0.5]
    networks.originals = SimpleNamespace(Linear_forward=own)
    modules: Any = ModuleType("modules")
    modules.shared = SimpleNamespace(opts=opts)
    for name, module in (("networks", networks), ("modules", modules), ("modules.shared", modules.shared)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(nn.Linear, "forward", network_Linear_forward)
    return SimpleNamespace(networks=networks, opts=opts, is_plain=A1111Host.__new__(A1111Host).is_plain_linear)


def make_own() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH).requires_grad_(False)


def test_loras_that_automatic1111_writes_are_in_the_joined_weight(a1111: Any, joins: list[str]) -> None:
    """Also those that are written in the very call, and others in a later one."""
    compare(Unet(make_own), a1111.is_plain, between=lambda: a1111.networks.loaded.append(0.25))
    assert sorted(joins) == sorted(PROJECTIONS * 2)


def test_loras_beside_the_layers_of_automatic1111_are_kept(a1111: Any, joins: list[str]) -> None:
    a1111.opts.lora_functional = True
    compare(Unet(make_own), a1111.is_plain)
    assert joins == []


def test_other_changes_of_torchs_layers_are_kept(a1111: Any, joins: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the Lora extension's, or after it."""
    inner = a1111.networks.originals.Linear_forward
    a1111.networks.originals.Linear_forward = lambda layer, x: 2 * inner(layer, x)
    compare(Unet(make_own), a1111.is_plain)
    a1111.networks.originals.Linear_forward = inner
    outer = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: 2 * outer(layer, x))
    compare(Unet(make_own), a1111.is_plain)
    assert joins == []


def test_without_the_lora_extension_layers_are_torchs_own(
    a1111: Any, joins: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Linear, "forward", a1111.networks.originals.Linear_forward)
    monkeypatch.delitem(sys.modules, "networks")
    compare(Unet(make_own), a1111.is_plain)
    assert sorted(joins) == sorted(PROJECTIONS)


class ForgeOperations:
    class Linear(nn.Module):
        """Forge main's: not torch's, with LoRAs on the fly as an attribute, and weights made in inference mode."""

        in_features = out_features = WIDTH
        scale_weight: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4, requires_grad=False)
                self.bias = nn.Parameter(torch.randn(WIDTH), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight if self.scale_weight is None else self.weight * self.scale_weight
            for patch in getattr(self, "forge_online_loras", {}).values():
                weight = weight + patch
            return functional.linear(x, weight, self.bias)


class disable_weight_init:
    class Linear(nn.Linear):
        """That of `ldm_patched`: torch's, and its cast with functions of the weight."""

        weight_function: list[Callable[[Tensor], Tensor]] = []  # noqa: RUF012  as it is there

        def __init__(self) -> None:
            super().__init__(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            for change in self.weight_function:
                weight = change(weight)
            return functional.linear(x, weight, self.bias)


class Host(ForgeObjectsHost):
    """No more than the question of its layers."""

    def __init__(self) -> None:
        pass

    def to_sampler_space(self, latents: Tensor) -> Tensor:
        return latents

    memory = precision = None  # pyright: ignore[reportAssignmentType]


@pytest.fixture(params=["backend.operations", "ldm_patched.modules.ops"])
def make_forge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    kind: Any = {"backend.operations": ForgeOperations, "ldm_patched.modules.ops": disable_weight_init}[request.param]
    monkeypatch.setattr(kind.Linear.forward, "__module__", request.param)
    return kind.Linear


def exchange(unet: Unet) -> None:
    """Replace a layer's weight, as Forge does for a LoRA."""
    layer: Any = unet.attn.to_v
    with torch.no_grad():
        layer.weight = nn.Parameter(3 * layer.weight, requires_grad=False)


def test_layers_of_forge_are_joined(make_forge: Make, joins: list[str]) -> None:
    unet = Unet(make_forge)
    compare(unet, Host().is_plain_linear, between=lambda: exchange(unet))
    assert sorted(joins) == sorted((*PROJECTIONS, "to_v"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forge_online_loras", {"weight": torch.eye(WIDTH)}),
        ("scale_weight", torch.tensor(0.5)),
        ("weight_function", [lambda weight: 2 * weight]),
    ],
)
def test_what_layers_of_forge_add_in_their_call_is_kept(
    make_forge: Make, joins: list[str], name: str, value: Any
) -> None:
    unet = Unet(make_forge)
    setattr(unet.attn.to_k, name, value)
    compare(unet, Host().is_plain_linear)
    assert sorted(joins) == ["to_out", "to_q", "to_v"]


def test_layers_that_cast_their_weights_are_not_joined(
    make_forge: Make, joins: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as 8-bit weights, or single precision ones in a model that computes in half."""

    def forward(layer: Any, x: Tensor) -> Tensor:
        return functional.linear(x, layer.weight.to(x), layer.bias.to(x))

    kind: Any = make_forge
    forward.__module__, forward.__qualname__ = kind.forward.__module__, kind.forward.__qualname__
    monkeypatch.setattr(kind, "forward", forward)
    compare(Unet(lambda: make_forge().double()), Host().is_plain_linear)
    assert joins == []


def test_other_classes_of_forge_are_not_joined(make_forge: Make, joins: list[str]) -> None:
    """Such as those of 4 bits or GGUF, which share the name of the class only."""

    class Linear(make_forge):  # pyright: ignore[reportGeneralTypeIssues]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    compare(Unet(Linear), Host().is_plain_linear)
    assert joins == []
