"""The discriminator's two losses."""

from __future__ import annotations

import pytest
import torch

from lib_layerdiffusion.train.discriminator import PatchDiscriminator, fooling_loss, grow, judging_loss


def test_judge_learns_to_tell_and_is_bounded() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, (4, 8, 8))
    sharp, blurred = torch.randn(4, 3, 32, 32), torch.zeros(4, 3, 32, 32)
    assert judge(sharp)[-1].shape == (4, 1, 4, 4)
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-2)
    first = judging_loss(judge, sharp, blurred).item()
    for _ in range(30):
        optimizer.zero_grad()
        judging_loss(judge, sharp, blurred).backward()
        optimizer.step()
    assert judging_loss(judge, sharp, blurred).item() < 0.7 * first
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in judge.layers]
    assert max(norms) < 1.5


def test_fooling_moves_the_picture_and_leaves_the_judge() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, (4, 8, 8))
    real = torch.randn(2, 3, 32, 32)
    made = torch.zeros(2, 3, 32, 32, requires_grad=True)
    adversarial, matching = fooling_loss(judge, real, made)
    (adversarial + matching).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in judge.parameters())
    assert matching.item() > 0.01
    assert fooling_loss(judge, real, real)[1].item() == pytest.approx(0, abs=0.02)


def test_pictures_made_beyond_the_real_ones_are_judged_and_not_matched() -> None:
    judge = PatchDiscriminator(3, (4, 8, 8)).eval()
    real, more = torch.randn(2, 3, 32, 32), torch.zeros(3, 3, 32, 32)
    _, matching = fooling_loss(judge, real, torch.cat([real, more]))
    assert matching.item() == pytest.approx(0, abs=1e-5)
    told, made = judge(real)[-1], judge(torch.cat([real, more]))[-1]
    wanted = (1 - told).relu().mean() + (1 + made).relu().mean()
    assert judging_loss(judge, real, torch.cat([real, more])).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_weight_grows_after_its_start() -> None:
    assert [grow(step, 100, 0.3) for step in (0, 30, 35, 40, 100)] == [0, 0, 0.5, 1, 1]
