"""The seeded files agree with what WebUIs ship."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tests.e2e.seeded_files import write_text_encoder


@pytest.mark.parametrize(("prompt", "numbers"), [("a red apple", [320, 736, 3055]), ("a leaf", [320, 7232])])
def test_the_usual_request_has_clips_numbers(tmp_path: Path, prompt: str, numbers: list[int]) -> None:
    """A WebUI with CLIP's own tokenizer and one with this tokenizer draw the same picture."""
    write_text_encoder(tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)(prompt)["input_ids"] == [49406, *numbers, 49407]
