"""The three reversible primitives that change a live model: side path, shared attention and posterior.

No weight is touched: all work by hooks on the modules as they are, and leaving the `with` block removes them, after an
exception too, so the model is then what it was bit for bit; what other extensions have put into it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_layerdiffusion.foreign import INSTALLED, find_extension, list_attention_patches, name_extensions
from lib_layerdiffusion.joining import (
    IsPlain,
    JoinedWeight,
    Room,
    add_product,
    can_join,
    count_rows,
    find_precision,
    is_own_linear,
    pays_to_join,
    read_version,
)
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import (
    PROJECTIONS,
    AttentionSharingUnit,
    Call,
    ControlSignal,
    split_output,
)
from lib_layerdiffusion.weights.patches import DiffPatch, LoraPatch, Patch, Patches

Active: TypeAlias = "Callable[[], bool] | None"
Change: TypeAlias = "Callable[[Tensor], Tensor]"  # what a patch adds for the layer's input
Compute: TypeAlias = "Callable[[Tensor, float], Tensor]"  # so many times that

OTHERS = "Another extension"
HYPERTILE = f"{OTHERS} (such as Hypertile)"


@dataclass
class SidePath:
    """Live side paths: `matched` parameters are changed, by `strength`, which may be set at any time."""

    matched: int
    strength: float


@contextmanager
def side_path(
    unet: nn.Module,
    patches: Patches,
    strength: float,
    concat: Tensor | None = None,
    active: Active = None,
    is_plain: IsPlain = is_own_linear,
) -> Iterator[SidePath]:
    """Let the modules of `unet` compute as if `strength` times the patches were added to their parameters.

    `patches` are keyed by parameter name in this `unet`. `concat` [images, 4k, h, w], in sampler space, goes with a
    patch that gives the first convolution 4k more input channels; the rows of the UNet's batch are a multiple of its
    images. Where `active()` is False the model computes unchanged. Layers of which `is_plain` says so are joined with
    their patches (see `joining`). Every patch must find a parameter of its shape, else Refusal before anything is
    hooked.
    """
    _refuse_compiled(unet)
    live, room = SidePath(len(patches), strength), Room()
    hooks = [_plan_hook(unet, name, patch, concat) for name, patch in _checked(unet, patches)]
    if concat is not None and not any(widened for *_, widened in hooks):
        raise Refusal(
            "The patch file has no widened first convolution, so it takes no condition image: choose another mode."
        )
    with ExitStack() as stack:
        for module, compute, _ in hooks:
            path = _HookedLayer(compute, live, active, is_plain, JoinedWeight(room))
            if isinstance(compute, LowRankChange):
                stack.callback(_complete, module.register_forward_pre_hook(path.hold).remove)
            stack.callback(_complete, module.register_forward_hook(path.add).remove)
        yield live


@dataclass
class _HookedLayer:
    """One layer to whose result a patch adds something; one that can be joined is given no rows before."""

    compute: Compute
    live: SidePath
    active: Active
    is_plain: IsPlain
    joined: JoinedWeight
    held: Tensor | None = None  # the input of a call in which the layer is given no rows

    @property
    def is_on(self) -> bool:
        return self.live.strength != 0 and (self.active is None or self.active())

    def hold(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
        self.held, x = None, inputs[0]
        if not self.is_on or not can_join(layer, x, self.is_plain):
            return None
        self.held = x
        return x[:0]

    def add(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not self.is_on:
            return None
        x, self.held = self.held, None
        if x is None:
            return output + self.compute(inputs[0], self.live.strength).to(output.dtype)
        weight, bias = self.find_joined(layer, x), layer.bias
        if weight is not None:
            return F.linear(x, weight, bias)
        output = F.linear(x, layer.weight, bias)
        return output + self.compute(x, self.live.strength).to(output.dtype)

    def find_joined(self, layer: Any, x: Tensor) -> Tensor | None:
        assert isinstance(self.compute, LowRankChange)
        compute, strength = self.compute, self.live.strength
        return self.joined.find(
            layer.weight,
            (strength, *compute.versions),
            copies=1,
            pays=lambda: pays_to_join(len(layer.weight), layer.weight.shape[1], compute.rank, count_rows(x)),
            make=lambda: compute.join(layer.weight, strength),
        )


def _checked(unet: nn.Module, patches: Patches) -> list[tuple[str, Patch]]:
    """The patches, once every one has found its parameter; else Refusal that tells a wrong family."""
    parameters = dict(unet.named_parameters())
    missing = [name for name in patches if name not in parameters]
    if missing or not patches:
        wanted, loaded = (_guess_family(names) for names in (patches, parameters))
        if wanted != loaded:
            raise Refusal(
                f"The patch file is made for {wanted} and the loaded model is {loaded}: load an {wanted} checkpoint "
                "or choose a layer mode of its own family."
            )
        raise Refusal(
            f"{len(missing)} of the {len(patches)} parameters that the patch file changes aren't in the loaded UNet "
            f"({', '.join(missing[:1])}): take the file that the layer mode names and a checkpoint that isn't pruned."
        )
    return list(patches.items())


def _guess_family(names: Mapping[str, Any]) -> str:
    """SDXL has transformers of ten blocks, SD1.5 of one."""
    return "SDXL" if any(".transformer_blocks.1." in name for name in names) else "SD1.5"


def _plan_hook(unet: nn.Module, name: str, patch: Patch, concat: Tensor | None) -> tuple[nn.Module, Compute, bool]:
    """Module, what its hook adds for an input, and whether the patch widens the first convolution."""
    path, _, leaf = name.rpartition(".")
    module = unet.get_submodule(path)
    if isinstance(patch, LoraPatch):
        if patch.dora is not None:
            raise Refusal(f"The patch of {name} has a DoRA scale, which isn't supported: use a file without it.")
        return module, _plan_lora(module, name, patch), False
    change, widened = _plan_diff(module, name, leaf, patch, concat)
    return module, lambda x, factor: factor * change(x), widened


def _plan_diff(module: nn.Module, name: str, leaf: str, patch: DiffPatch, concat: Tensor | None) -> tuple[Change, bool]:
    """What a full change of a parameter adds, and whether it widens the first convolution."""
    match module, leaf:
        case nn.Conv2d(), "weight":
            return _plan_conv(module, name, patch.delta, concat)
        case nn.Conv2d(), "bias":
            delta = _fit(patch.delta, (module.out_channels,), name)
            return lambda x: delta.like(x).reshape(-1, 1, 1), False
        case _, "weight" if _is_linear(module):
            linear = _fit(patch.delta, _shape_of_linear(module, patch.delta, patch.delta), name)
            return lambda x: F.linear(x, linear.like(x)), False
        case _, "bias" if _is_linear(module):
            linear = _fit(patch.delta, _shape_of_linear(module, patch.delta, patch.delta)[:1], name)
            return linear.like, False
        case ((nn.GroupNorm() | nn.LayerNorm()), _):
            return _plan_norm(module, name, leaf, patch.delta), False
        case _:
            raise Refusal(f"{name} belongs to a {type(module).__name__}, which can't be patched: use another file.")


def _plan_conv(conv: nn.Conv2d, name: str, delta: Tensor, concat: Tensor | None) -> tuple[Change, bool]:
    own = _shape_of(conv)
    if delta.ndim != 4 or delta.shape[1] <= own[1]:
        fitted = _fit(delta, own, name)
        return lambda x: _convolve(conv, x, fitted.like(x)), False
    more = delta.shape[1] - own[1]
    if concat is None or concat.shape[1] != more:
        given = "none" if concat is None else f"one of {concat.shape[1]}"
        raise Refusal(
            f"The patch file needs a condition of {more} channels and {given} is given: give the layer mode its images."
        )
    latent_delta = _fit(delta[:, : own[1]], own, name)
    concat_delta = _fit(delta[:, own[1] :], (own[0], more, *own[2:]), name)
    return WidenedConv(conv, latent_delta, concat_delta, concat), True


class Resident:
    """A patch's tensor where a layer computes: brought to its device and dtype once, not in every step."""

    def __init__(self, tensor: Tensor) -> None:
        self.own = tensor
        self._there = tensor

    def like(self, x: Tensor) -> Tensor:
        """The tensor on the device of `x`, in what a product with `x` is computed in."""
        if self.own.requires_grad:  # in training each step has to see what the last one changed
            return self.own.to(x)
        place = (x.device, find_precision(x))
        if (self._there.device, self._there.dtype) != place:
            with torch.inference_mode(False), torch.no_grad():
                self._there = self.own.to(*place)
        return self._there


@dataclass(frozen=True)
class LowRankChange:
    """A low-rank patch of a linear layer: up [out, rank] after down [rank, in]."""

    up: Resident
    down: Resident
    rank: int
    scale: float

    def __call__(self, x: Tensor, factor: float) -> Tensor:
        return F.linear(_times(self.scale * factor, F.linear(x, self.down.like(x))), self.up.like(x))

    def join(self, weight: Tensor, factor: float) -> Tensor:
        """The layer's weight with `factor` times the patch in it."""
        return add_product(weight, self.up.own, self.down.own, self.scale * factor)

    @property
    def versions(self) -> tuple[tuple[int, int], ...]:
        """What changes when the factors do."""
        return read_version(self.up.own), read_version(self.down.own)


@dataclass
class WidenedConv:
    """Convolution of [x, concat] with the change of a widened first convolution.

    The part of `concat` is the same in every step, so it is computed once for a device and dtype.
    """

    conv: nn.Conv2d
    latent_delta: Resident
    concat_delta: Resident
    concat: Tensor
    _constant: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])

    def __call__(self, x: Tensor) -> Tensor:
        images = self.concat.shape[0]
        if x.shape[0] % images or x.shape[-2:] != self.concat.shape[-2:]:
            raise Refusal(
                f"The condition has {images} images of {list(self.concat.shape[-2:])} latent pixels and the UNet is "
                f"given {x.shape[0]} of {list(x.shape[-2:])}: one image is needed, or one for each, of that size."
            )
        place = (x.device, x.dtype)
        if place not in self._constant:
            self._constant[place] = _convolve(self.conv, self.concat.to(x), self.concat_delta.like(x))
        constant = self._constant[place].repeat(x.shape[0] // images, 1, 1, 1)
        return _convolve(self.conv, x, self.latent_delta.like(x)) + constant


def _plan_lora(module: nn.Module, name: str, patch: LoraPatch) -> Compute:
    rank = patch.down.shape[0]
    if not name.endswith(".weight") or not (_is_linear(module) or isinstance(module, nn.Conv2d)):
        raise Refusal(f"{name} can't be changed by a low-rank patch: use another file.")
    scale = patch.scale
    if not isinstance(module, nn.Conv2d):
        shape = _shape_of_linear(module, patch.up, patch.down)
        down, up = _fit(patch.down, (rank, shape[1]), name), _fit(patch.up, (shape[0], rank), name)
        return LowRankChange(up, down, rank, scale)
    conv, shape = module, _shape_of(module)
    if patch.mid is None:
        down = _fit(patch.down, (rank, *shape[1:]), name)
        up = _fit(patch.up, (shape[0], rank, 1, 1), name)
        return lambda x, factor: F.conv2d(_times(scale * factor, _convolve(conv, x, down.like(x))), up.like(x))
    mid = patch.mid
    down, up = _fit(patch.down, (rank, shape[1], 1, 1), name), _fit(patch.up, (shape[0], mid.shape[0], 1, 1), name)
    middle = _fit(mid, (mid.shape[0], rank, *shape[2:]), name)

    def compute(x: Tensor, factor: float) -> Tensor:
        inner = _convolve(conv, F.conv2d(x, down.like(x)), middle.like(x))
        return F.conv2d(_times(scale * factor, inner), up.like(x))

    return compute


def _times(factor: float, inner: Tensor) -> Tensor:
    """A low-rank patch's inner result times a factor: it is the smallest tensor that can carry it."""
    return inner if factor == 1 else factor * inner


def _plan_norm(norm: nn.GroupNorm | nn.LayerNorm, name: str, leaf: str, delta: Tensor) -> Change:
    """A norm's weight multiplies the normalised input, its bias is added."""
    width = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.normalized_shape[-1]
    fitted = _fit(delta, (width,), name)
    match norm, leaf:
        case nn.GroupNorm(), "weight":
            return lambda x: F.group_norm(x, norm.num_groups, fitted.like(x).to(x), None, norm.eps)
        case nn.LayerNorm(), "weight":
            return lambda x: F.layer_norm(x, (width,), fitted.like(x).to(x), None, norm.eps)
        case nn.GroupNorm(), _:
            return lambda x: fitted.like(x).reshape(-1, *[1] * (x.ndim - 2))
        case _:
            return fitted.like


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer; Forge's own classes are none of torch's and share the name only."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Linear"


def _shape_of_linear(module: nn.Module, up: Tensor, down: Tensor) -> tuple[int, int]:
    """Shape of the weight as the layer computes; quantised ones are stored in another.

    Some don't tell at all: they are taken to have the outputs of the patch's `up` and the inputs of its `down`.
    """
    outputs, inputs = torch.Size(up.shape[:1]).numel(), torch.Size(down.shape[1:]).numel()
    return int(getattr(module, "out_features", outputs)), int(getattr(module, "in_features", inputs))


def _shape_of(conv: nn.Conv2d) -> tuple[int, ...]:
    return conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size


def _fit(tensor: Tensor, shape: tuple[int, ...], name: str) -> Resident:
    """`tensor` in `shape`, when they differ by axes of length 1 or by flattening of the kernel only."""
    if tensor.numel() != torch.Size(shape).numel() or (tensor.ndim and tensor.shape[0] != shape[0]):
        raise Refusal(
            f"The patch of {name} is of shape {list(tensor.shape)} and the loaded model needs {list(shape)}: load a "
            "checkpoint of the family and size that the file is made for."
        )
    return Resident(tensor.reshape(shape))


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


@dataclass
class LiveAttention:
    """Shared attention that is in place; every field may be set between calls of the UNet."""

    matched: int
    control_signal: ControlSignal | None = None
    weight: float = 1.0
    active: Active = None
    rows: int | None = None  # of the UNet's current batch
    room: Room = field(default_factory=Room)
    is_plain: IsPlain = is_own_linear
    options: Mapping[str, Any] | None = None  # Forge's `transformer_options` of the current call

    @property
    def is_on(self) -> bool:
        return self.weight != 0 and (self.active is None or self.active())


@contextmanager
def shared_attention(
    unet: nn.Module,
    units: Mapping[str, AttentionSharingUnit],
    control_signal: ControlSignal | None = None,
    weight: float = 1.0,
    active: Active = None,
    is_plain: IsPlain = is_own_linear,
) -> Iterator[LiveAttention]:
    """Let the attention modules of `unet` compute as the units that are keyed by their names.

    All is done by hooks around the modules and on their projections, whatever computes in between: the host's own
    attention, or what another extension has put in its place. `control_signal` and `weight` are those of
    `AttentionSharingUnit.forward`; where `active()` is False the modules compute unchanged. Projections of which
    `is_plain` says so are joined with the unit's low-rank products (see `joining`). Refusal, when the UNet is called,
    where something computes attention in a way that the unit can't be added to.
    """
    _refuse_compiled(unet)
    modules = dict(unet.named_modules())
    missing = [name for name in units if name not in modules]
    if missing:
        raise Refusal(
            f"The loaded UNet has no {missing[0]}, as the attention-sharing file needs: load an SD1.5 checkpoint that "
            "isn't pruned or distilled."
        )
    live = LiveAttention(len(units), control_signal, weight, active, is_plain=is_plain)

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = args[0] if args else kwargs.get("x", kwargs.get("sample"))
        live.rows = None if batch is None else len(batch)
        live.options = kwargs.get("transformer_options")
        if batch is not None and isinstance(live.control_signal, Mapping):
            _check_size(batch, live.control_signal)

    with ExitStack() as stack:
        stack.callback(_complete, unet.register_forward_pre_hook(look, with_kwargs=True).remove)
        for name, unit in units.items():
            stack.enter_context(_HookedAttention(modules[name], unit, live).hooks(unet.get_submodule(_parent(name))))
        yield live


class _HookedAttention:
    """One attention module with the hooks by which its unit takes part.

    Usually the module is called: what is given and what comes out are changed by the outer hooks, the projections'
    results by the inner ones, as often as something calls them in between. Forge's replacements of attention call the
    projections without the module: then the inner hooks do it all, from `to_q` to `to_out`.
    """

    def __init__(self, module: nn.Module, unit: AttentionSharingUnit, live: LiveAttention) -> None:
        unit.attach(module)
        self.module, self.unit, self.live = module, unit, live
        self.call: Call | None = None
        self.inside = False  # the module is being called
        self.plain = False  # it is being asked for what it computes without the unit
        self.applied = False
        self.projected: set[str] = set()
        self.joined = {name: JoinedWeight(live.room) for name in PROJECTIONS}
        self.held: dict[str, Tensor] = {}  # projection -> its input in a call in which its layer is given no rows
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @contextmanager
    def hooks(self, block: nn.Module) -> Iterator[None]:
        """Have the hooks in place; `block` is the module that calls the attention."""
        projections = {name: getattr(self.module, name) for name in PROJECTIONS}
        projections["to_out"] = split_output(projections["to_out"])[0]
        with ExitStack() as stack:
            stack.callback(self.unit.release)
            stack.callback(_complete, block.register_forward_pre_hook(self.expect).remove)
            stack.callback(_complete, block.register_forward_hook(self.check).remove)
            stack.callback(_complete, self.module.register_forward_pre_hook(self.enter, with_kwargs=True).remove)
            stack.callback(_complete, self.module.register_forward_hook(self.leave, with_kwargs=True).remove)
            for name, layer in projections.items():
                stack.callback(_complete, layer.register_forward_pre_hook(self.make_holder(name)).remove)
                stack.callback(_complete, layer.register_forward_hook(self.make_projection(name)).remove)
            yield

    def expect(self, _block: nn.Module, _inputs: tuple[Any, ...]) -> None:
        self.call, self.inside, self.applied = None, False, not self.live.is_on
        self.projected.clear()

    def check(self, _block: nn.Module, _inputs: tuple[Any, ...], _output: Any) -> None:
        if not self.applied and self.live.is_on:
            raise self.refuse_uncalled()

    def enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin: the module is given the hidden state with what the control signal adds."""
        if self.plain or not self.live.is_on:
            return None
        h = next(each for each in (*args, kwargs.get("x"), kwargs.get("hidden_states")) if each is not None)
        if self.by_place and self.live.rows not in (None, len(h)):
            raise self.refuse_rows()
        self.call = call = self.unit.begin(h, self.live.control_signal)
        self.inside, self.given = True, (args, kwargs)
        self.projected.clear()
        if call.added is None:
            return None
        source = call.source  # given twice where the host names the context of self-attention, too
        changed = {name: source if each is h else each for name, each in kwargs.items()}
        return tuple(source if each is h else each for each in args), changed

    def leave(self, module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Any:
        """Finish what the module, or another extension's code for it, has computed."""
        if self.plain or not self.inside or self.call is None:
            return None
        call, (args, kwargs) = self.call, self.given
        self.call, self.inside, self.given = None, False, ((), {})
        if self.projected != set(PROJECTIONS):
            raise self.refuse_uncalled()
        if output.shape != call.h.shape:
            raise self.refuse_rows()
        self.applied = True
        change = call.finish(output)
        if self.live.weight == 1:
            return change
        if find_extension(vars(module).get("forward"), INSTALLED):  # it may count its calls
            raise self.refuse_weight()
        self.plain = True
        try:
            plain = module.forward(*args, **kwargs)
        finally:
            self.plain = False
        return torch.lerp(plain, change, self.live.weight)

    def make_holder(self, name: str) -> Callable[..., Any]:
        """A layer whose weight can be joined is given no rows."""

        def hold(layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
            self.held.pop(name, None)
            x = inputs[0]
            if self.plain or not self.inside or not self.live.is_on or not can_join(layer, x, self.live.is_plain):
                return None
            self.held[name] = x
            return x[:0]

        return hold

    def make_projection(self, name: str) -> Callable[..., Tensor | None]:
        def project(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.plain or not self.live.is_on:
                return None
            held = self.held.pop(name, None)
            x = inputs[0] if held is None else held
            self.check_parts(len(x), len(self.call.h) if self.inside and self.call else self.live.rows)
            if self.call is None or (name == "to_q" and not self.inside):
                self.call = self.begin_outside(x)
            call = self.call
            self.projected.add(name)
            output = call.project(name, x, output) if held is None else self.project_held(name, layer, x, call)
            if self.inside or name != "to_out":
                return output
            if self.projected != set(PROJECTIONS):
                raise self.refuse_uncalled()
            self.call, self.applied = None, True
            self.projected.clear()
            return call.finish(output)

        return project

    def project_held(self, name: str, layer: Any, x: Tensor, call: Call) -> Tensor:
        """What a layer that was given no rows gives for `x`, with each frame's low-rank product."""
        weight = self.joined[name].find(
            layer.weight,
            self.unit.read_versions(name),
            self.unit.frames,
            pays=lambda: self.unit.pays_to_join_projection(name, x),
            make=lambda: self.unit.join_projection(name, layer.weight),
        )
        if weight is None:
            return call.project(name, x, F.linear(x, layer.weight, layer.bias))
        return call.project_joined(weight, layer.bias, x)

    def begin_outside(self, x: Tensor) -> Call:
        """Begin with a projection, where something attends without calling the module."""
        if self.live.weight != 1:
            raise self.refuse_weight()
        if self.unit.control_convs is not None:
            raise self.refuse_uncalled()
        return self.unit.begin(x)

    def check_parts(self, rows: int, of: int | None) -> None:
        """Refuse rows that aren't all of the batch, or as many whole sets of it as fit a number of times."""
        if self.unit.frames > 1 and of not in (None, rows) and (of % rows or rows % self.unit.frames):
            raise self.refuse_rows()

    @property
    def by_place(self) -> bool:
        """Whether rows and tokens count by their place in the batch and in the picture."""
        return self.unit.frames > 1 or self.unit.control_convs is not None

    @property
    def others(self) -> str:
        own = self.module.forward
        found = [own] if find_extension(own) else list_attention_patches(self.live.options)
        return name_extensions(found)

    def refuse_rows(self) -> Refusal:
        return Refusal(
            f"{self.others or HYPERTILE} cuts the image into parts or changes the number of images within the UNet, "
            "which this layer mode can't be used with: switch that off, or choose the layer mode 'foreground'."
        )

    def refuse_uncalled(self) -> Refusal:
        return Refusal(
            f"{self.others or OTHERS} computes the UNet's attention by itself, so that this layer mode would have no "
            "effect: switch that off."
        )

    def refuse_weight(self) -> Refusal:
        return Refusal(
            f"{self.others or OTHERS} computes the UNet's attention, which a layer mode can be used with in full only: "
            "set the weight of the layer mode to 1, or switch the other extension off."
        )


def _check_size(batch: Tensor, signals: Mapping[int, Tensor]) -> None:
    """Refuse parts of a picture where the layer mode's image is that of the whole."""
    largest = signals[max(signals)]
    if batch.shape[-2:] != largest.shape[-2:]:
        raise Refusal(
            f"The UNet is given {list(batch.shape[-2:])} latent pixels and the layer mode's image has "
            f"{list(largest.shape[-2:])}, as when another extension (such as Tiled Diffusion) samples in tiles: switch "
            "that off, or choose a layer mode without an image."
        )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


@contextmanager
def posterior(vae: nn.Module, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the moments [B, 2C, h, w] (mean, log variance) that `vae.quant_conv` gives by `fn(moments)`."""
    quant_conv = getattr(vae, "quant_conv", None)
    if not isinstance(quant_conv, nn.Module):
        raise Refusal(
            "The loaded VAE has no quant_conv, so no offset can be put into its latents: load an SD or SDXL VAE."
        )

    def replace(_module: nn.Module, _inputs: tuple[Any, ...], moments: Tensor) -> Tensor:
        return fn(moments)

    handle = quant_conv.register_forward_hook(replace)
    try:
        yield
    finally:
        _complete(handle.remove)


def fix_moments(moments: Tensor, offset: Tensor | None = None) -> Tensor:
    """Moments [B, 2C, h, w] whose sample is mean + std * offset (without one the mean), whatever is drawn."""
    mean, log_variance = moments.chunk(2, dim=1)
    if offset is not None:
        mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * offset.to(mean)
    return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)


@dataclass
class TimestepWindow:
    """Whether the UNet's current timestep lies between `start` and `stop`, both included."""

    start: float
    stop: float
    active: bool = True


@contextmanager
def timestep_window(unet: nn.Module, start: float, stop: float) -> Iterator[TimestepWindow]:
    """Follow the timestep that `unet` is called with, from `start` (noisy) down to `stop`; see `TimestepWindow`."""
    window = TimestepWindow(start, stop)

    def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[1] if len(args) > 1 else kwargs.get("timestep", kwargs.get("timesteps"))
        timestep = float(torch.as_tensor(given).flatten()[0])
        window.active = window.stop <= timestep <= window.start

    handle = unet.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield window
    finally:
        _complete(handle.remove)


def _complete(undo: Callable[[], None]) -> None:
    """Undo something; when Ctrl-C lands in that, once more before it ends the program. `undo` may be called twice."""
    try:
        undo()
    except KeyboardInterrupt:
        undo()
        raise


def _refuse_compiled(unet: nn.Module) -> None:
    if hasattr(unet, "_orig_mod"):
        raise Refusal("The UNet is compiled, so nothing can be hooked into it: switch torch.compile off.")
