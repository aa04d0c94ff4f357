"""The embedded model through the public call: pictures whose alpha is right for what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lib_layerdiffusion import layer_diffusion

pytestmark = pytest.mark.slow

SEEDS = {"red apple": 5, "soap bubble": 6}


@pytest.fixture(scope="module")
def pipeline(embedded_model: Path) -> Any:
    from diffusers import DiffusionPipeline

    loaded = DiffusionPipeline.from_pretrained(embedded_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def images(pipeline: Any, embedded_model: Path) -> dict[str, NDArray[np.uint8]]:
    with layer_diffusion(pipeline, mode="foreground", weights=embedded_model / "layer_model") as ld:
        stacks = ld.batch(list(SEEDS), list(SEEDS.values()), cfg=3.0)
    return dict(zip(SEEDS, (stack.layers[-1].image for stack in stacks), strict=True))


@pytest.mark.parametrize("caption", SEEDS)
def test_surroundings_are_empty(images: dict[str, NDArray[np.uint8]], caption: str) -> None:
    alpha = images[caption][..., 3] / 255
    frame = np.concatenate([alpha[:4].ravel(), alpha[-4:].ravel(), alpha[:, :4].ravel(), alpha[:, -4:].ravel()])
    assert frame.mean() < 0.02


def test_opaque_motif_is_solid_and_has_its_colour(images: dict[str, NDArray[np.uint8]]) -> None:
    rgba = images["red apple"]
    alpha = rgba[..., 3] / 255
    assert alpha.max() > 0.98
    assert 0.15 < (alpha > 0.9).mean() < 0.8
    red, green, blue = rgba[alpha > 0.9][:, :3].mean(axis=0)
    assert red > 1.5 * max(green, blue)


def test_bubble_lets_the_background_through(images: dict[str, NDArray[np.uint8]]) -> None:
    alpha = images["soap bubble"][..., 3] / 255
    half = (alpha > 0.1) & (alpha < 0.9)
    assert half.mean() > 0.15
    assert half.sum() > (alpha >= 0.9).sum()
