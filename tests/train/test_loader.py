"""Drawing ahead, the exact division of data and batches, and what a bank keeps."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.bank import PART, Bank
from lib_layerdiffusion.train.config import find_stage
from lib_layerdiffusion.train.dataset import Augmentation, Mixture, Sprite, TransparentBatch, list_rows, step_rng
from lib_layerdiffusion.train.loader import draw_ahead, split
from lib_layerdiffusion.train.run import open_accelerator
from lib_layerdiffusion.train.transparency import Batches, TransparencyConfig


def draw_numbers(step: int) -> tuple[int, int, Tensor]:
    return step, os.getpid(), torch.from_numpy(step_rng(3, step).random(4))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_draw_the_same_in_the_same_order(workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = list(draw_ahead(draw_numbers, range(5, 12), workers))
    assert [step for step, _, _ in drawn] == list(range(5, 12))
    assert all(values.equal(draw_numbers(step)[2]) for step, _, values in drawn)
    others = {process for _, process, _ in drawn} - {os.getpid()}
    assert len(others) == workers
    assert torch.get_rng_state().equal(before)  # a resumed training would draw other numbers


def refuse_seven(step: int) -> int:
    if step == 7:
        raise Refusal("The image seven is broken; mend it.")
    return step


@pytest.mark.parametrize("workers", [0, 2])
def test_refusal_of_a_worker_stays_one_sentence(workers: int) -> None:
    drawn = draw_ahead(refuse_seven, range(6, 10), workers)
    assert next(drawn) == 6
    with pytest.raises(Refusal) as refusal:
        next(drawn)
    assert str(refusal.value) == "The image seven is broken; mend it."


@pytest.mark.parametrize(("total", "processes", "batch"), [(7, 2, 3), (12, 3, 2), (5, 4, 4), (1, 2, 2)])
def test_each_row_comes_once_in_an_epoch_over_all_processes(total: int, processes: int, batch: int) -> None:
    steps = 2 * total  # a whole number of epochs
    taken = [
        list_rows(total, 9, (step * processes + rank) * batch, batch)
        for step in range(steps)
        for rank in range(processes)
    ]
    rows = [row for part in taken for row in part]
    epochs = [rows[start : start + total] for start in range(0, len(rows), total)]
    assert len(epochs) == 2 * processes * batch
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert total < 5 or len({tuple(epoch) for epoch in epochs}) > 1  # in another order each time


def test_pools_are_mixed_by_their_shares_and_each_comes_in_epochs() -> None:
    blank = np.zeros((1, 1, 4), np.uint8)
    pools = [[Sprite(f"{name}{n}", name, blank) for n in range(size)] for name, size in (("a", 3), ("b", 5), ("c", 7))]
    mixture = Mixture(pools, (0.3, 0.2), seed=1)
    drawn = [sprite for first in range(0, 420, 6) for sprite in mixture.draw(first, 6)]
    assert Counter(sprite.text for sprite in drawn) == {"a": 126, "b": 84, "c": 210}
    for pool in pools:
        names = [sprite.name for sprite in drawn if sprite.text == pool[0].text]
        for start in range(0, len(names) - len(pool) + 1, len(pool)):
            assert sorted(names[start : start + len(pool)]) == [sprite.name for sprite in pool]
    alone = Mixture(pools, (0.0, 1.0), seed=1)
    assert {sprite.text for sprite in alone.draw(0, 50)} == {"b"}


@pytest.mark.parametrize("pairs", [True, False])
def test_each_image_comes_once_in_an_epoch_over_processes_workers_and_stages(pairs: bool) -> None:
    sprites = [Sprite(str(n), "disc", np.full((8, 8, 4), (40 * n, 0, 0, 255), np.uint8)) for n in range(6)]
    still = Augmentation(flip=False, scale=(1, 1), rotate=0, shift=0)
    config = TransparencyConfig(sizes=(64, 64), size_steps=(3, 3), batches=(2, 4), augmentation=still, pairs=pairs)
    config = replace(config, soft_share=0.0, prompt_share=0.0, accumulate=2)
    ranks = [draw_ahead(Batches.of(sprites, config, 1.0, rank, 2).draw, range(6), workers=rank) for rank in (0, 1)]
    drawn = [part["batch"] for step in zip(*ranks, strict=True) for part in step]
    reds = [round(float(red) * 255 / 40) for batch in drawn for red in batch.padded[:: 2 if pairs else 1, 0, 32, 32]]
    epochs = [reds[start : start + 6] for start in range(0, len(reds), 6)]
    assert len(epochs) == (6 if pairs else 12)
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)


def test_stage_and_images_before_a_step() -> None:
    steps, batches = (3, 2), (4, 6)
    assert [find_stage(step, steps, batches) for step in range(5)] == [(0, 0), (0, 4), (0, 8), (1, 12), (1, 18)]


def test_batch_is_cut_into_equal_parts() -> None:
    rows = torch.arange(4)
    first, second = split({"x": rows, "said": ["a", "b", "c", "d"], "view": 5, "none": None}, 2)
    assert (first["x"].tolist(), first["said"], first["view"], first["none"]) == ([0, 1], ["a", "b"], 5, None)
    assert (second["x"].tolist(), second["said"]) == ([2, 3], ["c", "d"])
    pair = split(TransparentBatch(rows, rows + 1, rows + 2), 2)
    assert (pair[1].alpha.tolist(), pair[1].grey.tolist()) == ([2, 3], [4, 5])


def test_bank_keeps_what_was_encoded_and_completes_what_is_missing(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", 2 * PART + 3)
    drawn: list[int] = []

    def draw(part: int) -> range:
        drawn.append(part)
        return bank.find_rows(part)

    def encode(rows: range) -> tuple[dict[str, Tensor], list[list[str]]]:
        numbers = torch.tensor(rows, dtype=torch.float32)
        return {"mean": numbers[:, None].expand(-1, 2), "std": -numbers}, [[str(row), "all"] for row in rows]

    for _ in range(2):
        bank.fill(draw, encode, open_accelerator())
    assert drawn == [0, 1, 2]
    (tmp_path / "bank" / "000001.safetensors").unlink()
    (tmp_path / "bank" / "000001.new").write_bytes(b"half")
    bank.fill(draw, encode, open_accelerator())
    assert drawn == [0, 1, 2, 1]
    read = bank.read([PART + 1, 0, 2 * PART + 2])
    assert read["mean"].tolist() == [[PART + 1] * 2, [0, 0], [2 * PART + 2] * 2]
    assert read["std"].tolist() == [-PART - 1, 0, -2 * PART - 2]
    assert bank.read_texts() == [[str(row), "all"] for row in range(2 * PART + 3)]
