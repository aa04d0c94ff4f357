"""Prompts to conditions: parts joined by AND, each encoded for itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import shared

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r"^(?P<text>.*?)(?:\s*:\s*(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)))?\s*$", re.DOTALL)


class SdConditioning(list[str]):
    """Prompts with the size of the image that they are for."""

    def __init__(
        self,
        prompts: Sequence[str],
        is_negative_prompt: bool = False,
        width: int | None = None,
        height: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(prompts)
        self.is_negative_prompt = is_negative_prompt
        self.width = width
        self.height = height


@dataclass(frozen=True)
class ScheduledPromptConditioning:
    """A condition and the step up to which it holds; prompts that change while sampling aren't supported here."""

    end_at_step: int
    cond: Any  # [tokens, C], for SDXL a dict of such


@dataclass(frozen=True)
class ComposableScheduledPromptConditioning:
    """One part of a prompt with AND."""

    schedules: list[ScheduledPromptConditioning]
    weight: float = 1.0


@dataclass(frozen=True)
class MulticondLearnedConditioning:
    """Conditions of a batch: for each image a list of parts, more than one where its prompt has AND."""

    shape: tuple[int, ...]
    batch: list[list[ComposableScheduledPromptConditioning]]


def get_learned_conditioning(
    model: Any, prompts: SdConditioning, steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> list[list[ScheduledPromptConditioning]]:
    """One schedule for each prompt."""
    encoded = model.get_learned_conditioning(prompts, shared.opts.CLIP_stop_at_last_layers)
    return [[ScheduledPromptConditioning(steps, _take(encoded, index))] for index in range(len(prompts))]


def get_multicond_learned_conditioning(
    model: Any, prompts: SdConditioning, steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> MulticondLearnedConditioning:
    """A list of parts for each prompt."""
    parts = [[_split_weight(part) for part in AND.split(prompt)] for prompt in prompts]
    texts = SdConditioning([text for each in parts for text, _ in each], width=prompts.width, height=prompts.height)
    schedules = iter(get_learned_conditioning(model, texts, steps, hires_steps))
    batch = [[ComposableScheduledPromptConditioning(next(schedules), weight) for _, weight in each] for each in parts]
    return MulticondLearnedConditioning((len(prompts),), batch)


def _split_weight(part: str) -> tuple[str, float]:
    match = WEIGHT.match(part)
    if match is None:
        return part, 1.0
    return match["text"], float(match["weight"] or 1.0)


def _take(encoded: Any, index: int) -> Any:
    return {name: value[index] for name, value in encoded.items()} if isinstance(encoded, dict) else encoded[index]
