"""Attention sharing on narrow modules, against a computation that is written here row by row and token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_layerdiffusion import joining
from lib_layerdiffusion.injection import shared_attention as stand_in
from lib_layerdiffusion.joining import JOIN_BYTES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import (
    ATTENTION_ORDER,
    PROJECTIONS,
    AttentionSharingUnit,
    ControlEncoder,
    _mix_frames,
    attend,
)
from lib_layerdiffusion.weights.attention_units import read_units
from tests import seeded

WIDTH, WORDS_WIDTH, HEADS, RANK = 16, 12, 2, 3
TOKENS = 6


class HostAttention(nn.Module):
    """A host's attention; with a tuple for a context it attends to its image prompts, too, as IP-Adapter does."""

    def __init__(self, context: int = WORDS_WIDTH) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0)])
        seeded.fill(self, 5, prefix="host.")
        self.requires_grad_(False)

    def forward(self, h: Tensor, context: Tensor | tuple[Tensor, list[Tensor]] | None = None) -> Tensor:
        text, images = context if isinstance(context, tuple) else (context, [])
        attended = [self.attend(h, h if text is None else text), *(0.5 * self.attend(h, image) for image in images)]
        return self.to_out[1](self.to_out[0](torch.stack(attended).sum(0)))

    def attend(self, h: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (self.to_q(h), self.to_k(context), self.to_v(context))
        )
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def make_unit(
    host: nn.Module, frames: int, control: bool = False, seed: int = 6, rank: int = RANK
) -> AttentionSharingUnit:
    """A unit none of whose parts does nothing."""
    unit = AttentionSharingUnit(host, frames, control, rank)
    seeded.fill(unit, seed)
    return unit.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [n, c] to k, v [m, c], head by head."""
    parts = zip(q.chunk(HEADS, 1), k.chunk(HEADS, 1), v.chunk(HEADS, 1), strict=True)
    return torch.cat([(a @ b.T / math.sqrt(a.shape[1])).softmax(1) @ c for a, b, c in parts], dim=1)


def compute(
    unit: AttentionSharingUnit, h: Tensor, contexts: Sequence[Tensor] | None = None, added: Tensor | None = None
) -> Tensor:
    """What the unit gives for h [(b f), n, c] when row i attends to contexts[i] (None: to itself)."""
    host, frames = unit.attention, unit.frames
    changes: list[Tensor] = []
    for row, own in enumerate(h):

        def project(name: str, layer: nn.Module, x: Tensor, frame: int = row % frames) -> Tensor:
            low_rank = unit.get_submodule(f"{name}_lora.{frame}")
            return layer(x) + low_rank.up(low_rank.down(x))

        source = own if added is None else own + added[row]
        context = source if contexts is None else contexts[row]
        q, k, v = (
            project("to_q", host.to_q, source),
            project("to_k", host.to_k, context),
            project("to_v", host.to_v, context),
        )
        change = project("to_out", host.to_out[0], attend_plainly(q, k, v))
        changes.append(change if added is None else change + added[row])
    return share(unit, h, torch.stack(changes))


def share(unit: AttentionSharingUnit, h: Tensor, rows: Tensor) -> Tensor:
    """`rows` [(b f), n, c], which the attention gave for h, with what the frames of a set see of each other."""
    frames = unit.frames
    between = torch.empty_like(rows)
    for first in range(0, len(h), frames):
        for token in range(h.shape[1]):
            seen = (h + rows)[first : first + frames, token]
            x = unit.temporal_i(unit.temporal_n(seen))
            mixed = attend_plainly(unit.temporal_q(x), unit.temporal_k(x), unit.temporal_v(x))
            between[first : first + frames, token] = unit.temporal_o(mixed)
    return rows + between


def assert_close(output: Tensor, wanted: Tensor) -> None:
    assert output.shape == wanted.shape
    assert (output - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def assert_one_sentence(refusal: pytest.ExceptionInfo[Refusal]) -> None:
    said = str(refusal.value)
    assert said.endswith(".")
    assert ". " not in said
    assert "\n" not in said


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("sets", [1, 2, 6])  # 6: three images, each with and without its prompt
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_equals_rows_and_frames_one_by_one(frames: int, sets: int, cross: bool) -> None:
    unit = make_unit(HostAttention() if cross else HostAttention(WIDTH), frames)
    h = draw(sets * frames, TOKENS, WIDTH)
    context = draw(sets * frames, 7, WORDS_WIDTH, seed=2) if cross else None
    assert_close(unit(h, context), compute(unit, h, context))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_factors_that_are_larger_than_their_product(frames: int, cross: bool) -> None:
    unit = make_unit(HostAttention() if cross else HostAttention(WIDTH), frames, rank=WIDTH)
    h = draw(2 * frames, TOKENS, WIDTH)
    context = draw(2 * frames, 7, WORDS_WIDTH, seed=2) if cross else None
    assert_close(unit(h, context), compute(unit, h, context))


def test_sets_do_not_see_each_other() -> None:
    unit = make_unit(HostAttention(), 2)
    h, context = draw(8, TOKENS, WIDTH), draw(8, 7, WORDS_WIDTH, seed=2)
    together = unit(h, context)
    for first in range(0, 8, 2):
        rows = slice(first, first + 2)
        assert_close(unit(h[rows], context[rows]), together[rows])


def test_frames_of_a_set_see_each_other() -> None:
    unit = make_unit(HostAttention(WIDTH), 2)
    h = draw(4, TOKENS, WIDTH)
    changed = h.clone()
    changed[1] += 1
    difference = (unit(changed) - unit(h)).abs().amax((1, 2))
    assert difference[0] > 1e-3
    assert difference[2:].max() <= 1e-6


def test_frames_in_one_call_equal_frame_by_frame() -> None:
    """Without attention between the frames, a unit of three frames is three units of one."""
    host = HostAttention()
    unit = make_unit(host, 3)
    for parameter in unit.get_submodule("temporal_o").parameters():
        parameter.zero_()
    h, context = draw(6, TOKENS, WIDTH), draw(6, 7, WORDS_WIDTH, seed=2)
    output = unit(h, context)
    for frame in range(3):
        alone = AttentionSharingUnit(host, 1, rank=RANK)
        state = unit.state_dict()
        alone.load_state_dict({name: state[name.replace("_lora.0.", f"_lora.{frame}.")] for name in alone.state_dict()})
        assert_close(alone(h[frame::3], context[frame::3]), output[frame::3])


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("tokens", [1, 64])
def test_few_or_many_tokens(frames: int, tokens: int) -> None:
    """Layers that follow each other are joined for many."""
    unit = make_unit(HostAttention(WIDTH), frames)
    for count in (tokens, 65 - tokens):
        h = draw(2 * frames, count, WIDTH)
        assert_close(unit(h), compute(unit, h))


def test_frames_attend_without_a_call_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU kernels have limits at 65536 sequences; only the module's own attention calls one, of all tokens."""
    calls: list[int] = []
    kernel = functional.scaled_dot_product_attention

    def count(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(len(q))
        return kernel(q, k, v)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", count)
    unit = make_unit(HostAttention(), 2)
    h, context = draw(2, 32768 + 3, WIDTH), draw(2, 2, WORDS_WIDTH, seed=2)
    output = unit(h, context)
    assert calls == [2]
    # tokens of cross attention don't see each other
    assert_close(output[:, -5:], unit(h[:, -5:], context))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_between_frames_is_exact_in_half_precision(dtype: torch.dtype) -> None:
    """No further from double precision than rounding its inputs and its result is."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 50, 32).mul(4).to(dtype) for _ in range(3))
    by_token = (x.double().transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    wanted = attend(*by_token, heads=2).unflatten(0, (2, -1)).transpose(1, 2)
    assert (_mix_frames(q, k, v, 2).double() - wanted).abs().max() < 4.0 * torch.finfo(dtype).eps * 2


def test_single_frame_needs_only_the_values() -> None:
    """The softmax over one frame is 1, so queries and keys don't matter."""
    unit = make_unit(HostAttention(WIDTH), 1)
    h = draw(2, TOKENS, WIDTH)
    before = unit(h)
    for name in ("temporal_q", "temporal_k"):
        seeded.fill(unit.get_submodule(name), 99)
    assert torch.equal(unit(h), before)
    seeded.fill(unit.get_submodule("temporal_v"), 99)
    assert not torch.allclose(unit(h), before, atol=1e-3)


@pytest.mark.parametrize("cross", [False, True])
def test_weight_goes_from_the_host_s_output_to_the_file_s(cross: bool) -> None:
    host = HostAttention() if cross else HostAttention(WIDTH)
    unit = make_unit(host, 2)
    h, context = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2) if cross else None
    plain, full = host(h, context), unit(h, context)
    assert torch.equal(unit(h, context, weight=0), plain)
    assert torch.equal(unit(h, context, weight=1.0), full)
    assert (full - plain).abs().max() > 0.1
    for weight in (-0.5, 0.25, 0.5, 0.99, 1.5):
        assert_close(unit(h, context, weight=weight), plain + weight * (full - plain))


def test_fresh_unit_gives_the_host_s_output() -> None:
    host = HostAttention()
    h, context = draw(6, TOKENS, WIDTH), draw(6, 7, WORDS_WIDTH, seed=2)
    unit = AttentionSharingUnit(host, 3, control=True, rank=RANK)
    assert_close(unit(h, context, control_signal=draw(1, 256, 2, 3)), host(h, context))


def test_values_from_another_source() -> None:
    """A hypernetwork hands the attention other values than keys."""
    unit = make_unit(HostAttention(), 2)
    h, context = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2)
    output = unit(h, context)
    assert torch.equal(unit(h, context, value=context.clone()), output)
    assert not torch.allclose(unit(h, context, value=-context), output, atol=1e-3)
    assert torch.equal(unit(h, context, value=context.clone(), weight=0), unit.attention(h, context))


@pytest.mark.parametrize("words", [(77, 154), (154, 77), (77, None), (154, 231)])
def test_prompts_of_different_lengths(words: tuple[int | None, ...]) -> None:
    """Each conditional row attends to its frame's prompt, of its own length; the others keep their context."""
    unit = make_unit(HostAttention(), 2)
    h, context = draw(4, TOKENS, WIDTH), draw(4, 77, WORDS_WIDTH, seed=2)
    extras = [None if count is None else draw(1, count, WORDS_WIDTH, seed=count) for count in words]
    marks = torch.tensor([0, 0, 1, 1])
    output = unit(h, context, extra_contexts=extras, cond_mark=marks)
    wanted = [
        extras[row % 2][0] if marks[row] == 0 and extras[row % 2] is not None else context[row] for row in range(4)
    ]
    assert_close(output, compute(unit, h, wanted))
    assert not torch.allclose(output, unit(h, context), atol=1e-3)


def test_context_longer_than_the_prompts() -> None:
    unit = make_unit(HostAttention(), 2)
    h, context = draw(2, TOKENS, WIDTH), draw(2, 154, WORDS_WIDTH, seed=2)
    extras = [draw(1, 77, WORDS_WIDTH, seed=3), None]
    assert_close(unit(h, context, extra_contexts=extras), compute(unit, h, [extras[0][0], context[1]]))


def test_prompts_of_several_images() -> None:
    """One extra context serves all layer sets; with one for each, they are taken in their order."""
    unit = make_unit(HostAttention(), 2)
    h, context = draw(8, TOKENS, WIDTH), draw(8, 7, WORDS_WIDTH, seed=2)
    one, each = draw(1, 7, WORDS_WIDTH, seed=3), draw(2, 7, WORDS_WIDTH, seed=4)
    marks = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])[:, None, None]
    output = unit(h, context, extra_contexts=[one, each], cond_mark=marks)
    wanted = [*context[:4], one[0], each[0], one[0], each[1]]
    assert_close(output, compute(unit, h, wanted))
    every = unit(h, context, extra_contexts=[None, each])
    wanted = [each[row // 2 % 2] if row % 2 else context[row] for row in range(8)]
    assert_close(every, compute(unit, h, wanted))


def test_without_marks_every_row_is_conditional() -> None:
    unit = make_unit(HostAttention(), 2)
    h, context = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2)
    extra = draw(1, 7, WORDS_WIDTH, seed=3)
    output = unit(h, context, extra_contexts=[None, extra])
    assert_close(output, compute(unit, h, [context[0], extra[0], context[2], extra[0]]))


def test_self_attention_ignores_prompts() -> None:
    unit = make_unit(HostAttention(WIDTH), 2)
    h = draw(2, TOKENS, WIDTH)
    assert torch.equal(unit(h, extra_contexts=[draw(1, 7, WORDS_WIDTH), None]), unit(h))


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_rows_that_make_no_whole_sets_are_refused(rows: int) -> None:
    unit = make_unit(HostAttention(WIDTH), 3)
    for weight in (0.5, 1.0):
        with pytest.raises(Refusal, match=f"{rows} images .* multiple of 3") as refusal:
            unit(draw(rows, TOKENS, WIDTH), weight=weight)
        assert_one_sentence(refusal)


@pytest.mark.parametrize(
    ("extras", "sentence"),
    [([1], "1 additional prompts for the 2"), ([1, 1, 1], "3 additional"), ([None, 2], "2 additional .* 3 images")],
)
def test_prompts_that_do_not_fit_the_frames_are_refused(extras: list[int | None], sentence: str) -> None:
    unit = make_unit(HostAttention(), 2)
    contexts = [None if count is None else draw(count, 7, WORDS_WIDTH) for count in extras]
    with pytest.raises(Refusal, match=sentence) as refusal:
        unit(draw(6, TOKENS, WIDTH), draw(6, 7, WORDS_WIDTH), extra_contexts=contexts)
    assert_one_sentence(refusal)


def convolve(unit: AttentionSharingUnit, signal: Tensor) -> list[Tensor]:
    """What the unit's convolutions make of a signal [1, 256, h, w], for each frame: [h * w, c]."""
    return [convs(signal)[0].flatten(1).T for convs in unit.control_convs]


def test_control_signal_is_added_to_each_frame() -> None:
    unit = make_unit(HostAttention(), 2, control=True)
    h, context, signal = draw(4, 6, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2), draw(2, 256, 2, 3, seed=3)
    first, second = (convolve(unit, part) for part in signal.split(1))
    for given, added in ((signal[:1], [*first, *first]), (signal, [*first, *second])):
        wanted = compute(unit, h, context, torch.stack(added))
        assert_close(unit(h, context, control_signal=given), wanted)
        assert_close(unit(h, context, control_signal={24: draw(1, 256, 4, 6), 6: given}), wanted)
    # two images, each with and without its prompt: the host puts all with before all without, or the reverse
    wanted = compute(unit, h.repeat(2, 1, 1), context.repeat(2, 1, 1), torch.stack([*first, *second] * 2))
    assert_close(unit(h.repeat(2, 1, 1), context.repeat(2, 1, 1), control_signal=signal), wanted)
    # weight 0 is the host's output, without the signal
    assert torch.equal(unit(h, context, control_signal=signal, weight=0), unit.attention(h, context))


def test_control_signal_of_another_size_is_resized() -> None:
    """Sides that are no multiples of 64 are rounded differently by UNet and control encoder."""
    unit = make_unit(HostAttention(), 1, control=True)
    h, context, signal = draw(1, 15, WIDTH), draw(1, 7, WORDS_WIDTH, seed=2), draw(1, 256, 4, 6, seed=3)
    resized = nn.functional.interpolate(signal, (3, 5), mode="bilinear", antialias=True)
    wanted = compute(unit, h, context, torch.stack(convolve(unit, resized)))
    assert_close(unit(h, context, control_signal={96: draw(1, 256, 8, 12), 24: signal}), wanted)


@pytest.mark.parametrize(
    ("tokens", "signal", "sentence"),
    [(6, None, "none is given"), (6, (3, 256, 2, 3), "3 control images for 2"), (13, (1, 256, 4, 4), "token merging")],
)
def test_control_signal_that_does_not_fit_is_refused(
    tokens: int, signal: tuple[int, ...] | None, sentence: str
) -> None:
    unit = make_unit(HostAttention(), 1, control=True)
    with pytest.raises(Refusal, match=sentence) as refusal:
        unit(draw(2, tokens, WIDTH), draw(2, 7, WORDS_WIDTH), control_signal=None if signal is None else draw(*signal))
    assert_one_sentence(refusal)


def test_control_encoder_keys_are_token_counts() -> None:
    encoder = ControlEncoder((4, 4, 4, 8))
    with torch.no_grad():
        signals = encoder(draw(2, 3, 64, 128))
    shapes = {tokens: tuple(signal.shape) for tokens, signal in signals.items()}
    assert shapes == {128: (2, 8, 8, 16), 32: (2, 8, 4, 8), 8: (2, 8, 2, 4), 2: (2, 8, 1, 2)}


def test_half_weights_are_cast_to_the_model_s_type() -> None:
    host = HostAttention()
    unit = make_unit(host, 2, control=True)
    h, context, signal = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2), draw(1, 256, 2, 3, seed=3)
    extras = [draw(1, 7, WORDS_WIDTH, seed=4).half(), None]
    unit.half()
    output = unit(h, context, control_signal=signal.half(), extra_contexts=extras)
    assert {parameter.dtype for parameter in unit.parameters()} == {torch.float16}
    assert output.dtype == torch.float32
    wanted = make_unit(host, 2, control=True)
    wanted.load_state_dict({name: value.float() for name, value in unit.state_dict().items()})
    extras = [None if extra is None else extra.float() for extra in extras]
    assert torch.equal(output, wanted(h, context, control_signal=signal.half().float(), extra_contexts=extras))


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_bfloat16_model_keeps_its_type(weight: float) -> None:
    host = HostAttention()
    unit = make_unit(host, 2, control=True)
    h, context, signal = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2), draw(1, 256, 2, 3, seed=3)
    wanted = unit(h, context, control_signal=signal, weight=weight)
    host.bfloat16()
    output = unit(h.bfloat16(), context.bfloat16(), control_signal=signal, weight=weight)
    assert output.dtype == torch.bfloat16
    assert (output.float() - wanted).abs().mean() <= 0.02 * wanted.abs().mean()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2])
def test_autocast_needs_no_copies_in_single_precision(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As AUTOMATIC1111 computes: the hidden state is in float32, products are not. The bits stay the same."""
    unit = make_unit(HostAttention(), frames).bfloat16()
    h, context = draw(2 * frames, TOKENS, WIDTH), draw(2 * frames, 7, WORDS_WIDTH, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        output = unit(h, context)
        kept = [*unit._low_rank["to_q"][1], *(part for pairs in unit._ready[1].temporal.values() for part in pairs[0])]
        unit.release()
        monkeypatch.setattr(joining, "find_precision", lambda x: x.dtype)
        wanted = unit(h, context)
    assert {part.dtype for part in kept} == {torch.bfloat16}
    assert unit._low_rank["to_q"][1][0].dtype == torch.float32
    assert torch.equal(output, wanted)


def test_changed_parameters_count_from_the_next_call() -> None:
    """What a call keeps of weights and control signal is dropped when a parameter is written to."""
    host = HostAttention()
    unit = make_unit(host, 2, control=True)
    h, context, signal = draw(2, TOKENS, WIDTH), draw(2, 7, WORDS_WIDTH, seed=2), draw(1, 256, 2, 3, seed=3)
    before = unit(h, context, control_signal=signal)
    assert torch.equal(unit(h, context, control_signal=signal), before)
    for name in ("to_q_lora.1.up.weight", "temporal_v.bias", "control_convs.0.2.weight", "control_convs.1.0.bias"):
        unit.get_parameter(name).add_(0.1)
        after = unit(h, context, control_signal=signal)
        assert not torch.allclose(after, before, atol=1e-4), name
        unit.release()
        assert torch.equal(unit(h, context, control_signal=signal), after)
        before = after


def test_every_parameter_gets_a_gradient() -> None:
    """Also after a call without gradients, whose copies of the weights know none."""
    unit = make_unit(HostAttention(), 2, control=True).requires_grad_(True)
    h, context, signal = draw(2, TOKENS, WIDTH), draw(2, 7, WORDS_WIDTH, seed=2), draw(1, 256, 2, 3, seed=3)
    with torch.no_grad():
        plain = unit(h, context, control_signal=signal)
    output = unit(h, context, control_signal=signal)
    assert_close(output, plain)
    output.square().sum().backward()
    missing = [name for name, p in unit.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_copies_made_in_inference_mode_serve_gradients_later() -> None:
    unit = make_unit(HostAttention(), 2)
    h, context = draw(2, TOKENS, WIDTH), draw(2, 7, WORDS_WIDTH, seed=2)
    with torch.inference_mode():
        unit(h, context)
    h.requires_grad_()
    unit(h, context).sum().backward()
    assert h.grad is not None
    assert h.grad.any()


def test_host_s_module_is_called_and_not_owned() -> None:
    """Its tensors aren't the unit's, a hook on its layers counts, and another module can be attached."""
    host = HostAttention()
    unit = make_unit(host, 2)
    h, context = draw(2, TOKENS, WIDTH), draw(2, 7, WORDS_WIDTH, seed=2)
    before = unit(h, context)
    assert not any("base" in name or name.startswith("to_q.") for name in unit.state_dict())
    assert not {id(p) for p in host.parameters()} & {id(p) for p in unit.parameters()}
    with torch.no_grad():
        handle = host.to_v.register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert not torch.allclose(unit(h, context), before, atol=1e-3)
    handle.remove()
    other = HostAttention()
    other.to_q.weight.neg_()
    unit.attach(other)
    assert unit.attention is other
    assert_close(unit(h, context), compute(unit, h, context))


@pytest.mark.parametrize("wrap", [lambda first: first, lambda first: nn.Sequential(first, nn.Dropout(0.5))])
def test_layouts_of_the_output_projection(wrap: type[nn.Module]) -> None:
    """A linear alone, and LDM's sequence with a dropout, which is off in evaluation."""
    host = HostAttention()
    unit = make_unit(host, 2)
    h, context = draw(2, TOKENS, WIDTH), draw(2, 7, WORDS_WIDTH, seed=2)
    before = unit(h, context)
    host.to_out = wrap(host.to_out[0])
    host.eval()
    assert_close(unit(h, context), before)


@pytest.mark.parametrize("frames", [1, 2])
def test_image_prompts_add_what_they_add_to_the_host_s_attention(frames: int) -> None:
    """A context of IP-Adapter is a tuple: the text, then the image prompts, which the host's own attention knows."""
    host = HostAttention()
    unit = make_unit(host, frames)
    h, text = draw(2 * frames, TOKENS, WIDTH), draw(2 * frames, 7, WORDS_WIDTH, seed=2)
    context = (text, [draw(2 * frames, 4, WORDS_WIDTH, seed=3)])
    assert torch.equal(unit(h, context, weight=0), host(h, context))
    beside = host(h, context) - host(h, text)
    assert beside.abs().max() > 0.05
    extras = [draw(1, 9, WORDS_WIDTH, seed=4)] * frames
    for options in ({}, {"weight": 0.5}, {"extra_contexts": extras}):
        assert_close(unit(h, context, **options), unit(h, text, **options) + beside)


def test_image_prompts_of_diffusers() -> None:
    """The real attention and IP-Adapter processor compute: the frames' products change their projections."""
    processors = pytest.importorskip("diffusers.models.attention_processor")
    unet = nn.Module()
    unet.attn2 = processors.Attention(WIDTH, WORDS_WIDTH, heads=HEADS, dim_head=WIDTH // HEADS)
    unet.attn2.set_processor(processors.IPAdapterAttnProcessor2_0(WIDTH, WORDS_WIDTH, num_tokens=(4,), scale=0.7))
    seeded.fill(unet, 5)
    unet.eval().requires_grad_(False)
    h, text, image = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2), draw(4, 1, 4, WORDS_WIDTH, seed=3)
    plain, without = unet.attn2(h, (text, [image])), unet.attn2(h, (text, [image * 0]))
    assert (plain - without).abs().max() > 0.05
    unit = make_unit(unet.attn2, 2)
    with stand_in(unet, {"attn2": unit}) as live:
        output = unet.attn2(h, encoder_hidden_states=(text, [image]))
        live.weight = 0
        assert torch.equal(unet.attn2(h, encoder_hidden_states=(text, [image])), plain)
    rows: list[Tensor] = []
    for row in range(4):
        frame, merged = row % 2, deepcopy(unet.attn2)
        for name in ("to_q", "to_k", "to_v", "to_out"):
            low_rank = unit.get_submodule(f"{name}_lora.{frame}")
            layer = merged.to_out[0] if name == "to_out" else merged.get_submodule(name)
            layer.weight += low_rank.up.weight @ low_rank.down.weight
        one = slice(row, row + 1)
        rows.append(merged(h[one], (text[one], [image[one]]))[0])
    assert_close(output, share(unit, h, torch.stack(rows)))


class Unet(nn.Module):
    """A host's attention within a module that calls it."""

    def __init__(self, context: int = WORDS_WIDTH) -> None:
        super().__init__()
        self.attn = HostAttention(context)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.attn(x, context)


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the projections whose weights were joined with their low-rank products."""
    made: list[str] = []
    own = AttentionSharingUnit.join_projection

    def join(unit: AttentionSharingUnit, name: str, weight: Tensor) -> Tensor:
        made.append(name)
        return own(unit, name, weight)

    monkeypatch.setattr(AttentionSharingUnit, "join_projection", join)
    return made


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("cross", [False, True])
def test_ordinary_layers_are_joined_with_the_products(frames: int, cross: bool, joins: list[str]) -> None:
    """Once in a run, and again when the layer's weight or a factor was written to."""
    unet = Unet(WORDS_WIDTH if cross else WIDTH)
    unit, reference = (make_unit(host, frames, rank=8) for host in (unet.attn, deepcopy(unet.attn)))
    h, contexts = draw(2 * frames, TOKENS, WIDTH), draw(2 * frames, 7, WORDS_WIDTH, seed=2) if cross else None
    before = deepcopy(unet.state_dict())
    with torch.no_grad(), stand_in(unet, {"attn": unit}):
        for _ in range(2):
            assert_close(unet(h, contexts), compute(reference, h, contexts))
        assert sorted(joins) == sorted(PROJECTIONS)
        assert not unit._low_rank  # no copy of factors that nobody needs
        assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
        for each in (unit, reference):
            each.attention.to_v.weight.add_(0.3)
            each.attention.to_q.weight.data = each.attention.to_q.weight.data * 2
            each.get_parameter("to_out_lora.0.up.weight").mul_(3)
        assert_close(unet(h, contexts), compute(reference, h, contexts))
    assert sorted(joins[4:]) == ["to_out", "to_q", "to_v"]


def test_weights_that_change_in_every_step_are_not_joined_for_ever(joins: list[str]) -> None:
    unet = Unet()
    unit, reference = (make_unit(host, 2, rank=8) for host in (unet.attn, deepcopy(unet.attn)))
    h, contexts = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2)
    with torch.no_grad(), stand_in(unet, {"attn": unit}) as live:
        room = live.room.left
        for _ in range(5):
            for each in (unit, reference):
                each.attention.to_q.weight.add_(0.1)
            assert_close(unet(h, contexts), compute(reference, h, contexts))
    assert joins.count("to_q") == 3
    assert joins.count("to_v") == 1
    assert room - live.room.left == 2 * 4 * WIDTH * (WIDTH + 2 * WORDS_WIDTH)  # to_k, to_v and to_out remain


class OwnLinear(nn.Linear):
    """What another extension may have put in a layer's place."""


def change_class(layer: nn.Linear) -> None:
    layer.__class__ = OwnLinear


def change_forward(layer: nn.Linear) -> None:
    own = layer.forward
    layer.forward = lambda x: 2 * own(x)


def add_hook(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda _layer, _inputs, output: 2 * output)


@pytest.mark.parametrize("change", [change_class, change_forward, add_hook])
def test_other_layers_keep_what_they_compute(change: Callable[[nn.Linear], None], joins: list[str]) -> None:
    unet = Unet()
    unit = make_unit(unet.attn, 2, rank=8)
    change(unet.attn.to_q)
    h, contexts = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2)
    with torch.no_grad(), stand_in(unet, {"attn": unit}):
        output = unet(h, contexts)
    assert_close(output, compute(unit, h, contexts))
    assert sorted(joins) == ["to_k", "to_out", "to_v"]


def test_layers_whose_class_was_changed_are_not_joined(monkeypatch: pytest.MonkeyPatch, joins: list[str]) -> None:
    """As AUTOMATIC1111 changes torch's own, for LoRAs."""
    unet = Unet()
    unit = make_unit(unet.attn, 2, rank=8)
    own = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: own(layer, x))
    with torch.no_grad(), stand_in(unet, {"attn": unit}):
        unet(draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2))
    assert joins == []


def test_nothing_is_joined_for_gradients_or_what_tells_of_no_change(joins: list[str]) -> None:
    unet = Unet()
    unit = make_unit(unet.attn, 2, rank=8)
    h, contexts = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2)
    with stand_in(unet, {"attn": unit}):
        wanted = unet(h, contexts)
    with torch.inference_mode():
        fixed = Unet()
        with stand_in(fixed, {"attn": unit}):
            assert torch.equal(fixed(h, contexts), wanted)
    assert joins == []


def test_joined_weights_stay_within_their_budget(joins: list[str]) -> None:
    unet = Unet()
    unit = make_unit(unet.attn, 2, rank=8)
    h, contexts = draw(4, TOKENS, WIDTH), draw(4, 7, WORDS_WIDTH, seed=2)
    with torch.no_grad(), stand_in(unet, {"attn": unit}) as live:
        room = live.room.left
        three = 2 * 4 * WIDTH * (WIDTH + 2 * WORDS_WIDTH)  # to_q, to_k and to_v
        live.room.left = three + 1
        output = unet(h, contexts)
        assert (sorted(joins), live.room.left) == (["to_k", "to_q", "to_v"], 1)
    assert_close(output, compute(unit, h, contexts))
    assert room == JOIN_BYTES


@pytest.mark.parametrize(
    ("width", "rank", "tokens", "pays"),
    [
        (320, 256, 1, True),  # 102,400 numbers against 163,840 in the factors
        (1280, 256, 26, False),  # 1280 * 1280 = 1,638,400 > 12 calls * 2 sets * 26 * 2560 = 1,597,440
        (1280, 256, 27, True),
    ],
)
@pytest.mark.parametrize("sets", [1, 5])
def test_what_pays_to_join(width: int, rank: int, tokens: int, pays: bool, sets: int) -> None:
    """By the size of a picture and not by their number, since joining changes the last bits."""
    with torch.device("meta"):
        unit = AttentionSharingUnit(None, 2, rank=rank, widths=(width, width))
        assert unit.pays_to_join_projection("to_q", torch.empty(2 * sets, tokens, width)) is pays


def make_file(frames: int, rank: int, control: bool = False) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """The tensors of a file for a UNet of 32 narrow attention modules, and the modules."""
    attentions: list[nn.Module] = [HostAttention(WORDS_WIDTH if i % 2 else WIDTH) for i in range(len(ATTENTION_ORDER))]
    units = nn.ModuleList(AttentionSharingUnit(attention, frames, rank=rank) for attention in attentions)
    seeded.fill(units, 9)
    return {f"hookers.layers.{name}": value.detach() for name, value in units.state_dict().items()}, attentions


@pytest.mark.parametrize(("frames", "rank"), [(1, 2), (3, 4)])
def test_file_tells_frames_and_rank(frames: int, rank: int) -> None:
    state, attentions = make_file(frames, rank)
    units, control = read_units(state, attentions)
    assert control is None
    assert [unit.attention for unit in units] == attentions
    assert {unit.frames for unit in units} == {frames}
    for index, unit in enumerate(units):
        assert not any(parameter.requires_grad for parameter in unit.parameters())
        for name, value in unit.state_dict().items():
            assert value.data_ptr() == state[f"hookers.layers.{index}.{name}"].data_ptr()


LAST = "hookers.layers.31.temporal_n.bias"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (LAST, None, "lacks hookers"),
        ("hookers.layers.0.to_q_lora.0.down.weight", None, "lacks hookers"),
        (f"{LAST}_", torch.zeros(1), "no layer mode knows"),
        (LAST, torch.zeros(WIDTH + 1), r"is \[17\] and should be \[16\]"),
        ("hookers.layers.3.to_q_lora.0.down.weight", torch.zeros(3), "should be a matrix"),
        ("hookers.layers.3.to_k_lora.0.down.weight", torch.zeros(2, 5), "made for widths 16 and 5"),
    ],
)
def test_file_that_does_not_fit_is_refused(key: str, value: Tensor | None, sentence: str) -> None:
    state, attentions = make_file(1, 2)
    if value is None:
        del state[key]
    else:
        state[key] = value
    with pytest.raises(Refusal, match=sentence) as refusal:
        read_units(state, attentions)
    assert_one_sentence(refusal)


def test_unet_of_another_structure_and_file_of_another_kind_are_refused() -> None:
    state, attentions = make_file(1, 2)
    for given, modules, sentence in ((state, attentions[:-1], "31 attention modules"), ({}, attentions, "isn't an")):
        with pytest.raises(Refusal, match=sentence):
            read_units(given, modules)
