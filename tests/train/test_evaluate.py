"""What the evaluation calls faithful, clean, solid and half-transparent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib_layerdiffusion.train.autoencoder import read_autoencoder
from lib_layerdiffusion.train.dataset import Sprite, read_sprites
from lib_layerdiffusion.train.evaluate import (
    Judgement,
    describe,
    evaluate_autoencoding,
    judge,
    nearest_caption,
    soft_share,
    summarise,
)
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests.train.tiny import draw_disc

pytestmark = pytest.mark.slow

RED, BLUE, GLASS = (220, 20, 20), (20, 20, 220), (200, 220, 240)


@pytest.fixture(scope="module")
def sprites(archive: Path) -> list[Sprite]:
    return [sprite for sprite in read_sprites(archive, 64) if sprite.prompt]


def place(rgba: np.ndarray, size: int, left: int, top: int) -> np.ndarray:
    canvas = np.zeros((size, size, 4), np.uint8)
    canvas[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba
    return canvas


def test_description_is_blind_to_place_and_to_invisible_colour() -> None:
    disc = draw_disc(64, RED, 1.0)
    recoloured = disc.copy()
    recoloured[disc[..., 3] == 0, :3] = 255
    for other in (place(disc, 128, 5, 60), recoloured):
        assert np.allclose(describe(other), describe(disc), atol=1e-6)


def test_image_without_anything_visible_is_plain_grey() -> None:
    assert np.unique(describe(np.zeros((8, 8, 4), np.uint8))).tolist() == [0.5]


def test_nearest_sprite_may_be_mirrored() -> None:
    left, right = draw_disc(32, RED, 1.0), draw_disc(32, RED, 1.0)
    left[:, :16, 2] = 255
    right[:16, :, 2] = 255
    sprites = [Sprite("right", "purple above", right), Sprite("left", "purple beside", left)]
    assert nearest_caption(left[:, ::-1], sprites) == "purple beside"
    assert nearest_caption(right, sprites) == "purple above"


def test_soft_share_counts_strictly_between_the_limits() -> None:
    rgba = np.zeros((2, 4, 4), np.uint8)
    rgba[..., 3] = [[0, 25, 26, 128], [229, 230, 255, 200]]
    assert soft_share(rgba) == 4 / 8


def test_good_images_are_good(sprites: list[Sprite]) -> None:
    for colour, caption, opacity in ((RED, "red disc", 1.0), (GLASS, "glass disc", 0.4)):
        judgement = judge(place(draw_disc(64, colour, opacity), 80, 8, 8), caption, 3, sprites)
        assert judgement.is_faithful
        assert judgement.has_good_alpha
        assert (judgement.caption, judgement.seed, judgement.outside) == (caption, 3, 0)


def test_other_motif_is_not_faithful(sprites: list[Sprite]) -> None:
    assert not judge(draw_disc(64, BLUE, 1.0), "red disc", 0, sprites).is_faithful


def test_veil_in_the_outer_frame_is_not_clean(sprites: list[Sprite]) -> None:
    image = draw_disc(64, RED, 1.0)
    image[:4, :, 3] = 30
    judgement = judge(image, "red disc", 0, sprites)
    assert judgement.outside == pytest.approx(30 / 255 * 4 * 64 / (64**2 - 56**2))
    assert not judgement.has_good_alpha


def test_opaque_motif_has_to_be_solid_and_glass_transparent(sprites: list[Sprite]) -> None:
    assert not judge(draw_disc(64, RED, 0.97), "red disc", 0, sprites).has_good_alpha
    solid_glass = judge(draw_disc(64, GLASS, 1.0), "glass disc", 0, sprites)
    assert solid_glass.soft == 0 < solid_glass.soft_of_sprites
    assert not solid_glass.has_good_alpha


def test_summary_gives_shares_of_the_images_concerned() -> None:
    good = Judgement("a", 0, "a", outside=0.0, inside=1.0, soft=0.0, soft_of_sprites=0.0, kind="opaque")
    rows = [
        good,
        replace(good, nearest="b"),
        replace(good, inside=0.5),
        replace(good, kind="soft", soft=0.1, soft_of_sprites=0.3, outside=0.5),
    ]
    assert summarise(rows) == {
        "images": 4,
        "prompt_fidelity": 0.75,
        "clean_outside": 0.75,
        "solid_inside_of_opaque": pytest.approx(2 / 3),
        "half_transparent_kept_of_soft": 0,
        "good_alpha": 0.5,
    }


def test_autoencoding_without_offset_is_what_the_decoder_guesses(archive: Path, vae_folder: Path) -> None:
    torch.manual_seed(0)
    encoder, decoder = TransparentEncoder((4, 4, 8, 8)).eval(), TransparentDecoder((8,) * 7).eval()
    torch.nn.init.normal_(decoder.latent_conv_in.weight)
    vae, sprites = read_autoencoder(vae_folder), read_sprites(archive, 64)[:1]
    blind = evaluate_autoencoding(vae, encoder, decoder, sprites)
    assert blind.alpha_mae == blind.alpha_mae_without_offset
    assert blind.harmless_db == 100
    torch.nn.init.constant_(encoder.blocks[-1].bias, 0.1)
    seeing = evaluate_autoencoding(vae, encoder, decoder, sprites)
    assert seeing.alpha_mae_without_offset == blind.alpha_mae
    assert seeing.alpha_mae != blind.alpha_mae
    assert seeing.harmless_db < 100
    assert set(seeing.recomposite_db) == {"black", "white", "photo-like"}
