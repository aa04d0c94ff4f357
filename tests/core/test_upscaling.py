"""Enlarging transparent images: against other ways, by a model in tiles, and on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from lib_layerdiffusion import upscaling
from lib_layerdiffusion.cli import main
from lib_layerdiffusion.export import png
from lib_layerdiffusion.image_file import read_image
from lib_layerdiffusion.layers import fit, put_over
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.upscaling import continue_colour, load_upscaler, upscale

Bytes = NDArray[np.uint8]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def draw_leaf(side: int = 128) -> Bytes:
    """A striped shape with a soft edge on one side and a hard one on the other; nothing but black lies around it."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    distance = np.hypot(x * 1.4, y)
    alpha = np.where(x < 0, (distance < 0.35) * 1.0, ((0.38 - distance) / 0.15).clip(0, 1))
    stripes = 0.5 + 0.5 * np.sin(40 * (x + 2 * y))[..., None] * np.array([0.4, 0.5, 0.2])
    colour = np.where(alpha[..., None] > 0, stripes, 0)
    return np.rint(np.dstack([colour, alpha]) * 255).astype(np.uint8)


def error(made: Bytes, wanted: Bytes) -> float:
    """Mean squared error over black and white."""
    shown = [put_over(made, np.full((*made.shape[:2], 3), v, np.float32)) for v in (0, 1)]
    right = [put_over(wanted, np.full((*made.shape[:2], 3), v, np.float32)) for v in (0, 1)]
    return float(np.mean((np.stack(shown) - np.stack(right)) ** 2))


@pytest.mark.parametrize("factor", [2, 4])
def test_is_truer_than_what_webuis_do(factor: int) -> None:
    wanted = draw_leaf()
    side = 128 // factor
    small = np.asarray(fit(wanted, (side, side), "stretch"))

    made = upscale(small, (128, 128))

    straight = cv2.resize(small, (128, 128), interpolation=cv2.INTER_LANCZOS4)
    opaque = np.dstack([straight[..., :3], np.full((128, 128), 255, np.uint8)])
    assert error(made, wanted) < min(error(straight, wanted), error(opaque, wanted) / 10)


@unhurried
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_own_size_keeps_alpha_and_the_colour_of_what_is_visible(image: Bytes) -> None:
    made = upscale(image, (image.shape[1], image.shape[0]))

    assert (made[..., 3] == image[..., 3]).all()
    certain = image[..., 3] >= 64
    assert np.abs(made[certain].astype(int) - image[certain]).max(initial=0) <= 1


def test_invisible_pixels_get_the_colour_beside_them() -> None:
    leaf = draw_leaf()
    leaf[leaf[..., 3] == 0, :3] = (255, 0, 255)

    colour = continue_colour(leaf)

    assert (np.abs(colour.astype(int) - (255, 0, 255)).max(axis=-1) > 60).all()


def test_a_model_sees_opaque_colour_and_its_result_is_brought_to_the_size() -> None:
    seen: list[Bytes] = []

    def enlarge(colour: Bytes) -> Bytes:
        seen.append(colour)
        return np.full((colour.shape[0] * 4, colour.shape[1] * 4, 3), 77, np.uint8)

    made = upscale(draw_leaf(32), (80, 80), enlarge)

    assert seen[0].shape == (32, 32, 3)
    assert made.shape == (80, 80, 4)
    assert (made[..., :3] == 77).all()


def test_size_has_to_be_positive() -> None:
    with pytest.raises(Refusal, match="can't be scaled to 0x5"):
        upscale(draw_leaf(8), (0, 5))


class Doubling(nn.Module):
    """Doubles the size and mixes neighbours, as far as a model's view reaches."""

    input_channels, output_channels, scale = 3, 3, 2

    def forward(self, given: Tensor) -> Tensor:
        large = F.interpolate(given, scale_factor=2, mode="nearest")
        return F.avg_pool2d(F.pad(large, (4, 4, 4, 4), mode="replicate"), 9, 1)


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a package in spandrel's place reads as `Doubling`; spandrel itself needs a torchvision for torch."""

    class ModelLoader:
        def __init__(self, device: Any) -> None:
            self.device = device

        def load_from_file(self, path: Path) -> nn.Module:
            if Path(path).read_bytes() != b"doubling":
                raise ValueError("Unsupported model")
            return Doubling().to(self.device)

    package = SimpleNamespace(ModelLoader=ModelLoader, ImageModelDescriptor=Doubling)
    monkeypatch.setitem(sys.modules, "spandrel", package)
    path = tmp_path / "doubling.pth"
    path.write_bytes(b"doubling")
    return path


class TestModelFile:
    def test_tiles_give_what_the_whole_gives(self, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        colour = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
        enlarge = load_upscaler(model_file)
        whole = enlarge(colour)

        monkeypatch.setattr(upscaling, "TILE", 32)
        tiled = enlarge(colour)

        assert whole.shape == (140, 180, 3)
        assert whole.std() > 0
        assert np.abs(tiled.astype(int) - whole).max() <= 1

    def test_command_line_enlarges_by_it(self, model_file: Path, tmp_path: Path) -> None:
        png.write(draw_leaf(32), tmp_path / "leaf.png")

        code = main(["upscale", str(tmp_path / "leaf.png"), "--upscaler", str(model_file), "--out", str(tmp_path)])

        assert code == 0
        made = read_image(tmp_path / "leaf-64x64.png")
        assert (made == upscale(draw_leaf(32), (64, 64), load_upscaler(model_file))).all()

    def test_a_torchvision_for_another_torch_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "spandrel.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        monkeypatch.delitem(sys.modules, "spandrel", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))

        with pytest.raises(Refusal, match=r"nms does not exist\): install the torchvision that is made for torch 2\."):
            load_upscaler(tmp_path / "x.pth")

    def test_what_is_not_a_model_is_refused(self, model_file: Path) -> None:
        model_file.write_bytes(b"another file")

        with pytest.raises(Refusal, match="can't be read as an upscaling model"):
            load_upscaler(model_file)

    def test_a_model_for_grey_pictures_is_refused(self, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Doubling, "input_channels", 1)

        with pytest.raises(Refusal, match="isn't a model that enlarges RGB pictures"):
            load_upscaler(model_file)


class TestPublishedKeys:
    """With the package itself, where it is installed."""

    def test_an_esrgan_is_read(self, tmp_path: Path) -> None:
        pytest.importorskip("spandrel")
        from spandrel.architectures.ESRGAN import RRDBNet

        torch.manual_seed(0)
        torch.save(RRDBNet(num_filters=8, num_blocks=1, scale=2).state_dict(), tmp_path / "x2.pth")

        made = upscale(draw_leaf(32), (64, 64), load_upscaler(tmp_path / "x2.pth"))

        assert made[..., :3].std() > 0

    @pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
    def test_other_files_are_refused(self, content: bytes, tmp_path: Path) -> None:
        pytest.importorskip("spandrel")
        (tmp_path / "x.pth").write_bytes(content)

        with pytest.raises(Refusal, match="can't be read as an upscaling model"):
            load_upscaler(tmp_path / "x.pth")


class TestCommandLine:
    @pytest.mark.parametrize(
        ("words", "size"),
        [
            ([], (80, 40)),
            (["--by", "1.5"], (60, 30)),
            (["--width", "100"], (100, 50)),
            (["--height", "100"], (200, 100)),
            (["--width", "33", "--height", "44"], (33, 44)),
        ],
    )
    def test_sizes(self, words: list[str], size: tuple[int, int], tmp_path: Path, capsys: Any) -> None:
        png.write(draw_leaf(40)[:20], tmp_path / "a.png")

        assert main(["upscale", str(tmp_path / "a.png"), *words, "--out", str(tmp_path)]) == 0

        (path,) = capsys.readouterr().out.split()
        assert path == str(tmp_path / f"a-{size[0]}x{size[1]}.png")
        assert read_image(path).shape == (size[1], size[0], 4)

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["--by", "2", "--width", "9"], "The size is given twice"),
            (["--width", "30000"], "would have 30000x15000 pixels, more than the 67108864 allowed"),
            (["--upscaler", "absent.pth"], "There is no file absent.pth"),
        ],
    )
    def test_refusals_write_nothing(
        self, words: list[str], sentence: str, model_file: Path, tmp_path: Path, capsys: Any
    ) -> None:
        png.write(draw_leaf(40)[:20], tmp_path / "a.png")

        assert main(["upscale", str(tmp_path / "a.png"), *words, "--out", str(tmp_path / "out")]) == 2

        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
