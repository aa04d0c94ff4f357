"""Attention shared between the frames of a layer set: the unit that stands in for an attention module.

LayerDiffusion, arXiv 2402.17113, section 3.3. Parameter names are those of the published `layer_sd15_*` files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_layerdiffusion.joining import (
    JOIN_CALLS,
    add_product,
    count_rows,
    make_exact,
    make_like,
    pays_to_join,
    read_version,
)
from lib_layerdiffusion.refusal import Refusal

CONTROL_CHANNELS = 256
LARGEST_STRETCH = 1.5
"""How much the shape of a control signal may change when none has the token count of the attention."""

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
LINEARS = ("temporal_i", "temporal_q", "temporal_k", "temporal_v", "temporal_o")

_BLOCKS = (
    *(f"input_blocks.{number}.1" for number in (1, 2, 4, 5, 7, 8)),
    *(f"output_blocks.{number}.1" for number in range(3, 12)),
    "middle_block.1",
)
ATTENTION_ORDER: tuple[str, ...] = tuple(
    f"{block}.transformer_blocks.0.{attention}" for block in _BLOCKS for attention in ("attn1", "attn2")
)
"""LDM names of the 32 attention modules of an SD1.5 UNet, in the order of the files."""

ControlWidths: TypeAlias = "tuple[int, int, int, int]"
"""Channels of a control encoder's first four scales; the last is also that of the signals."""

ControlSignal: TypeAlias = "Tensor | Mapping[int, Tensor]"
"""[B or 1, 256, h, w], or such tensors by their token count h * w, as ControlEncoder makes them."""


class LowRank(nn.Module):
    """What is added to a frame's projection: up(down(x)); nothing as long as it isn't trained."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)


ControlWeights: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor]"
"""Weight and bias of the first, then of the second convolution, of all frames."""


@dataclass(frozen=True)
class UnitWeights:
    """A unit's parameters in what the host computes in, ready for one call over all frames."""

    norm: tuple[Tensor, Tensor]  # weight and bias of the layer before the attention between the frames
    temporal: Mapping[str, Sequence[tuple[Tensor, Tensor]]]  # letter -> weight and bias of layers applied in turn
    control: ControlWeights | None


@dataclass
class Call:
    """A call of an attention module to which a unit adds its parts while and after the module computes."""

    unit: AttentionSharingUnit
    h: Tensor  # [(b f), n, c]
    weights: UnitWeights
    added: Tensor | None  # by the control signal

    @property
    def source(self) -> Tensor:
        """What the module has to be given for the hidden state, [(b f), n, c]."""
        return self.h if self.added is None else self.h + self.added

    def project(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """A projection's `output` for `x` with each frame's low-rank product; the frame runs fastest in the rows."""
        factors = self.unit.read_low_rank(name, self.h)
        product = _multiply_by_frame(x.to(factors[0].dtype), factors)
        return (output.unflatten(0, product.shape[:2]) + product.to(output.dtype)).flatten(0, 1)

    def project_joined(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """The same by weights [f, out, in] that hold the projection's own and each frame's product."""
        output = _multiply_by_frame(x, (weight,))
        return (output if bias is None else output + bias).flatten(0, 1)

    def finish(self, change: Tensor) -> Tensor:
        """What the module's result becomes: with the control signal and the attention between the frames."""
        change = change if self.added is None else change + self.added
        return change + self.unit.attend_between_frames(self.h + change, self.weights)


class AttentionSharingUnit(nn.Module):
    """Stands in for one attention module: low-rank projections per frame, then attention between the frames.

    `attention` is the host's module; it has `heads`, `to_q`, `to_k`, `to_v` and `to_out` (a linear, or a list of one
    and a dropout). Its layers are called, never read, so quantised weights and other LoRAs on them keep working; it is
    not a submodule. `widths`: of the hidden state and of the context; read from the module when not given.
    `control_channels`: of the control signal, if there is one.
    A fresh unit gives what `attention` gives.
    """

    def __init__(
        self,
        attention: Any,
        frames: int,
        control: bool = False,
        rank: int = 256,
        widths: tuple[int, int] | None = None,
        control_channels: int = CONTROL_CHANNELS,
    ) -> None:
        super().__init__()
        hidden, context = widths or _read_widths(attention)
        self._attention = [attention]  # in a list: not a submodule
        self.frames = frames
        inputs = {"to_q": hidden, "to_k": context, "to_v": context, "to_out": hidden}
        for name in PROJECTIONS:
            parts = nn.ModuleList(LowRank(inputs[name], hidden, rank) for _ in range(frames))
            self.add_module(f"{name}_lora", parts)
        for name in LINEARS:
            self.add_module(name, nn.Linear(hidden, hidden))
        self.temporal_n = nn.LayerNorm(hidden, eps=1e-6)
        self.control_convs = None
        if control:
            self.control_convs = nn.ModuleList(_make_control_convs(control_channels, hidden) for _ in range(frames))
        _zero(self.get_submodule("temporal_o"))
        for convs in self.control_convs or ():
            _zero(convs.get_submodule("2"))
        self._ready: tuple[Any, UnitWeights] | None = None
        self._low_rank: dict[str, tuple[Any, tuple[Tensor, ...]]] = {}
        self._added: tuple[Tensor, ControlWeights, int, Tensor] | None = None

    @property
    def attention(self) -> Any:
        """The host's attention module."""
        return self._attention[0]

    def attach(self, attention: Any) -> None:
        """Stand in for another module of the same widths; assigning a module would register it as a submodule."""
        self._attention[0] = attention

    def forward(
        self,
        h: Tensor,
        context: Tensor | Sequence[Any] | None = None,
        *,
        value: Tensor | None = None,
        control_signal: ControlSignal | None = None,
        extra_contexts: Sequence[Tensor | None] | None = None,
        cond_mark: Tensor | None = None,
        weight: float = 1.0,
    ) -> Tensor:
        """Attend; the caller adds the residual `h` to what is returned.

        `h` [(b f), tokens, c], the frame running fastest, and `context` [(b f), words, d], None for self-attention
        (`value`: another source of the values). A sequence for a context is that of an IP-Adapter: the text, then what
        only the host's own attention knows, whose effect is kept. `control_signal` needs a unit with control.
        `extra_contexts`, one per frame or None, [1 or rows, words, d], replace the context of the frame's conditional
        rows: those with 0 in `cond_mark` [(b f)], all without it. `weight` scales the deviation from the plain module:
        0 is the plain module.
        """
        if isinstance(context, Sequence):
            text: Tensor = context[0]
            shared = self(
                h,
                text,
                value=value,
                control_signal=control_signal,
                extra_contexts=extra_contexts,
                cond_mark=cond_mark,
                weight=weight,
            )
            own = type(self.attention).forward(self.attention, h, context)  # the instance's `forward` may be this unit
            return own + (shared - self._attend_plain(h, text, value))
        if weight == 0:
            return self._attend_plain(h, context, value)
        call = self.begin(h, control_signal)
        source = call.source
        keys = source if context is None or context is h else context
        values = keys if value is None or value is h else value
        if extra_contexts is not None and keys is not source:
            keys, values = (self._replace_contexts(part, extra_contexts, cond_mark) for part in (keys, values))
        change = call.finish(self._attend_frames(call, keys, values))
        if weight == 1:
            return change
        return torch.lerp(self._attend_plain(h, context, value), change, weight)

    def begin(self, h: Tensor, control_signal: ControlSignal | None = None) -> Call:
        """Prepare for a call of the module with `h` [(b f), tokens, c]; see `forward` for the rest."""
        if len(h) % self.frames:
            raise Refusal(
                f"The UNet is given {len(h)} images and the layer mode makes sets of {self.frames}: "
                f"choose a batch size that is a multiple of {self.frames}."
            )
        weights = self._prepare(h)
        return Call(self, h, weights, self._add_control(h, control_signal, weights))

    def pays_to_join_projection(self, name: str, x: Tensor) -> bool:
        """Whether a projection of `x` is less work with each frame's low-rank product in its weight."""
        rank, inputs = self.get_parameter(f"{name}_lora.0.down.weight").shape
        return pays_to_join(len(self.get_parameter(f"{name}_lora.0.up.weight")), inputs, rank, count_rows(x))

    def read_versions(self, name: str) -> tuple[tuple[int, int], ...]:
        """What changes when the low-rank factors of a projection do."""
        return tuple(read_version(parameter) for parameter in self.get_submodule(f"{name}_lora").parameters())

    def join_projection(self, name: str, weight: Tensor) -> Tensor:
        """The projection's own weight [out, in] and each frame's low-rank product in one: [f, out, in], as `weight`."""
        frames: Any = self.get_submodule(f"{name}_lora")
        return _stack([add_product(weight, frame.up.weight, frame.down.weight) for frame in frames])

    def read_low_rank(self, name: str, h: Tensor) -> tuple[Tensor, ...]:
        """A projection's low-rank factors like `h`: down [f, rank, in] and up [f, out, rank], or their products.

        They are cast and stacked when the projection first needs them, which one that is joined never does.
        """
        parameters = list(self.get_submodule(f"{name}_lora").parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return self._stack_low_rank(name, h)
        h = make_like(h)
        state = (h.dtype, h.device, self.read_versions(name))
        kept = self._low_rank.get(name)
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._low_rank[name] = kept = (state, self._stack_low_rank(name, h))
        return kept[1]

    def release(self) -> None:
        """Let go of the copies of parameters and control signals that calls have made in the host's dtype."""
        self._ready = self._added = None
        self._low_rank.clear()

    def _attend_plain(self, h: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        attention = self.attention
        context = h if context is None else context
        value = context if value is None else value
        hidden = attend(attention.to_q(h), attention.to_k(context), attention.to_v(value), attention.heads)
        linear, rest = split_output(attention.to_out)
        return rest(linear(hidden))

    def _attend_frames(self, call: Call, keys: Tensor, values: Tensor) -> Tensor:
        attention = self.attention
        source = call.source
        q = call.project("to_q", source, attention.to_q(source))
        k = call.project("to_k", keys, attention.to_k(keys))
        v = call.project("to_v", values, attention.to_v(values))
        linear, rest = split_output(attention.to_out)
        mixed = attend(q, k, v, attention.heads)
        return rest(call.project("to_out", mixed, linear(mixed)))

    def attend_between_frames(self, hidden: Tensor, weights: UnitWeights) -> Tensor:
        """Attention over the frame axis for each token; for one frame the softmax is 1 and the values pass."""
        norm = (part.to(hidden) for part in weights.norm)
        x = functional.layer_norm(hidden, hidden.shape[-1:], *norm, eps=1e-6)
        temporal = weights.temporal
        if self.frames == 1:
            return _pass_through(temporal["v"], x)
        inner = _pass_through(temporal.get("i", ()), x)
        q, k, v = (_pass_through(temporal[name], inner).unflatten(0, (-1, self.frames)) for name in "qkv")
        mixed = _mix_frames(q, k, v, self.attention.heads).flatten(0, 1)
        return _pass_through(temporal["o"], mixed)

    def _replace_contexts(
        self, context: Tensor, extra_contexts: Sequence[Tensor | None], cond_mark: Tensor | None
    ) -> Tensor:
        """Put the extra contexts in place of the conditional rows of their frames.

        Contexts of different lengths are repeated to their least common multiple, which changes no attention.
        """
        if len(extra_contexts) != self.frames:
            raise Refusal(
                f"There are {len(extra_contexts)} additional prompts for the {self.frames} images of a set: "
                "give one for each image, or none."
            )
        extras = [None if extra is None else extra.to(context) for extra in extra_contexts]
        words = math.lcm(context.shape[1], *(extra.shape[1] for extra in extras if extra is not None))
        context = _repeat_words(context, words)
        replaced = list(context.unflatten(0, (-1, self.frames)).unbind(1))
        marks = torch.zeros(len(context)) if cond_mark is None else cond_mark.flatten()
        conditional = (marks.to(context.device) == 0).unflatten(0, (-1, self.frames))
        for frame, extra in enumerate(extras):
            if extra is not None:
                replaced[frame] = _replace_rows(replaced[frame], _repeat_words(extra, words), conditional[:, frame])
        return torch.stack(replaced, dim=1).flatten(0, 1)

    def _add_control(self, h: Tensor, signal: ControlSignal | None, weights: UnitWeights) -> Tensor | None:
        """What the control signal adds to the hidden state, [(b f), n, c]; it is the same in every step."""
        if weights.control is None:
            return None
        if signal is None:
            raise Refusal("This layer mode is made for a control image and none is given: give it its image.")
        chosen, tokens, kept = _choose_signal(signal, h.shape[1]), h.shape[1], self._added
        if kept is not None and kept[0] is chosen and kept[1] is weights.control and kept[2] == tokens:
            added = kept[3]
        else:
            added = self._convolve_control(_fit_signal(chosen, tokens).to(h), weights.control)
            self._added = None if added.requires_grad else (chosen, weights.control, tokens, added)
        sets = len(h) // self.frames
        if sets % len(added):
            raise Refusal(
                f"There are {len(added)} control images for {sets} layer sets: give one image, or one for each set."
            )
        return added.repeat(sets // len(added), 1, 1, 1).flatten(0, 1)

    def _convolve_control(self, signal: Tensor, convs: ControlWeights) -> Tensor:
        """[B, 256, h, w] to [B, f, h * w, c]."""
        x = functional.silu(functional.conv2d(signal, *convs[:2], padding=1))
        x = functional.conv2d(x, *convs[2:], groups=self.frames)
        return x.flatten(2).unflatten(1, (self.frames, -1)).transpose(2, 3)

    def _prepare(self, h: Tensor) -> UnitWeights:
        """Cast and stack what isn't low-rank; the result is kept as long as no gradient has to flow through it."""
        parameters = [parameter for name, parameter in self.named_parameters() if "_lora." not in name]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return self._stack_weights(h)
        h = make_like(h)
        state = (h.dtype, h.device, self._pays_to_join(h), tuple(read_version(parameter) for parameter in parameters))
        if self._ready is None or self._ready[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._ready = (state, self._stack_weights(h))
        return self._ready[1]

    def _stack_weights(self, h: Tensor) -> UnitWeights:
        control = None
        if self.control_convs is not None:
            names = ("0.weight", "0.bias", "2.weight", "2.bias")
            first, first_bias, second, second_bias = (
                torch.cat([self.get_parameter(f"control_convs.{frame}.{name}").to(h) for frame in range(self.frames)])
                for name in names
            )
            control = (first, first_bias, second, second_bias)
        return UnitWeights(self._read_linear("temporal_n", h), self._list_temporal(h), control)

    def _pays_to_join(self, h: Tensor) -> bool:
        """Whether layers with nothing between them are less work after JOIN_CALLS calls when they are joined at first.

        One frame's values pass three, which become one; of several frames the first of four is joined to three.
        """
        joined, saved = (2, 2) if self.frames == 1 else (3, 1)
        rows = self.frames * count_rows(h)
        return joined * h.shape[-1] <= JOIN_CALLS * saved * rows

    def _list_temporal(self, h: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """The layers of the attention between the frames, by letter, joined where that pays.

        One frame has "v" alone; several have no "i" where it is joined with what follows.
        """
        joins = self._pays_to_join(h)
        if self.frames == 1:
            paths = {"v": "ivo"}
        elif joins:
            paths = {"q": "iq", "k": "ik", "v": "iv", "o": "o"}
        else:
            paths = {"i": "i", "q": "q", "k": "k", "v": "v", "o": "o"}
        like = make_exact(h) if joins else h
        read = {letter: self._read_linear(f"temporal_{letter}", like) for letter in set("".join(paths.values()))}
        layers = {name: [read[letter] for letter in path] for name, path in paths.items()}
        return {name: [_join(path, h)] for name, path in layers.items()} if joins else layers

    def _stack_low_rank(self, name: str, h: Tensor) -> tuple[Tensor, ...]:
        """The two factors, or their product where that is at most as large, so that multiplying by it is less work."""
        down, up = (
            [self.get_parameter(f"{name}_lora.{f}.{part}.weight") for f in range(self.frames)]
            for part in ("down", "up")
        )
        outputs, inputs = len(up[0]), down[0].shape[1]
        if outputs * inputs > down[0].numel() + up[0].numel():
            return tuple(_stack([factor.to(h) for factor in factors]) for factors in (down, up))
        exact = make_exact(h)
        down, up = (_stack([factor.to(exact) for factor in factors]) for factors in (down, up))
        return ((up @ down).to(h),)

    def _read_linear(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"{name}.weight").to(like), self.get_parameter(f"{name}.bias").to(like)


class ControlEncoder(nn.Module):
    """Encodes the control image to the signals at 1/8, 1/16, 1/32 and 1/64 of its size."""

    def __init__(self, widths: ControlWidths = (32, 64, 128, CONTROL_CHANNELS)) -> None:
        super().__init__()
        a, b, c, d = widths
        first = [(3, a, 1), (a, a, 1), (a, b, 2), (b, b, 1), (b, c, 2), (c, c, 1), (c, d, 2), (d, d, 1)]
        self.blocks_0 = _make_conv_stack(first)
        self.blocks_1 = _make_conv_stack([(d, d, 2), (d, d, 1)])
        self.blocks_2 = _make_conv_stack([(d, d, 2), (d, d, 1)])
        self.blocks_3 = _make_conv_stack([(d, d, 2), (d, d, 1)])

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Encode `image` [B, 3, H, W], -1..1, to {h * w: signal [B, 256, h, w]}."""
        signals: dict[int, Tensor] = {}
        signal = image
        for block in (self.blocks_0, self.blocks_1, self.blocks_2, self.blocks_3):
            signal = block(signal)
            signals[signal.shape[2] * signal.shape[3]] = signal
        return signals


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of q [B, n, c] to k, v [B, m, c]."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _join(layers: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Linear layers that follow each other as one."""
    (weight, bias), *others = layers
    for following, added in others:
        weight, bias = following @ weight, following @ bias + added
    return weight.to(like), bias.to(like)


def _multiply_by_frame(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """x [(b f), ..., in], the frame running fastest, by each frame's factors [f, out, in] in turn: [b, f, ..., out].

    Set by set, since a product of all sets at once would copy the factors for each, and the last bits of one with the
    rows of several sets put together depend on their number.
    """
    frames = len(factors[0])
    if frames == 1:
        return functools.reduce(lambda x, factor: functional.linear(x, factor[0]), factors, x).unsqueeze(1)
    sets = [
        functools.reduce(lambda rows, factor: torch.bmm(rows, factor.mT), factors, rows.flatten(1, -2))
        for rows in x.unflatten(0, (-1, frames))
    ]
    return torch.stack(sets).unflatten(2, x.shape[1:-1])


def _pass_through(layers: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    return functools.reduce(lambda x, layer: functional.linear(x, *layer), layers, x)


def _mix_frames(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention between the frames of each token, all [b, f, n, c].

    Frames are few and tokens many, so each product of two frames is taken of all tokens at once, in single precision
    at least.
    """
    exact = make_exact(q)
    queries, keys, values = (part.unflatten(3, (heads, -1)).to(exact).unbind(1) for part in (q, k, v))
    scale = queries[0].shape[-1] ** -0.5
    mixed: list[Tensor] = []
    for query in queries:
        scores = torch.stack([(query * key).sum(-1) for key in keys], dim=-1)  # [b, n, heads, f]
        shares = (scores * scale).softmax(-1).unsqueeze(-1).unbind(-2)
        mixed.append(functools.reduce(torch.add, (share * value for share, value in zip(shares, values, strict=True))))
    return torch.stack(mixed, dim=1).flatten(3).to(q)


def known_widths(attention: Any) -> tuple[int | None, int | None]:
    """Widths of hidden state and context; None where the host's layer (4 bit, GGUF) doesn't tell."""
    hidden, context = (getattr(getattr(attention, name, None), "in_features", None) for name in ("to_q", "to_k"))
    return hidden, context


def _read_widths(attention: Any) -> tuple[int, int]:
    hidden, context = known_widths(attention)
    if hidden is None or context is None:
        raise ValueError("to_q and to_k don't tell their in_features: give widths")
    return hidden, context


def _make_control_convs(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(), nn.Conv2d(channels, outputs, 1))


def _make_conv_stack(convs: Iterable[tuple[int, int, int]]) -> nn.Sequential:
    """3x3 convolutions (inputs, outputs, stride), each followed by SiLU."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in convs:
        layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.SiLU()]
    return nn.Sequential(*layers)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def split_output(to_out: Any) -> tuple[Any, nn.Sequential]:
    """The output projection and what follows it (a dropout)."""
    if isinstance(to_out, nn.Sequential | nn.ModuleList):
        first, *rest = to_out
        return first, nn.Sequential(*rest)
    return to_out, nn.Sequential()


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))


def _repeat_words(context: Tensor, words: int) -> Tensor:
    return context.repeat(1, words // context.shape[1], 1)


def _replace_rows(rows: Tensor, extra: Tensor, chosen: Tensor) -> Tensor:
    """`rows` [b, words, d] with `extra` [1 or k, words, d], repeated, where `chosen` [b] is true."""
    count = int(chosen.sum())
    if count % len(extra):
        raise Refusal(
            f"There are {len(extra)} additional prompts of a kind for {count} images: give one, or one for each image."
        )
    replaced = rows.clone()
    replaced[chosen] = extra.repeat(count // len(extra), 1, 1)
    return replaced


def _choose_signal(signal: ControlSignal, tokens: int) -> Tensor:
    """The signal with the token count; without one the nearest, counted in octaves."""
    if isinstance(signal, Tensor):
        return signal
    if tokens in signal:
        return signal[tokens]
    return signal[min(signal, key=lambda count: abs(math.log(count / tokens)))]


def _fit_signal(signal: Tensor, tokens: int) -> Tensor:
    """Resize a signal [B, 256, h, w] to `tokens` in the nearest shape; the same object when it has them."""
    height, width = signal.shape[2:]
    if height * width == tokens:
        return signal
    heights = [rows for rows in range(1, tokens + 1) if tokens % rows == 0]
    stretch = {rows: abs(math.log(rows * rows / tokens * width / height)) for rows in heights}
    rows = min(heights, key=lambda rows: stretch[rows])
    if stretch[rows] > math.log(LARGEST_STRETCH):
        raise Refusal(
            f"The UNet attends to {tokens} tokens, which doesn't match the control image (nearest: {height} x "
            f"{width}): turn off token merging and tiling, and give the image the size that is sampled."
        )
    return functional.interpolate(signal.float(), (rows, tokens // rows), mode="bilinear", antialias=True)
