"""The simulation of docs/scale.md: equal to the sums where these are simple, and bent where they say so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale import HOUR, Figures, simulate

EXACT = Figures(2.0, batch=5, loading=30.0, variation=0.0, row_seconds=0.0, file_seconds=0.0, line_seconds=0.0)


@pytest.mark.parametrize(
    ("sets", "workers", "seconds"),
    [
        (5, 1, 30 + 10),
        (100, 1, 30 + 200),
        (100, 4, 30 + 50),
        (105, 4, 30 + 60),  # one has a group more
        (10, 8, 30 + 10),  # more workers than groups
    ],
)
def test_without_what_bends_it(sets: int, workers: int, seconds: float) -> None:
    found = simulate(sets, workers, EXACT)
    assert found.hours * HOUR == pytest.approx(seconds)
    assert found.rate == pytest.approx(sets / seconds)
    assert found.lost == 0


def test_efficiency_and_prices() -> None:
    figures = Figures(
        2.0, batch=5, loading=30.0, variation=0.0, row_seconds=0.0, file_seconds=0.0, line_seconds=0.0, price=3.6
    )
    found = simulate(1000, 4, figures)
    assert found.efficiency == pytest.approx(500 / 530)
    assert found.price == pytest.approx(4 * 530 / 1000)
    assert found.gigabytes == pytest.approx(0.5)
    assert found.store_price == pytest.approx(0.5 * 0.023 + 1000 * 5e-6)


def test_the_command_takes_one_group_at_a_time() -> None:
    slow = Figures(0.1, batch=1, loading=0.0, variation=0.0, row_seconds=0.0, file_seconds=0.0, line_seconds=0.05)
    assert simulate(1000, 1, slow).rate == pytest.approx(1 / 0.15, rel=0.01)
    assert simulate(1000, 64, slow).rate == pytest.approx(20, rel=0.01)
    assert simulate(1000, 64, slow).busy == pytest.approx(1, rel=0.01)


def test_planning_comes_first() -> None:
    planned = simulate(1000, 4, replace(EXACT, row_seconds=0.1))
    assert planned.hours == pytest.approx(simulate(1000, 4, EXACT).hours + 100 / HOUR)


def test_workers_that_end_load_and_make_their_group_again() -> None:
    short = Figures(
        10.0, batch=1, loading=60.0, variation=0.0, row_seconds=0.0, file_seconds=0.0, line_seconds=0.0, lives=0.5
    )
    found = simulate(20_000, 10, short)
    # Of each group of 10 s, 10 / 1800 end, half of it done.
    assert found.lost == pytest.approx(20_000 * 10 / 1800, rel=0.2)
    assert found.hours * HOUR == pytest.approx(60 + 20_000 + found.lost * (60 + 5) / 10, rel=0.01)


def test_the_same_seed_makes_the_same() -> None:
    figures = Figures(1.0, lives=0.1)
    assert simulate(500, 3, figures) == simulate(500, 3, figures)
    assert simulate(500, 3, figures) != simulate(500, 3, figures, seed=1)
