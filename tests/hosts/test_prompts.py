"""Prompts as WebUIs read them: weights, windows, and what pipelines are given for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_layerdiffusion.hosts.prompts import _weigh, encode_prompts, needs_encoding, parse_weights, split_windows
from lib_layerdiffusion.refusal import Refusal


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((a))[b]", [("a", 1.21), ("b", 1 / 1.1)]),
        ("(a: 1.5)(b:.5) (c:-1)", [("a", 1.5), ("b", 0.5), (" ", 1), ("c", -1)]),
        ("(a (b:2) c", [("a ", 1.1), ("b", 2.2), (" c", 1.1)]),
        (r"\(a\) \[b\] c\d \\", [("(a) [b] c\\d \\", 1)]),
        ("a) b] c:1.2) 12:30", [("a) b] c:1.2) 12:30", 1)]),
        ("(9:16:1.2)", [("9:16", 1.2)]),
    ],
)
def test_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize("prompt", ["(a:1000)", "(a:" + "9" * 400 + ")", "(" * 200 + "a"])
def test_weights_that_would_overflow_are_refused(prompt: str) -> None:
    with pytest.raises(Refusal, match="weight of 'a'"):
        parse_weights(prompt)


def lengths(pipe: Any, prompt: str) -> list[int]:
    return [len(window) for window in split_windows(pipe.tokenizer, prompt)]


def test_windows(sd15: Any) -> None:
    """The tokenizer spells, so that a letter is a token."""
    assert lengths(sd15, "") == [0]
    assert lengths(sd15, "a" * 75) == [75]
    assert lengths(sd15, "a" * 76) == [75, 1]
    assert lengths(sd15, "a" * 60 + ", " + "b" * 30) == [61, 30]  # after the comma
    assert lengths(sd15, "a" * 40 + ", " + "b" * 50) == [75, 16]  # the comma is too far away
    assert lengths(sd15, "ab BREAK (c:1.5)") == [2, 1]
    assert [needs_encoding(sd15, [each]) for each in ("a" * 75, "a" * 76, "(a)", "a BREAK b")] == [False, *[True] * 3]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_plain_prompt_is_encoded_as_the_pipeline_does(family: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(family)
    for skip in (None, 0):
        with torch.no_grad():
            theirs = pipe.encode_prompt(
                "a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        ours = encode_prompts(pipe, ["a cat"], clip_skip=skip)
        assert torch.equal(ours.states, theirs[0])
        assert ours.pooled is None or torch.equal(ours.pooled, theirs[2])


def test_long_prompts_and_weights_reach_the_encoding(sd15: Any) -> None:
    first, second, short = encode_prompts(sd15, ["a" * 80 + "b", "a" * 80 + "c", "a"]).states
    assert first.shape == (2 * 77, 16)
    assert torch.equal(first[:77], second[:77])
    assert not torch.equal(first[77:], second[77:])
    assert torch.equal(short[:77], encode_prompts(sd15, ["a"]).states[0])
    assert torch.equal(short[77:], encode_prompts(sd15, [""]).states[0])
    plain = encode_prompts(sd15, ["ab c"]).states[0]
    weighed = encode_prompts(sd15, ["a(b:1.5) c"]).states[0]
    factor = torch.ones(77, 1)
    factor[2] = 1.5
    expected = encode_prompts(sd15, ["a b c"]).states[0] * factor  # the tokenizer is given each part by itself
    assert weighed.shape == plain.shape
    ratio = weighed / expected
    torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_weights_keep_the_mean_where_there_is_one() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[1.0, 1.5, 1.0], [1.0, 1.0, 1.0]])
    states = torch.randn(2, 3, 8) + 0.3
    weighed = _weigh(states, weights)
    assert weighed[0].mean().item() == pytest.approx(states[0].mean().item(), rel=1e-5)
    assert weighed[1].equal(states[1])
    for offset in (0.0, 1e-9):  # the mean after a norm without a bias: none, or what rounding leaves
        around = torch.tensor([1.0, -1.0] * 4).expand(2, 3, 8) + offset
        assert torch.allclose(_weigh(around, weights), around * weights[..., None])
