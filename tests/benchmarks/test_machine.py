"""How the benchmarks count operations."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attention import list_cases
from benchmarks.machine import count_work


def test_work_is_counted_with_its_attention() -> None:
    """Queries, keys, values and output of 2 x 64 x 64 tokens, 8 heads' products of them, and the rest of the module."""
    case = next(list_cases(512, 1, False, "meta", torch.float32))
    tokens, channels = 64 * 64, 320
    projections, attention = 4 * 2 * 2 * tokens * channels**2, 2 * 2 * 2 * tokens**2 * channels
    assert count_work(case.call) == pytest.approx((projections + attention) / 1e9)
