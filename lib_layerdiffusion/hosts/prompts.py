"""Reads prompts as WebUIs do, with weights like (word:1.3) and of any length, and encodes them for a pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_layerdiffusion.refusal import Refusal

ROUND, SQUARE = 1.1, 1 / 1.1  # what a pair of brackets without a number multiplies by
LOOK_BACK = 20  # tokens before a window's end among which a comma is looked for, to end the window there
LARGEST_WEIGHT = 100.0  # far beyond what makes a picture; products of brackets could overflow
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
# An escaped bracket, the end of a weighted part, a bracket, or what is between those.
PIECE = re.compile(
    rf"\\([()\[\]\\])|:\s*({NUMBER})\s*\)|([()\[\]])|((?:[^\\()\[\]:]|\\(?![()\[\]\\])|:(?!\s*{NUMBER}\s*\)))+)"
)
ROUNDING = 1e-5  # of the mean size of numbers: a smaller mean of them is 0
BREAK = re.compile(r"\s*\bBREAK\b\s*")

Token = tuple[int, float]  # its number and its weight


@dataclass(frozen=True)
class Encoded:
    """Texts as a UNet takes them."""

    states: Tensor  # [B, windows * tokens, C]
    pooled: Tensor | None  # [B, C], of SDXL


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into parts with their weights: (round) brackets raise them, [square] ones lower them.

    (word:1.3) names the weight; brackets nest; a backslash makes a bracket an ordinary character; what isn't closed
    reaches to the end, and what closes nothing is an ordinary character. Refusal when a weight is too large.
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        first = opened[bracket].pop()
        parts[first:] = [(text, weight * factor) for text, weight in parts[first:]]

    for piece in PIECE.finditer(prompt):
        escaped, number, bracket, text = piece.groups()
        if bracket in opened:
            opened[bracket].append(len(parts))
        elif number is not None and opened["("]:
            close("(", float(number))
        elif bracket == ")" and opened["("]:
            close("(", ROUND)
        elif bracket == "]" and opened["["]:
            close("[", SQUARE)
        else:
            parts.append((escaped or text or piece[0], 1.0))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    merged: list[tuple[str, float]] = []
    for text, weight in parts:
        if not abs(weight) <= LARGEST_WEIGHT:
            raise Refusal(f"The weight of {text[:40]!r} in the prompt is {weight:.4g}: use one of about 0.5 to 1.5.")
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged


def needs_encoding(pipe: Any, prompts: Sequence[str]) -> bool:
    """Whether a pipeline, which knows no weights and only one window, would read one of the prompts wrongly."""
    special = any(re.search(r"[()\[\]\\]|\bBREAK\b", prompt) for prompt in prompts)
    return special or any(
        len(split_windows(pipe.tokenizer, _expand(pipe, pipe.tokenizer, each))) > 1 for each in prompts
    )


def split_windows(tokenizer: Any, prompt: str) -> list[list[Token]]:
    """A prompt's tokens in windows of the text encoder's length, without those for begin and end; at least one window.

    A window ends after a comma if one of its last tokens is that, and where the prompt says BREAK.
    """
    room = tokenizer.model_max_length - 2
    (comma,) = _tokenize(tokenizer, ",")[:1] or (None,)
    sections: list[list[Token]] = [[]]
    for text, weight in parse_weights(prompt):
        first, *others = BREAK.split(text)
        sections[-1] += [(token, weight) for token in _tokenize(tokenizer, first)]
        sections += [[(token, weight) for token in _tokenize(tokenizer, other)] for other in others]
    return [window for section in sections for window in _cut(section, room, comma)]


def encode_prompts(pipe: Any, prompts: Sequence[str], windows: int = 1, clip_skip: int | None = None) -> Encoded:
    """Encode prompts for a Stable Diffusion 1.5 or SDXL pipeline; all get as many windows as the longest needs.

    windows: at least so many. clip_skip: layers of the text encoders to leave out, as pipelines count them.
    The weights multiply the encoder's answer, whose mean is then brought back to what it was, for each prompt and
    window by itself, as AUTOMATIC1111's emphasis mode "Original" does for a batch.
    """
    is_sdxl = getattr(pipe, "text_encoder_2", None) is not None
    pairs = [(pipe.tokenizer, pipe.text_encoder)] + ([(pipe.tokenizer_2, pipe.text_encoder_2)] if is_sdxl else [])
    states: list[Tensor] = []
    pooled: Tensor | None = None
    cut = [[split_windows(tokenizer, _expand(pipe, tokenizer, prompt)) for prompt in prompts] for tokenizer, _ in pairs]
    count = max(windows, *(len(each) for rows in cut for each in rows))
    for (tokenizer, encoder), rows in zip(pairs, cut, strict=True):
        made: list[Tensor] = []
        for index in range(count):
            output, weights = _encode_window(
                tokenizer, encoder, [each[index] if index < len(each) else [] for each in rows]
            )
            made.append(_weigh(_pick(encoder, output, is_sdxl, clip_skip or 0), weights))
            if index == 0 and is_sdxl:
                pooled = getattr(output, "text_embeds", None)  # the last encoder has them
        states.append(torch.cat(made, dim=1))
    return Encoded(torch.cat(states, dim=-1), pooled)


def _encode_window(tokenizer: Any, encoder: Any, rows: Sequence[Sequence[Token]]) -> tuple[Any, Tensor]:
    """The encoder's output for one window of every prompt, and the weights [B, tokens]."""
    length = tokenizer.model_max_length
    tokens = torch.full((len(rows), length), tokenizer.pad_token_id)
    weights = torch.ones(len(rows), length)
    for index, row in enumerate(rows):
        end = len(row) + 1
        tokens[index, 0], tokens[index, end] = tokenizer.bos_token_id, tokenizer.eos_token_id
        if row:
            tokens[index, 1:end] = torch.tensor([token for token, _ in row])
            weights[index, 1:end] = torch.tensor([weight for _, weight in row])
    with torch.no_grad():
        return encoder(tokens.to(encoder.device), output_hidden_states=True), weights


def _pick(encoder: Any, output: Any, is_sdxl: bool, skip: int) -> Tensor:
    """The layer of a text encoder that the UNet was trained with, or an earlier one: [B, tokens, C]."""
    if is_sdxl:
        return output.hidden_states[-2 - skip]
    if not skip:
        return output.last_hidden_state
    with torch.no_grad():
        return getattr(encoder, "text_model", encoder).final_layer_norm(output.hidden_states[-1 - skip])


def _weigh(states: Tensor, weights: Tensor) -> Tensor:
    """Multiply tokens [B, n, C] by their weights [B, n], and keep the mean of each row of the batch that has some."""
    weighted = states * weights[..., None].to(states)
    rows = [
        row if bool((weight == 1).all()) else _keep_mean(row, changed)
        for row, changed, weight in zip(states, weighted, weights, strict=True)
    ]
    return torch.stack(rows)


def _keep_mean(before: Tensor, after: Tensor) -> Tensor:
    """Scale `after` to the mean of `before`, unless its own is 0 but for rounding, as after a norm without a bias."""
    mean = after.float().mean()
    if mean.abs() <= ROUNDING * after.float().abs().mean():
        return after
    return after * (before.float().mean() / mean).to(after)


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _expand(pipe: Any, tokenizer: Any, prompt: str) -> str:
    """A prompt with the words of loaded textual inversions replaced by the tokens that they stand for."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    return convert(prompt, tokenizer) if convert else prompt


def _cut(tokens: list[Token], room: int, comma: int | None) -> Iterator[list[Token]]:
    while len(tokens) > room:
        commas = [index for index in range(max(room - LOOK_BACK, 0), room) if tokens[index][0] == comma]
        end = commas[-1] + 1 if commas else room
        yield tokens[:end]
        tokens = tokens[end:]
    yield tokens
