"""Shared attention together with code of other extensions that computes or changes attention, of each kind there is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_layerdiffusion.foreign import find_extension, list_attention_patches, name_extensions
from lib_layerdiffusion.injection import LiveAttention, shared_attention
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import AttentionSharingUnit, ControlEncoder, attend
from tests import seeded
from tests.core.test_shared_attention import share

WIDTH, WORDS, HEADS = 16, 12, 2
ROWS, COLUMNS = 4, 6
HALF = ROWS * COLUMNS // 2
NAMES = ("block.attn1", "block.attn2")


# -- a UNet of one block in the layout of LDM, with what Forge's blocks do for `transformer_options`


class CrossAttention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, WIDTH, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, **_: Any) -> Tensor:
        context = x if context is None else context
        value = context if value is None else value
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(value), self.heads))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(WIDTH), CrossAttention(WORDS)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.seen: dict[str, Tensor] = {}  # what each attention was given, and what came out

    def forward(self, x: Tensor, context: Tensor, options: Mapping[str, Any]) -> Tensor:
        for name, norm, given in (("attn1", self.norm1, None), ("attn2", self.norm2, context)):
            x = x + self.attend(name, norm(x), given, options)
        return x

    def attend(self, name: str, n: Tensor, context: Tensor | None, options: Mapping[str, Any]) -> Tensor:
        attention, value = getattr(self, name), None
        self.seen[f"{name} in"] = n
        patches, replace = options.get("patches", {}), options.get("patches_replace", {}).get(name, {})
        for patch in patches.get(f"{name}_patch", ()):
            context = n if context is None else context
            n, context, value = patch(n, context, context if value is None else value, options)
        if replacement := replace.get(("input", 0)):
            context = n if context is None else context
            q, k, v = attention.to_q(n), attention.to_k(context), attention.to_v(context)
            n = attention.to_out(replacement(q, k, v, options))
        else:
            n = attention(n, context=context, value=value, transformer_options=options)
        for patch in patches.get(f"{name}_output_patch", ()):
            n = patch(n, options)
        self.seen[f"{name} out"] = n
        return n


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.block, self.conv_out = nn.Conv2d(4, WIDTH, 1), Block(), nn.Conv2d(WIDTH, 4, 1)

    def forward(
        self, x: Tensor, timesteps: Tensor | None = None, context: Any = None, transformer_options: Any = None
    ) -> Tensor:
        h = self.conv_in(x).flatten(2).mT
        h = self.block(h, context, transformer_options or {})
        return self.conv_out(h.mT.unflatten(2, x.shape[2:]))


@pytest.fixture
def unet() -> UNet:
    return seeded.fill(UNet(), 5, prefix="host.").eval().requires_grad_(False)


def make_units(unet: UNet, frames: int, control: bool = False) -> dict[str, AttentionSharingUnit]:
    units = {name: AttentionSharingUnit(unet.get_submodule(name), frames, control, rank=3) for name in NAMES}
    for number, unit in enumerate(units.values()):
        seeded.fill(unit, number).eval().requires_grad_(False)
    return units


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def give(images: int, options: Any = None) -> dict[str, Any]:
    """The arguments of a call, with a context of two regions of seven words."""
    return {
        "x": draw(images, 4, ROWS, COLUMNS),
        "context": draw(images, 14, WORDS, seed=2),
        "transformer_options": options,
    }


def run(unet: UNet, units: Mapping[str, AttentionSharingUnit], given: Mapping[str, Any], **settings: Any) -> Tensor:
    with shared_attention(unet, units, **settings):
        return unet(**given)


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """As another extension does it: an attribute of the instance, which is deleted afterwards."""
    module.forward = forward
    try:
        yield
        assert vars(module)["forward"] is forward
    finally:
        vars(module).pop("forward", None)


def from_extension(name: str, folder: str = "extensions") -> Callable[[Any], Any]:
    """Make a function one of that extension."""

    def move(function: Any) -> Any:
        code = function.__code__.replace(co_filename=f"/webui/{folder}/{name}/scripts/attention.py")
        moved = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
        moved.__kwdefaults__ = function.__kwdefaults__
        return moved

    return move


def list_hooks(unet: nn.Module) -> list[str]:
    """Modules that have a hook or an attribute of their own in place of their class's `forward`."""
    return [
        name
        for name, module in unet.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]


def assert_close(output: Tensor, wanted: Tensor) -> None:
    assert output.shape == wanted.shape
    assert (output - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# -- an instance's `forward`, as of Regional Prompter: each region attends to its own part of the prompt


def split_regions(module: Any, divided: bool) -> Callable[..., Tensor]:
    """The first half of the tokens attends to the first half of the words, the second to the second."""

    def attend_to(x: Tensor, context: Tensor) -> Tensor:
        return module.to_out(attend(module.to_q(x), module.to_k(context), module.to_v(context), module.heads))

    def compute(x: Tensor, context: Tensor) -> Tensor:
        first, second = (attend_to(x, part) for part in context.chunk(2, dim=1))
        return torch.cat([first[:, :HALF], second[:, HALF:]], dim=1)

    @from_extension("sd-webui-regions")
    def forward(
        x: Tensor, context: Tensor, mask: Any = None, value: Any = None, transformer_options: Any = None
    ) -> Tensor:
        if not divided:
            return compute(x, context)
        return torch.cat([compute(*each) for each in zip(x.chunk(2), context.chunk(2), strict=True)])

    return forward


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_regions_are_kept(unet: UNet, frames: int, divided: bool) -> None:
    """Each token has the value that the unit gives it with its region's words alone."""
    units, given = make_units(unet, frames), give(4 * frames)
    without = run(unet, units, given)
    with replaced(unet.block.attn2, split_regions(unet.block.attn2, divided)):
        output = run(unet, units, given)
    seen, parts = unet.block.seen, given["context"].chunk(2, dim=1)
    first, second = (units["block.attn2"](seen["attn2 in"], part) for part in parts)
    assert_close(seen["attn2 out"], torch.cat([first[:, :HALF], second[:, HALF:]], dim=1))
    assert (output - without).abs().max() > 0.05
    assert list_hooks(unet) == []


# -- order, and undoing


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_passing_through_changes_nothing(unet: UNet, name: str, frames: int) -> None:
    """To the byte, whether it came first or second."""
    module, units, given = unet.block.get_submodule(name), make_units(unet, frames), give(2 * frames)
    alone = run(unet, units, given)
    before = module.forward
    with replaced(module, lambda *args, **kwargs: before(*args, **kwargs)):
        assert torch.equal(run(unet, units, given), alone)
    with shared_attention(unet, units), replaced(module, lambda *args, **kwargs: before(*args, **kwargs)):
        assert torch.equal(unet(**given), alone)


def test_theirs_may_be_removed_before_ours(unet: UNet) -> None:
    module, units, given = unet.block.attn2, make_units(unet, 1), give(2)
    plain, alone = unet(**given), run(unet, units, given)
    module.forward = split_regions(module, False)
    with shared_attention(unet, units):
        assert not torch.equal(unet(**given), alone)
        del module.forward
        assert torch.equal(unet(**given), alone)
    assert list_hooks(unet) == []
    assert torch.equal(unet(**given), plain)


def test_theirs_may_outlive_ours(unet: UNet) -> None:
    """Installed while ours was there; both orders of a class's and an instance's `forward` are theirs alone."""
    module, units, given = unet.block.attn2, make_units(unet, 3), give(3)
    theirs = split_regions(module, False)
    with replaced(module, theirs):
        regions = unet(**given)
    with shared_attention(unet, units):
        module.forward = theirs
    assert vars(module)["forward"] is theirs
    assert torch.equal(unet(**given), regions)
    del module.forward
    assert list_hooks(unet) == []


def test_an_error_in_theirs_leaves_only_theirs(unet: UNet) -> None:
    module, units, given = unet.block.attn2, make_units(unet, 1), give(2)
    alone = run(unet, units, given)

    def fail(*_args: Any, **_kwargs: Any) -> Tensor:
        raise ValueError("theirs")

    with replaced(module, fail), pytest.raises(ValueError, match="theirs"):
        run(unet, units, given)
    assert list_hooks(unet) == []
    assert torch.equal(run(unet, units, given), alone)


# -- a `forward` that comes and goes within a call of the UNet, as FABRIC's: images are attended to as well


def feed_back(unet: UNet, cached: Tensor) -> Callable[..., Tensor]:
    """A UNet's `forward` in which self-attention sees the tokens of another picture, for each half of the rows."""
    module, own = unet.block.attn1, unet.forward

    def see(x: Tensor, context: Any = None, **_: Any) -> Tensor:
        more = [torch.cat([part, cached.expand(len(part), -1, -1)], dim=1) for part in x.chunk(2)]
        return torch.cat([CrossAttention.forward(module, *each) for each in zip(x.chunk(2), more, strict=True)])

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        module.forward = functools.partial(from_extension("sd-webui-feedback")(see))
        try:
            return own(*args, **kwargs)
        finally:
            module.forward = CrossAttention.forward.__get__(module)

    return forward


@pytest.mark.parametrize("frames", [1, 3])
def test_another_picture_is_attended_to(unet: UNet, frames: int) -> None:
    units, given, cached = make_units(unet, frames), give(2 * frames), draw(1, 5, WIDTH, seed=4)
    with replaced(unet, feed_back(unet, cached)):
        run(unet, units, given)
    h = unet.block.seen["attn1 in"]
    more = torch.cat([h, cached.expand(len(h), -1, -1)], dim=1)
    assert_close(unet.block.seen["attn1 out"], units["block.attn1"](h, more))


def test_a_pass_of_another_number_of_images_is_refused_for_sets(unet: UNet) -> None:
    """FABRIC first calls the UNet's `forward` with the liked picture alone."""
    own, module = unet.forward, unet.block.attn1

    def forward(x: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
        own(x[:1], context=context[:1])
        return own(x, context=context, **kwargs)

    seen = functools.partial(
        from_extension("sd-webui-feedback")(lambda *a, **k: CrossAttention.forward(module, *a, **k))
    )
    with replaced(unet, forward), replaced(module, seen):
        run(unet, make_units(unet, 1), give(2))
        with pytest.raises(Refusal, match=r"^sd-webui-feedback cuts the image .* 'foreground'"):
            run(unet, make_units(unet, 3), give(6))


# -- replacements and patches in `transformer_options`, as of Forge


def align(q: Tensor, k: Tensor, v: Tensor, _options: Any) -> Tensor:
    """All images attend to the tokens of all, as StyleAlign's do."""
    whole = attend(*(x.flatten(0, 1)[None] for x in (q, k, v)), HEADS)
    return whole[0].unflatten(0, q.shape[:2])


def replace_attention(name: str, function: Any) -> dict[str, Any]:
    return {"patches_replace": {name: {("input", 0): from_extension("sd_forge_align", "extensions-builtin")(function)}}}


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_a_replacement_gets_the_frames_projections(unet: UNet, name: str, frames: int) -> None:
    """The block calls the projections without the module: equal to each frame's weights merged into them."""
    units, images = make_units(unet, frames), 2 * frames
    unit, given = units[f"block.{name}"], give(images, replace_attention(name, align))
    plain, output = unet(**given), run(unet, units, given)
    assert (output - plain).abs().max() > 0.05
    h = unet.block.seen[f"{name} in"]
    context = h if name == "attn1" else given["context"]
    merged = [deepcopy(unet.block.get_submodule(name)) for _ in range(frames)]
    for frame, module in enumerate(merged):
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            low_rank = unit.get_submodule(f"{layer}_lora.{frame}")
            own = module.to_out[0] if layer == "to_out" else module.get_submodule(layer)
            own.weight += low_rank.up.weight @ low_rank.down.weight

    def project(layer: str, x: Tensor) -> Tensor:
        return torch.stack([merged[row % frames].get_submodule(layer)(each) for row, each in enumerate(x)])

    mixed = align(project("to_q", h), project("to_k", context), project("to_v", context), None)
    assert_close(unet.block.seen[f"{name} out"], share(unit, h, project("to_out", mixed)))
    assert list_hooks(unet) == []


def test_a_replacement_by_the_same_changes_nothing(unet: UNet) -> None:
    units = make_units(unet, 3)
    alone = run(unet, units, give(6))
    same = replace_attention("attn1", lambda q, k, v, _options: attend(q, k, v, HEADS))
    assert torch.equal(run(unet, units, give(6, same)), alone)


def test_a_replacement_is_refused_where_the_module_is_needed(unet: UNet) -> None:
    given = give(2, replace_attention("attn1", align))
    with pytest.raises(Refusal, match=r"^sd_forge_align computes .* weight of the layer mode to 1"):
        run(unet, make_units(unet, 1), given, weight=0.5)
    encoder = seeded.fill(ControlEncoder(), 3)
    with torch.no_grad():
        signal = encoder(draw(1, 3, 8 * ROWS, 8 * COLUMNS))
    with pytest.raises(Refusal, match=r"^sd_forge_align computes .* no effect"):
        run(unet, make_units(unet, 2, control=True), given, control_signal=signal)
    assert list_hooks(unet) == []


def couple(regions: int, images: int) -> dict[str, Any]:
    """Rows are repeated for each region's words and put together again by masks, as by forge-couple."""

    @from_extension("sd-forge-couple")
    def repeat(n: Tensor, context: Tensor, _value: Tensor, _options: Any) -> tuple[Tensor, Tensor, Tensor]:
        words = torch.cat(context.chunk(regions, dim=1))
        return n.repeat(regions, 1, 1), words, words

    @from_extension("sd-forge-couple")
    def join(out: Tensor, _options: Any) -> Tensor:
        parts = [part[:, HALF * n : HALF * (n + 1)] for n, part in enumerate(out.split(images))]
        return torch.cat(parts, dim=1)

    return {"patches": {"attn2_patch": [repeat], "attn2_output_patch": [join]}}


def test_rows_that_are_repeated_for_regions(unet: UNet) -> None:
    units, given = make_units(unet, 1), give(2, couple(2, 2))
    run(unet, units, given)
    h, parts = unet.block.seen["attn2 in"], given["context"].chunk(2, dim=1)
    first, second = (units["block.attn2"](h, part) for part in parts)
    assert_close(unet.block.seen["attn2 out"], torch.cat([first[:, :HALF], second[:, HALF:]], dim=1))
    with pytest.raises(Refusal, match=r"^sd-forge-couple cuts the image .* number of images .* 'foreground'"):
        run(unet, make_units(unet, 2), give(2, couple(2, 2)))


# -- tiles


def cut(module: nn.Module) -> Callable[..., Tensor]:
    """Self-attention within each half of the tokens, as Hypertile does it."""
    own = module.forward

    @from_extension("hypertile", "extensions-builtin")
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return own(x.unflatten(1, (2, -1)).flatten(0, 1), *args, **kwargs).unflatten(0, (-1, 2)).flatten(1, 2)

    return functools.wraps(own)(forward)


def test_parts_of_an_image(unet: UNet) -> None:
    """They don't matter where each image is alone; frames would get mixed up."""
    module, units, given = unet.block.attn1, make_units(unet, 1), give(2)
    with replaced(module, cut(module)):
        run(unet, units, given)
        h = unet.block.seen["attn1 in"]
        halves = [units["block.attn1"](half) for half in h.chunk(2, dim=1)]
        assert_close(unet.block.seen["attn1 out"], torch.cat(halves, dim=1))
        with pytest.raises(Refusal, match=r"^hypertile cuts the image into parts"):
            run(unet, make_units(unet, 2), give(2))


def test_tiles_in_the_batch_are_sets_of_their_own(unet: UNet) -> None:
    """Tiled Diffusion puts several tiles of each image behind one another."""
    units, tiles = make_units(unet, 3), [give(6), {**give(6), "x": draw(6, 4, ROWS, COLUMNS, seed=9)}]
    alone = torch.cat([run(unet, units, tile) for tile in tiles])
    both = {name: torch.cat([tile[name] for tile in tiles]) for name in ("x", "context")}
    assert_close(run(unet, units, both), alone)


def test_tiles_don_t_fit_an_image_of_the_whole(unet: UNet) -> None:
    encoder = seeded.fill(ControlEncoder(), 3)
    with torch.no_grad():
        signals = [encoder(draw(1, 3, 8 * ROWS, 8 * columns)) for columns in (COLUMNS, 2 * COLUMNS)]
    units = make_units(unet, 2, control=True)
    run(unet, units, give(4), control_signal=signals[0])
    with pytest.raises(Refusal, match=r"given \[4, 6\] latent pixels .* \[4, 12\], .* Tiled Diffusion"):
        run(unet, units, give(4), control_signal=signals[1])
    assert list_hooks(unet) == []


# -- what can't be composed with


def test_attention_that_reads_the_weights_is_refused(unet: UNet) -> None:
    module = unet.block.attn2

    @from_extension("sd-webui-reader")
    def forward(x: Tensor, context: Tensor, **_: Any) -> Tensor:
        q = nn.functional.linear(x, module.to_q.weight)
        return module.to_out(attend(q, module.to_k(context), module.to_v(context), HEADS))

    with replaced(module, forward), pytest.raises(Refusal, match=r"^sd-webui-reader computes .* by itself, .* off"):
        run(unet, make_units(unet, 1), give(2))
    assert list_hooks(unet) == []


def test_attention_without_the_module_s_layers_is_refused(unet: UNet) -> None:
    """Whether it takes the module's place, or that of the block's call of it."""
    block = unet.block
    with (
        replaced(block.attn1, from_extension("sd-webui-zero")(lambda x, *_args, **_kwargs: x * 0)),
        pytest.raises(Refusal, match=r"^sd-webui-zero computes"),
    ):
        run(unet, make_units(unet, 1), give(2))
    with (
        replaced(block, lambda x, *_args: x),
        pytest.raises(Refusal, match=r"^Another extension computes"),
    ):
        run(unet, make_units(unet, 1), give(2))
    assert list_hooks(unet) == []


def test_part_of_the_weight(unet: UNet) -> None:
    """What may count its calls isn't called twice for one; anything else gives the plain result, too."""
    module, units, given = unet.block.attn2, make_units(unet, 2), give(4)
    with replaced(module, split_regions(module, False)):
        for weight in (0, 1):
            run(unet, units, given, weight=weight)
        with pytest.raises(Refusal, match=r"^sd-webui-regions .* to 1, or switch"):
            run(unet, units, given, weight=0.5)
    own = module.forward
    with replaced(module, lambda x, context, **kwargs: own(x, context * 2, **kwargs)):
        outputs: list[Tensor] = []
        for weight in (0.0, 1.0, 0.25):
            run(unet, {"block.attn2": units["block.attn2"]}, given, weight=weight)
            outputs.append(unet.block.seen["attn2 out"])
    plain, full, part = outputs
    assert_close(part, plain + 0.25 * (full - plain))


def test_outside_its_window_theirs_computes_alone(unet: UNet) -> None:
    module, units, given = unet.block.attn2, make_units(unet, 3), give(4)  # no whole sets
    with replaced(module, split_regions(module, False)):
        assert torch.equal(run(unet, units, given, active=lambda: False), unet(**given))


def test_a_live_attention_names_what_it_was_given(unet: UNet) -> None:
    with shared_attention(unet, make_units(unet, 1), weight=1) as live:
        assert isinstance(live, LiveAttention)
        assert live.matched == len(NAMES)


# -- names


def test_names_of_extensions() -> None:
    class Called:
        def __call__(self) -> None: ...

    plain = from_extension("sd-webui-one")(lambda: None)
    Called.__call__ = from_extension("sd-webui-two")(Called.__call__)
    wrapped = functools.wraps(plain)(lambda: None)
    assert (
        find_extension(plain) == find_extension(functools.partial(plain)) == find_extension(wrapped) == "sd-webui-one"
    )
    assert find_extension(Called()) == "sd-webui-two"
    assert find_extension(from_extension("sd_forge_freeu", "extensions-builtin")(lambda: None)) == "sd_forge_freeu"
    assert find_extension(torch.inference_mode()(plain)) == "sd-webui-one"
    for other in (None, print, lambda: None, CrossAttention.forward):
        assert find_extension(other) is None
    assert name_extensions([plain, wrapped, Called()]) == "sd-webui-one and sd-webui-two"
    assert name_extensions([print]) == ""


def test_patches_that_concern_attention() -> None:
    def one() -> None: ...

    def two() -> None: ...

    options = {
        "patches": {"attn2_patch": [one], "output_block_patch": [print]},
        "patches_replace": {"attn1": {("input", 1): two}},
        "sigmas": None,
    }
    assert list_attention_patches(options) == [one, two]
    assert list_attention_patches(None) == []
