"""Prompt styles: texts that are put around or after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PromptStyle(NamedTuple):
    """A style by name; "{prompt}" in its texts stands for the user's."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def merge(style: str, prompt: str) -> str:
    """A style's text with the prompt in or before it."""
    if "{prompt}" in style:
        return style.replace("{prompt}", prompt)
    return ", ".join(filter(None, (prompt.strip(), style.strip())))


class StyleDatabase:
    """All styles by name."""

    def __init__(self) -> None:
        self.styles: dict[str, PromptStyle] = {}

    def apply_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        for name in styles:
            prompt = merge(self.styles.get(name, PromptStyle(name)).prompt, prompt)
        return prompt

    def apply_negative_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        for name in styles:
            prompt = merge(self.styles.get(name, PromptStyle(name)).negative_prompt, prompt)
        return prompt
