"""The comparison with matting: its methods on composites whose alpha is known, and how its tables are made."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from benchmarks import matting, matting_methods
from benchmarks.matting import FROM_CLASS, Measure, Row, choose_colour, fill, list_differences, tabulate
from benchmarks.matting_methods import (
    cut_with_closed_form,
    cut_with_grabcut,
    draw_start,
    draw_trimap,
    has_both,
    key_by_distance,
    key_by_least_alpha,
    read_background,
    start_from_trimap,
    widen_line,
    with_foreground,
)
from lib_layerdiffusion.train.config import read_config
from lib_layerdiffusion.train.dataset import Sprite
from lib_layerdiffusion.train.transparency import TransparencyConfig
from tests.tiny_models import attention_file, decoder_file, encoder_file, make_sd15, make_tokenizer
from tests.train.tiny import draw_disc, png

pytestmark = pytest.mark.slow  # pymatting compiles itself

RED = np.array([0.9, 0.1, 0.1], np.float32)
BLUE = np.array([0.2, 0.35, 0.85], np.float32)


def disc(opacity: float = 1.0) -> np.ndarray:
    """Alpha of a disc with a soft edge, [48, 48]."""
    axis = np.arange(48) - 23.5
    return (np.clip((15 - np.hypot(*np.meshgrid(axis, axis))) / 2 + 0.5, 0, 1) * opacity).astype(np.float32)


def over(alpha: np.ndarray, background: np.ndarray = BLUE) -> np.ndarray:
    return (RED * alpha[..., None] + background * (1 - alpha[..., None])).astype(np.float32)


def test_background_is_read_from_the_frame() -> None:
    picture = over(disc())
    picture[0, :3] = 1  # a few odd pixels
    colour, tolerance = read_background(picture)
    assert colour == pytest.approx(BLUE)
    assert tolerance == pytest.approx(0, abs=1e-6)


def test_least_alpha_is_exact_where_a_channel_is_saturated() -> None:
    green = np.array([0.0, 1.0, 0.0], np.float32)
    alpha = disc(0.5)
    picture = alpha[..., None] * np.array([1, 0, 0], np.float32) + (1 - alpha[..., None]) * green
    rgba = key_by_least_alpha(picture.astype(np.float32), green, 0.0)
    assert rgba[..., 3] == pytest.approx(alpha, abs=0.003)
    assert rgba[24, 24, :3] == pytest.approx([1, 0, 0], abs=0.01)
    assert key_by_least_alpha(over(disc()), BLUE, 0.0)[24, 24, 3] == pytest.approx(0.75 / 0.85, abs=0.004)  # the least


def test_key_by_distance_is_solid_from_its_softness_on() -> None:
    picture = np.tile(BLUE, (4, 4, 1))
    picture[1, 1, 2] -= 0.05 + matting_methods.SOFTNESS / 2
    picture[2, 2, 2] -= 0.5
    alpha = key_by_distance(picture, BLUE, 0.05)[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[1, 1] == pytest.approx(0.5, abs=0.004)
    assert alpha[2, 2] == 1


def test_grabcut_without_a_trimap_finds_the_disc() -> None:
    picture = over(disc())
    cut = cut_with_grabcut(picture, draw_start(picture, BLUE, 0.02))
    assert set(np.unique(cut)) == {0, 1}
    assert (cut[disc() == 1] == 1).all()
    assert (cut[disc() == 0] == 0).all()
    empty = np.tile(BLUE, (48, 48, 1))
    assert not cut_with_grabcut(empty, draw_start(empty, BLUE, 0.02)).any()


def test_trimaps_are_true_and_force_nothing() -> None:
    alpha = disc()
    trimap = draw_trimap(alpha)
    assert set(np.unique(trimap)) == {0, 0.5, 1}
    assert (alpha[trimap == 1] == 1).all()
    assert (alpha[trimap == 0] == 0).all()
    assert has_both(trimap)
    assert not has_both(draw_trimap(disc(0.5)))  # nothing of it is solid
    marks = start_from_trimap(trimap)
    assert [marks[24, 24], marks[0, 0], marks[24, 38]] == [cv2.GC_FGD, cv2.GC_BGD, cv2.GC_PR_FGD]


def test_line_is_widened_to_both_sides() -> None:
    cut = np.zeros((1, 20), np.float32)
    cut[:, 10:] = 1
    assert widen_line(np.repeat(cut, 20, axis=0))[10].tolist() == [0] * 7 + [0.5] * 6 + [1] * 7


def test_closed_form_finds_the_soft_edge_and_the_foregrounds_colour() -> None:
    alpha = disc()
    made = cut_with_closed_form(over(alpha), draw_trimap(alpha))
    assert made == pytest.approx(alpha, abs=0.03)
    rgba = with_foreground(over(alpha), alpha)
    assert rgba[..., :3][alpha > 0.3] == pytest.approx(np.tile(RED, ((alpha > 0.3).sum(), 1)), abs=0.06)


def test_plain_background_is_the_one_farthest_from_the_sprite() -> None:
    green = Sprite("green.png", "green disc", draw_disc(32, (50, 153, 76), 1.0))
    assert choose_colour([green]) != "green"
    white = Sprite("white.png", "white disc", draw_disc(32, (255, 255, 255), 0.5))
    assert choose_colour([white]) == "black"


def test_table_marks_the_best_and_leaves_out_the_reference() -> None:
    measures = {"iou": Measure("overlap", ".2f", lambda value: -value), "width": FROM_CLASS["edge"]}
    rows = [
        Row("a", "opaque", "1", {"iou": 0.5, "width": 0.8}),
        Row("a", "opaque", "2", {"iou": 0.7}),
        Row("b", "opaque", "1", {"iou": 0.4, "width": 1.5}),
        Row("true", "opaque", "1", {"iou": 1.0, "width": 1.0}),
    ]
    assert tabulate(rows, measures, apart="true").splitlines() == [
        "| | overlap | edge width |",
        "|---|---|---|",
        "| a | **0.60** | **0.80** |",
        "| b | 0.40 | 1.50 |",
        "| true | 1.00 | 1.00 |",
    ]


def test_differences_are_listed_beyond_twice_their_error() -> None:
    measures = {"error": Measure("error", ".1f"), "noise": Measure("noise", ".1f")}
    rows = [
        Row(method, "opaque", str(item), {"error": base + 0.1 * (item % 2), "noise": (-1.0) ** (item + base)})
        for method, base in (("ours", 2), ("matting", 1), ("key", 4))
        for item in range(4)
    ]
    assert list_differences(rows, measures, "ours").splitlines() == [
        "- matting is better in error.",
        "- key is worse in error.",
    ]
    assert list_differences(rows[:4], measures, "ours") == "- No other method differs from it."


def test_document_is_filled_between_its_marks_only() -> None:
    text = "before\n<!-- held-out -->\nold\n<!-- /held-out -->\nafter\n"
    filled = fill(text, "held-out", "new \\1\n")
    assert filled == "before\n<!-- held-out -->\nnew \\1\n<!-- /held-out -->\nafter\n"
    assert fill(filled, "held-out", "new \\1") == filled
    with pytest.raises(ValueError, match="generated"):
        fill(text, "generated", "new")


def test_baseline_is_configured_to_see_the_picture_alone() -> None:
    file = Path(matting_methods.__file__).with_name("matting_baseline.toml")
    config = read_config(TransparencyConfig, file, [])
    assert (config.latent, config.decoder_only, config.fade_share) == (False, True, 0.0)


def test_the_command_fills_the_document_and_draws_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matting, "STEPS", 2)
    pipe = make_sd15(make_tokenizer(tmp_path))
    model, data = tmp_path / "model", tmp_path / "sprites"
    pipe.save_pretrained(model)
    for folder in (model / "layer_model", tmp_path / "baseline"):
        folder.mkdir()
        for name in ("layer_sd15_transparent_attn", matting.ENCODER, matting.DECODER):
            state = {matting.ENCODER: encoder_file, matting.DECODER: decoder_file}.get(name)
            save_file(state() if state else attention_file(pipe.unet, 1), folder / f"{name}.safetensors")
    data.mkdir()
    lines: list[str] = []
    for text, kind, split, opacity in (
        ("red disc", "opaque", "train", 1.0),
        ("glass disc", "soft", "train", 0.4),
        ("ball", "opaque", "held-out", 1.0),
        ("bowl", "soft", "held-out", 1.0),
        ("mist", "soft", "held-out", 0.5),
    ):
        (data / f"{text}.png").write_bytes(png(draw_disc(80, (220, 20, 20), opacity)))
        facts = {"file_name": f"{text}.png", "text": text, "kind": kind, "split": split, "prompt": split == "train"}
        lines.append(json.dumps(facts))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    document, sheet = tmp_path / "matting.md", tmp_path / "images" / "sheet.png"
    document.write_text("<!-- generated -->\n<!-- /generated -->\n\n<!-- held-out -->\n<!-- /held-out -->\n")
    places = ["--model", model, "--baseline", tmp_path / "baseline", "--out", document, "--sheet", sheet]
    matting.main([str(each) for each in (data, "--size", 64, "--every", 1, *places)])
    text = document.read_text("utf-8")
    generated, _, held_out = text.partition("<!-- held-out -->")
    for title in ("**Opaque motifs**, 2 pictures of 1 words", "**Half-transparent motifs**, 2 pictures of 1 words"):
        _, _, table = generated.partition(title)
        assert [row.split(" | ")[0] for row in table.strip().splitlines()[2:9]] == [
            "| native",
            "| colour key",
            "| colour to alpha",
            "| GrabCut",
            "| GrabCut, then closed-form",
            "| learned, without the latent",
            "| the sprites themselves",
        ]
        perfect = table.strip().splitlines()[8].split(" | ")
        assert float(perfect[1]) > 0.9  # a sprite overlaps with itself
        assert float(perfect[-1].rstrip(" |")) == 1
    assert "](images/sheet.png)" in generated
    with Image.open(sheet) as picture:
        assert picture.size == (7 * 64, 2 * 64 + 14)
    for title, trimaps in (("Opaque sprites", 4), ("with a solid part", 4), ("without a solid part", 0)):
        _, _, table = held_out.partition(title)
        rows = table.partition("Against")[0]
        assert rows.count("with trimap") == trimaps
        assert rows.count("round trip through the latent") == 1
        assert rows.count("learned, without the latent, grey") == 1
