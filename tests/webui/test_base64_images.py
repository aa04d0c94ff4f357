"""Images that come in by page or API are read whatever they are wrapped in, and never from the server's disk."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui.base64_images import read_input_image

RGBA = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
OPAQUE = np.dstack([RGBA[..., :3], np.full((5, 7), 255, np.uint8)])


def encode(image: Any, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return base64.b64encode(buffer.getvalue()).decode()


def broken_in_lines(text: str) -> str:
    return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))


@pytest.mark.parametrize(
    "value",
    [
        RGBA,
        Image.fromarray(RGBA),
        encode(RGBA),
        encode(RGBA, "WEBP"),
        "data:image/png;base64," + encode(RGBA),
        "DATA:image/png;base64," + encode(RGBA),
        "data:;base64,\n" + encode(RGBA),
        broken_in_lines(encode(RGBA)) + "\n",
        {"image": encode(RGBA), "mask": None},
        {"image": RGBA, "mask": RGBA[..., 0]},
        {"background": None, "layers": [], "composite": RGBA},
        {"background": RGBA, "layers": [], "composite": None},
    ],
    ids=lambda value: type(value).__name__,
)
def test_transparent_images_keep_every_byte(value):
    image = read_input_image(value, "foreground_image")
    assert image.dtype == np.uint8
    assert np.array_equal(image, RGBA)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (RGBA[..., :3], OPAQUE),
        (encode(RGBA[..., :3]), OPAQUE),
        (Image.fromarray(RGBA[..., :3]), OPAQUE),
        (RGBA[..., 0], np.dstack([RGBA[..., 0]] * 3 + [OPAQUE[..., 3]])),
        (encode(RGBA[..., 0]), np.dstack([RGBA[..., 0]] * 3 + [OPAQUE[..., 3]])),
    ],
)
def test_images_without_alpha_become_opaque(value, expected):
    assert np.array_equal(read_input_image(value, "image"), expected)


@pytest.mark.parametrize("as_what", [str, lambda path: f"file://{path}", lambda path: {"image": str(path)}])
def test_a_path_is_never_read(tmp_path: Path, as_what):
    path = tmp_path / "secret.png"
    Image.fromarray(RGBA).save(path)
    with pytest.raises(Refusal, match="background_image is not base64"):
        read_input_image(as_what(path), "background_image")


@pytest.mark.parametrize("name", ["abcd", "secret00"])  # letters of base64
def test_a_path_that_could_be_base64_is_not_read_either(tmp_path: Path, monkeypatch, name):
    Image.fromarray(RGBA).save(tmp_path / name, format="PNG")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="not an image"):
        read_input_image(name, "image")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "  ",
        "no base64!",
        "ärger",
        "\ud800",
        "data:image/png;base64",
        base64.b64encode(b"").decode(),
        base64.b64encode(b"plain text").decode(),
        base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
        encode(RGBA)[:40],
        encode(RGBA)[:-24] + "AAAAAAAAAAAAAAAAAAAAAAAA",
        None,
        7,
        True,
        [1, 2],
        b"bytes",
        {},
        {"image": None},
        {"image": {"image": {}}},
        {"mask": encode(RGBA)},
        RGBA.astype(np.float32),
        np.zeros((0, 0, 4), np.uint8),
        np.zeros((2, 2, 5), np.uint8),
        np.zeros((2, 2, 2, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda value: repr(value)[:30].encode("ascii", "replace").decode(),
)
def test_anything_else_is_refused_in_one_sentence(value):
    with pytest.raises(Refusal) as caught:
        read_input_image(value, "blend_image")
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 300


def test_a_header_that_is_cut_off_is_named():
    text = base64.b64encode(base64.b64decode(encode(RGBA))[:16]).decode()
    with pytest.raises(Refusal, match=r"^blend_image is damaged or cut off \(.+\): send"):
        read_input_image(text, "blend_image")


def test_a_damaged_image_is_named():
    noise = np.random.default_rng(1).integers(0, 256, (50, 50, 4), dtype=np.uint8)
    text = base64.b64encode(base64.b64decode(encode(noise))[:-5000]).decode()
    with pytest.raises(Refusal, match=r"^blend_image is damaged or cut off: send"):
        read_input_image(text, "blend_image")


def test_an_image_that_is_a_program_is_not_run(monkeypatch):
    """Pillow has Ghostscript run an EPS."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **named: pytest.fail("it was run"))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(Refusal, match="not an image"):
        read_input_image(base64.b64encode(program).decode(), "image")


def png_header(width: int, height: int) -> str:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return base64.b64encode(content).decode()


@pytest.mark.filterwarnings("error")  # Pillow warns of some sizes
@pytest.mark.parametrize("side", [9000, 12_000, 60_000, 2**31 - 1])
def test_a_huge_image_is_refused_by_its_header(side):
    with pytest.raises(Refusal, match="pixels"):
        read_input_image(png_header(side, side), "image")


def test_a_thin_image_is_refused_by_its_header():
    with pytest.raises(Refusal, match="image is 40000x1, and sides of up to 32768 pixels are read"):
        read_input_image(png_header(40_000, 1), "image")


def test_the_limit_is_the_caller_s():
    for value in (RGBA, encode(RGBA), Image.fromarray(RGBA), {"image": RGBA}):
        assert read_input_image(value, "image", max_pixels=35).shape == (5, 7, 4)
        with pytest.raises(Refusal, match=r"image has 35 pixels, more than the 34"):
            read_input_image(value, "image", max_pixels=34)


def test_a_photo_s_rotation_is_applied():
    image = Image.fromarray(RGBA[..., :3])
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif)
    turned = read_input_image(base64.b64encode(buffer.getvalue()).decode(), "image")
    assert np.array_equal(turned, np.rot90(OPAQUE, -1))
