"""What the evaluation calls faithful, clean, solid and half-transparent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from lib_layerdiffusion.train.autoencoder import read_autoencoder
from lib_layerdiffusion.train.dataset import Sprite, read_sprites
from lib_layerdiffusion.train.evaluate import (
    Judgement,
    Look,
    judge,
    measure_autoencoding,
    soft_share,
    summarise,
    summarise_autoencoding,
)
from lib_layerdiffusion.train.words import describe, find_words, nearest_caption
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests.train.tiny import draw_disc

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


def test_torn_motif_is_not_whole_and_a_speck_loosens_the_box(sprites: list[Sprite]) -> None:
    whole = place(draw_disc(64, RED, 1.0), 80, 8, 8)
    assert judge(whole, "red disc", 0, sprites).is_whole
    assert judge(whole, "red disc", 0, sprites).has_tight_box
    torn = whole.copy()
    torn[36:44] = 0
    assert not judge(torn, "red disc", 0, sprites).is_whole
    for corner, good in ((0, True), (4, False)):
        speck = whole.copy()
        speck[79, 0, 3] = corner
        judgement = judge(speck, "red disc", 0, sprites)
        assert judgement.corners == pytest.approx(corner / 255)
        assert judgement.has_tight_box == good
    inside = whole.copy()
    inside[40, 1:9, 3] = 1
    assert not judge(inside, "red disc", 0, sprites).has_tight_box


def test_detail_and_edges_are_compared_at_the_motifs_own_size(sprites: list[Sprite]) -> None:
    striped = draw_disc(128, RED, 1.0)
    striped[::8, :, :3] = 255
    sprite = Sprite("a.png", "striped disc", striped, prompt=True)
    small = Image.fromarray(striped).resize((48, 48), Image.Resampling.LANCZOS)
    same = judge(place(np.asarray(small), 64, 8, 8), "striped disc", 0, [sprite])
    assert same.look.detail == pytest.approx(same.look_of_sprite.detail, rel=0.15)
    assert same.look.edge == pytest.approx(same.look_of_sprite.edge, rel=0.1)
    soft = small.filter(ImageFilter.GaussianBlur(1.5))
    blurred = judge(place(np.asarray(soft), 64, 8, 8), "striped disc", 0, [sprite])
    assert blurred.look.detail < 0.3 * blurred.look_of_sprite.detail
    assert blurred.look.edge > 1.5 * blurred.look_of_sprite.edge


def test_words_are_those_of_the_model(sprites: list[Sprite], tmp_path: Path) -> None:
    assert find_words(tmp_path, sprites) == sprites
    (tmp_path / "captions.json").write_text('[{"caption": "glass disc", "kind": "soft"}]', encoding="utf-8")
    assert [sprite.text for sprite in find_words(tmp_path, sprites)] == ["glass disc"]


def test_summary_gives_shares_of_the_images_concerned() -> None:
    sharp, soft = Look(detail=10.0, edge=1.0, parts=1, loose=0.0), Look(detail=4.0, edge=3.0, parts=2, loose=9.0)
    good = Judgement("a", 0, "a", 0.0, 1.0, 0.0, 0.0, "opaque", corners=0.0, look=sharp, look_of_sprite=sharp)
    rows = [
        good,
        replace(good, nearest="b"),
        replace(good, inside=0.5, look=soft),
        replace(good, kind="soft", soft=0.1, soft_of_sprites=0.3, outside=0.5, corners=0.1),
    ]
    assert summarise(rows) == {
        "images": 4,
        "prompt_fidelity": 0.75,
        "faithful_and_whole": 0.5,
        "clean_outside": 0.75,
        "empty_corners": 0.75,
        "tight_box": 0.5,
        "solid_inside_of_opaque": pytest.approx(2 / 3),
        "half_transparent_kept_of_soft": 0,
        "good_alpha": 0.5,
        "detail": pytest.approx(34 / 40),
        "edge_of_opaque": pytest.approx(5 / 3),
    }


@pytest.mark.slow
def test_autoencoding_without_offset_is_what_the_decoder_guesses(archive: Path, vae_folder: Path) -> None:
    torch.manual_seed(0)
    encoder, decoder = TransparentEncoder((4, 4, 8, 8)).eval(), TransparentDecoder((8,) * 7).eval()
    torch.nn.init.normal_(decoder.latent_conv_in.weight)
    vae, sprites = read_autoencoder(vae_folder), read_sprites(archive, 64)[:1]
    blind = summarise_autoencoding(measure_autoencoding(vae, encoder, decoder, sprites))
    assert blind.alpha_mae == blind.alpha_mae_without_offset
    assert blind.harmless_db == 100
    torch.nn.init.constant_(encoder.blocks[-1].bias, 0.1)
    seeing = summarise_autoencoding(measure_autoencoding(vae, encoder, decoder, sprites))
    assert seeing.alpha_mae_without_offset == blind.alpha_mae
    assert seeing.alpha_mae != blind.alpha_mae
    assert seeing.harmless_db < 100
    assert set(seeing.recomposite_db) == {"black", "white", "photo-like"}
    assert 0 < seeing.picture_db < 40
    assert seeing.picture_db == blind.picture_db
    assert seeing.picture_detail > 0
    assert seeing.edge is not None
    assert seeing.edge > 0
