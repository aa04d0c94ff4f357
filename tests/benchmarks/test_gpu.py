"""The table of decoding on a GPU, on the processor."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import gpu
from lib_layerdiffusion.decoding import TILE
from lib_layerdiffusion.transparent_vae import TransparentDecoder


class NarrowDecoder(TransparentDecoder):
    def __init__(self, widths: Any = (8, 8, 8, 8, 8, 16, 16)) -> None:
        super().__init__(widths)


@pytest.mark.slow
def test_all_ways_of_decoding_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In half precision the views go at once where much is free; tiles aren't smaller than TILE."""

    def measure(work: Any) -> tuple[float, float]:
        work()
        return 7.0, 3.0

    for name, value in (
        ("DEVICE", "cpu"),
        ("TransparentDecoder", NarrowDecoder),
        ("measure", measure),
        ("read_free", lambda: 1 << 40),
    ):
        monkeypatch.setattr(gpu, name, value)
    gpu.decode(64)
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    whole, tile = str(64 * 64), str(TILE)
    single = [["8", "1", whole], ["8", "1", tile], ["2", "1", whole], ["1", "1", whole]]
    half = [["8", "1", whole], ["8", "8", whole], *single[1:]]
    ways = {"float32": single, "float16": half, "bfloat16": half}
    assert [row[:4] for row in cells] == [[name, *way] for name, each in ways.items() for way in each]
    assert all(row[4:6] == ["7", "3"] for row in cells)
    assert [row[7:] for row in cells[: len(single)]] == [["0.00", "0.00"]] * len(single)
