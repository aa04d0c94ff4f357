"""Pictures of every kind are read as straight RGBA bytes or refused, and PNGs keep pixels and text and are whole."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageCms

from lib_layerdiffusion.export import png
from lib_layerdiffusion.image_file import read_content, read_image
from lib_layerdiffusion.layers import Layer, LayerStack, composite
from lib_layerdiffusion.refusal import Refusal

Bytes = NDArray[np.uint8]

# Nothing is timed, however busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)

RGBA = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4)))
COLOURS = np.array([[(200, 40, 90), (20, 40, 190), (0, 0, 0)], [(255, 255, 255), (9, 80, 7), (1, 2, 3)]], np.uint8)
ALPHA = np.array([[255, 128, 0], [1, 254, 77]], np.uint8)
STRAIGHT = np.dstack([COLOURS, ALPHA])
GREY = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)


def spread(grey: Bytes, alpha: Bytes | int = 255) -> Bytes:
    """A grey and an alpha as RGBA."""
    return np.dstack([grey, grey, grey, np.full_like(grey, alpha)])


def draw(size: tuple[int, int], channels: int = 3) -> Bytes:
    """Noise, which no format makes much smaller."""
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels)).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(width: int, height: int, depth: int = 8, colour_type: int = 6, data: bytes = bytes(64)) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def save(image: PIL.Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **settings)
    return file.getvalue()


def check_sentence(error: pytest.ExceptionInfo[Refusal], path: Path | str) -> str:
    """One sentence that names the file, what is wrong, and, after the colon, the cure."""
    text = str(error.value)
    assert text.startswith(str(path))
    rest = text.removeprefix(str(path))
    assert rest.endswith(".")
    assert ". " not in rest
    assert "\n" not in rest
    assert ": " in rest
    return text


def make_palette() -> PIL.Image.Image:
    image = PIL.Image.new("P", (3, 2))
    image.putpalette(COLOURS.tobytes())
    image.putdata(range(6))
    return image


def make_swapped_profile() -> bytes:
    """sRGB's profile with the primaries of red and blue exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    places = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    profile[red : red + 8], profile[blue : blue + 8] = profile[blue : blue + 8], profile[red : red + 8]
    return bytes(profile)


def make_tiff_with_an_empty_page() -> bytes:
    """The list of tags begins at byte 8 with their number, 12 bytes each, and ends with where the next page begins."""
    data = save(PIL.Image.new("L", (3, 2)), format="TIFF")
    end = 10 + 12 * int.from_bytes(data[8:10], "little")
    return data[:end] + struct.pack("<I", len(data)) + data[end + 4 :] + bytes(16)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{ } loop\nshowpage\n"

SIXTEEN = (GREY.astype(int) * 257 + [[0, 100, -100], [100, -100, 0]]).astype(np.uint16)
WIDE = (STRAIGHT.astype(int) * 257).astype(">u2")
KINDS: dict[str, tuple[Callable[[], bytes], Bytes]] = {
    "rgba": (lambda: save(PIL.Image.fromarray(STRAIGHT), format="PNG"), STRAIGHT),
    "rgb": (lambda: save(PIL.Image.fromarray(COLOURS), format="BMP"), np.dstack([COLOURS, np.full_like(ALPHA, 255)])),
    "rgb with a clear colour": (
        lambda: save(PIL.Image.fromarray(COLOURS), format="PNG", transparency=(0, 0, 0)),
        np.dstack([COLOURS, np.array([[255, 255, 0], [255, 255, 255]], np.uint8)]),
    ),
    "palette": (lambda: save(make_palette(), format="PNG", transparency=ALPHA.tobytes()), STRAIGHT),
    "palette with a clear colour": (
        lambda: save(make_palette(), format="PNG", transparency=2),
        np.dstack([COLOURS, np.array([[255, 255, 0], [255, 255, 255]], np.uint8)]),
    ),
    "grey": (lambda: save(PIL.Image.fromarray(GREY), format="PNG"), spread(GREY)),
    "grey and alpha": (lambda: save(PIL.Image.fromarray(np.dstack([GREY, ALPHA])), format="PNG"), spread(GREY, ALPHA)),
    "grey with a clear one": (
        lambda: save(PIL.Image.fromarray(GREY), format="PNG", transparency=127),
        spread(GREY, np.array([[255, 255, 0], [255, 255, 255]], np.uint8)),
    ),
    "black and white": (
        lambda: save(PIL.Image.fromarray(GREY > 127), format="PNG"),
        spread(np.where(GREY > 127, 255, 0).astype(np.uint8)),
    ),
    "16 bit grey": (lambda: save(PIL.Image.fromarray(SIXTEEN), format="PNG"), spread(GREY)),
    "16 bit grey tiff": (lambda: save(PIL.Image.fromarray(SIXTEEN), format="TIFF"), spread(GREY)),
    "16 bit grey with a clear one": (
        lambda: save(PIL.Image.fromarray(SIXTEEN), format="PNG", transparency=int(SIXTEEN[0, 2])),
        spread(GREY, np.array([[255, 255, 0], [255, 255, 255]], np.uint8)),
    ),
    "16 bit rgba": (lambda: make_png(3, 2, 16, 6, b"".join(b"\0" + row.tobytes() for row in WIDE)), STRAIGHT),
    "cmyk": (
        lambda: save(PIL.Image.fromarray(255 - COLOURS).convert("CMYK"), format="TIFF"),
        np.dstack([255 - COLOURS, np.full_like(ALPHA, 255)]),
    ),
    "webp": (lambda: save(PIL.Image.fromarray(STRAIGHT), format="WEBP", lossless=True, exact=True), STRAIGHT),
}


class TestReading:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_gives_its_pixels(self, kind: str, tmp_path: Path) -> None:
        make, wanted = KINDS[kind]
        path = tmp_path / "image"
        path.write_bytes(make())
        for image in (path, str(path), PIL.Image.open(path)):
            read = read_image(image)
            assert read.dtype == np.uint8
            assert np.array_equal(read, wanted)

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
    def test_jpeg_is_opaque_and_near(self, mode: str, tmp_path: Path) -> None:
        image = PIL.Image.new("RGB", (20, 10), (120, 130, 140)).convert(mode)
        image.save(tmp_path / "a.jpg", quality=95)
        wanted = np.full((10, 20, 4), (*image.convert("RGB").getpixel((0, 0)), 255))  # type: ignore[misc]
        assert np.abs(read_image(tmp_path / "a.jpg") - wanted).max() <= 4

    @pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "RGBX", "1", "I", "I;16", "RGB", "L", "P"])
    def test_what_knows_no_alpha_is_opaque(self, mode: str) -> None:
        read = read_image(PIL.Image.new(mode, (3, 2)))
        assert read.shape == (2, 3, 4)
        assert (read[..., 3] == 255).all()

    @pytest.mark.parametrize(
        ("orientation", "undo"),
        enumerate(
            [
                lambda image: image,
                np.fliplr,
                lambda image: np.rot90(image, 2),
                np.flipud,
                lambda image: image.swapaxes(0, 1),
                lambda image: np.rot90(image, -1),
                lambda image: np.rot90(image, 2).swapaxes(0, 1),
                np.rot90,
            ],
            start=1,
        ),
    )
    def test_a_camera_s_rotation_is_applied(
        self, orientation: int, undo: Callable[[Bytes], Bytes], tmp_path: Path
    ) -> None:
        image = PIL.Image.fromarray(STRAIGHT)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(read_image(tmp_path / "a.png"), undo(STRAIGHT))

    def test_unreadable_exif_does_not_cost_the_image(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        PIL.Image.fromarray(STRAIGHT).save(tmp_path / "a.png", exif=b"this is no TIFF header")
        assert np.array_equal(read_image(tmp_path / "a.png"), STRAIGHT)
        assert "unreadable EXIF" in caplog.text

    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_of_an_animation_the_first_frame_is_taken(
        self, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        frames = [PIL.Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
        settings = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], **settings)
        with caplog.at_level(logging.WARNING):
            read = read_image(tmp_path / "a")
        assert np.array_equal(read, np.full((6, 8, 4), (255, 0, 0, 255)))
        assert f"{tmp_path / 'a'} has several frames" in caplog.text

    def test_pages_after_the_first_are_not_walked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pages = [PIL.Image.new("L", (8, 6), shade) for shade in range(50)]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        seeks: list[int] = []
        seek = PIL.TiffImagePlugin.TiffImageFile.seek
        monkeypatch.setattr(
            PIL.TiffImagePlugin.TiffImageFile, "seek", lambda image, frame: (seeks.append(frame), seek(image, frame))
        )
        assert read_image(tmp_path / "a.tif")[0, 0].tolist() == [0, 0, 0, 255]
        assert max(seeks) == 1

    def test_a_page_without_tags_after_the_first_is_disregarded(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(make_tiff_with_an_empty_page())
        assert read_image(tmp_path / "a.tif").shape == (2, 3, 4)

    @pytest.mark.parametrize(
        ("image", "wanted"),
        [
            (PIL.Image.new("RGB", (2, 2), (255, 0, 0)), (0, 0, 255, 255)),
            (PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 100)), (0, 0, 255, 100)),
            (PIL.Image.new("RGB", (2, 2), (255, 0, 0)).convert("P"), (0, 0, 255, 255)),
        ],
        ids=["RGB", "RGBA", "palette"],
    )
    def test_a_colour_profile_is_converted_to_srgb(self, image: PIL.Image.Image, wanted: tuple[int, ...]) -> None:
        data = save(image, format="PNG", icc_profile=make_swapped_profile())
        assert np.abs(read_image(PIL.Image.open(io.BytesIO(data)))[0, 0].astype(int) - wanted).max() <= 1

    def test_a_transparent_colour_survives_a_profile(self) -> None:
        image = PIL.Image.new("RGB", (2, 1), (255, 0, 0))
        image.putpixel((1, 0), (0, 255, 0))
        data = save(image, format="PNG", icc_profile=make_swapped_profile(), transparency=(0, 255, 0))
        assert read_image(PIL.Image.open(io.BytesIO(data)))[0, :, 3].tolist() == [255, 0]

    def test_a_damaged_profile_is_said_and_disregarded(self, caplog: pytest.LogCaptureFixture) -> None:
        data = save(PIL.Image.new("RGB", (2, 2), (255, 0, 0)), format="PNG", icc_profile=b"no profile" * 20)
        assert read_content(data, "a.png")[0, 0].tolist() == [255, 0, 0, 255]
        assert "The colour profile of a.png can't be used" in caplog.text

    @pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 1)])
    def test_extreme_shapes(self, size: tuple[int, int], tmp_path: Path) -> None:
        image = draw(size, 4)
        PIL.Image.fromarray(image).save(tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png"), image)

    @pytest.mark.parametrize(
        ("array", "wanted"),
        [
            (GREY, spread(GREY)),
            (GREY[..., None], spread(GREY)),
            (COLOURS, np.dstack([COLOURS, np.full_like(ALPHA, 255)])),
            (STRAIGHT, STRAIGHT),
        ],
    )
    def test_arrays(self, array: Bytes, wanted: Bytes) -> None:
        assert np.array_equal(read_image(array), wanted)


@pytest.mark.filterwarnings("ignore:.*Corrupt EXIF data", "ignore:Truncated File Read")
class TestRefusing:
    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            (b"", "is an empty file"),
            (b"this is no picture", "is not an image that can be read"),
            (b"\x89PNG\r\n\x1a\n", "is not an image that can be read"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "convert it to PNG"),
            (make_png(100_000, 100_000), "more than the 67108864 pixels that are read: scale it down"),
            (make_png(8193, 8192), "has 67117056 pixels, more than the 67108864 that are read"),
            (make_png(2**31 - 1, 1), "more than the 67108864 pixels"),
            (make_png(2**15 + 1, 1), "is 32769x1, and sides of up to 32768 pixels are read"),
            (POSTSCRIPT, "is not an image that can be read"),
            (make_png(0, 5), "is not an image that can be read"),
            (make_png(64, 64), "is damaged or cut off"),
            (make_png(64, 64).replace(b"IDAT", b"IDAX"), "is not an image that can be read"),
            (save(PIL.Image.new("F", (3, 2), 0.5), format="TIFF"), "more than 16 bits per channel"),
            (save(PIL.Image.new("I", (3, 2), 70_000), format="TIFF"), "more than 16 bits per channel"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_files(self, data: bytes, sentence: str, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(data)
        with pytest.raises(Refusal) as error:
            read_image(path)
        assert sentence in check_sentence(error, path)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
    def test_what_is_cut_off_is_refused_wherever_it_is_cut(self, kind: str, tmp_path: Path) -> None:
        data = save(PIL.Image.fromarray(draw((40, 30))), format=kind)
        path = tmp_path / "image"
        for length in [1, 5, 9, 20, *np.linspace(40, len(data) - 30, 12, dtype=int)]:
            path.write_bytes(data[:length])
            with pytest.raises(Refusal, match=r"damaged or cut off|not an image that can be read") as error:
                read_image(path)
            check_sentence(error, path)

    @settings(unhurried, derandomize=True)
    @given(
        st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]),
        st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=6),
    )
    def test_damage_anywhere_gives_an_image_or_a_refusal(
        self, tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]]
    ) -> None:
        data = bytearray(save(PIL.Image.fromarray(draw((20, 15))), format=kind))
        for place, value in changes:
            data[place % len(data)] = value
        path = tmp_path_factory.getbasetemp() / "damaged"
        path.write_bytes(data)
        with contextlib.suppress(Refusal):
            read = read_image(path)
            assert (read.ndim, read.shape[2], read.dtype) == (3, 4, np.uint8)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(Refusal, match=r"none\.png can't be used \(No such file or directory\): check its name"):
            read_image(tmp_path / "none.png")
        with pytest.raises(Refusal, match="is a folder, not an image: name an image file in it") as error:
            read_image(tmp_path)
        check_sentence(error, tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe.png"
        os.mkfifo(path)
        with pytest.raises(Refusal, match="is not an ordinary file") as error:
            read_image(path)
        check_sentence(error, path)

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Root may read anything, so the system's answer is simulated."""

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        path = tmp_path / "a.png"
        path.write_bytes(make_png(1, 1))
        monkeypatch.setattr(PIL.Image, "open", refuse)
        with pytest.raises(Refusal, match=r"\(Permission denied\): change its permissions") as error:
            read_image(path)
        check_sentence(error, path)

    def test_pillow_images_that_can_not_be_loaded(self) -> None:
        """Pillow reads the pixels late, so the image may turn out damaged only here."""
        data = save(PIL.Image.fromarray(draw((40, 30))), format="PNG")
        with pytest.raises(Refusal, match="truncated") as error:
            read_image(PIL.Image.open(io.BytesIO(data[: len(data) // 2])))
        check_sentence(error, "The image")

    @pytest.mark.parametrize(
        ("array", "sentence"),
        [
            (np.zeros((4, 4, 3), np.float32), r"not float32 \[4, 4, 3\]"),
            (np.zeros((4, 4, 3), int), "not int64"),
            (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels, not 2"),
            (np.zeros((4, 4, 5), np.uint8), "1, 3 or 4 channels, not 5"),
            (np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]"),
            (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
            (np.zeros(4, np.uint8), r"\[4\]"),
        ],
    )
    def test_arrays(self, array: NDArray[Any], sentence: str) -> None:
        with pytest.raises(Refusal, match=sentence) as error:
            read_image(array)
        check_sentence(error, "An image array")


def read_text(path: Path) -> dict[str, str]:
    with PIL.Image.open(path) as image:
        return dict(image.text)  # type: ignore[attr-defined]


class TestPng:
    @unhurried
    @given(RGBA)
    def test_keeps_every_byte_also_where_nothing_is_visible(
        self, tmp_path_factory: pytest.TempPathFactory, image: Bytes
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "kept.png"
        for written in (image, LayerStack((Layer("a", image, "foreground"),), (image.shape[1], image.shape[0]))):
            png.write(written, path)
            with PIL.Image.open(path) as back:
                assert (back.format, back.mode) == ("PNG", "RGBA")
                assert np.array_equal(np.array(back), image)
            assert np.array_equal(read_image(path), image)

    def test_rgb_stays_rgb_and_views_are_taken(self, tmp_path: Path) -> None:
        image = draw((8, 6))[::-2, ::3]
        png.write(image, str(tmp_path / "a.png"))
        with PIL.Image.open(tmp_path / "a.png") as back:
            assert back.mode == "RGB"
            assert np.array_equal(np.array(back), image)

    def test_a_stack_is_composed_over_nothing(self, tmp_path: Path) -> None:
        layers = Layer("a", draw((8, 6), 4), "background"), Layer("b", draw((4, 4), 4), "foreground", offset=(6, 1))
        stack = LayerStack(layers, (9, 6))
        png.write(stack, tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png"), composite(stack))

    @unhurried
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
    def test_infotext_is_written_and_read_back(self, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
        path = tmp_path_factory.getbasetemp() / "text.png"
        png.write(STRAIGHT, path, text)
        assert read_text(path) == {"parameters": text}

    def test_infotext_as_webuis_write_it(self, tmp_path: Path) -> None:
        text = "a cat, 猫\nNegative prompt: dög\nSteps: 20, layerdiffusion_enabled: True, layerdiffusion_weight: 1.0"
        stack = LayerStack((Layer("a", STRAIGHT, "foreground"),), (3, 2), text)
        png.write(stack, tmp_path / "own.png")
        png.write(stack, tmp_path / "given.png", "other")
        png.write(stack, tmp_path / "none.png", "")
        assert read_text(tmp_path / "own.png") == {"parameters": text}
        assert read_text(tmp_path / "given.png") == {"parameters": "other"}
        assert read_text(tmp_path / "none.png") == {}

    def test_text_that_is_no_unicode_does_not_cost_the_image(self, tmp_path: Path) -> None:
        """As a prompt in Latin-1 is that comes from a shell in UTF-8."""
        png.write(STRAIGHT, tmp_path / "a.png", b"cr\xe8me ol\xc3\xa9".decode("utf-8", "surrogateescape"))
        assert read_text(tmp_path / "a.png") == {"parameters": "cr?me olé"}
        assert np.array_equal(read_image(tmp_path / "a.png"), STRAIGHT)

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (KeyboardInterrupt(), KeyboardInterrupt),
            (MemoryError(), MemoryError),
            (OSError(errno.ENOSPC, "No space left on device"), Refusal),
        ],
        ids=["interrupt", "memory", "disk"],
    )
    @pytest.mark.parametrize("before", [b"", b"an older picture"], ids=["new", "older"])
    def test_an_interrupted_write_leaves_all_as_it_was(
        self,
        raised: BaseException,
        expected: type[BaseException],
        before: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = tmp_path / "a.png"
        if before:
            path.write_bytes(before)
        seen = []

        def stop(_: PIL.Image.Image, file: Any, **__: object) -> None:
            file.write(b"half")
            file.flush()
            seen.extend(tmp_path.iterdir())
            raise raised

        monkeypatch.setattr(PIL.Image.Image, "save", stop)
        with pytest.raises(expected) as error:
            png.write(STRAIGHT, path)
        assert len(set(seen) - {path}) == 1  # what was being written lay beside
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"a.png": before} if before else {})
        if expected is Refusal:
            assert str(error.value) == (
                f"{path} can't be used (No space left on device): free some space or choose another folder."
            )

    def test_an_older_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"an older picture")
        png.write(STRAIGHT, tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png"), STRAIGHT)
        assert [file.name for file in tmp_path.iterdir()] == ["a.png"]

    @pytest.mark.parametrize("name", ["a" * 251, "漢" * 83, "🐈" * 62], ids=["1 byte", "3 bytes", "4 bytes"])
    def test_the_longest_names_are_written(self, name: str, tmp_path: Path) -> None:
        """A file name has 255 bytes."""
        png.write(STRAIGHT, tmp_path / f"{name}.png")
        assert [file.name for file in tmp_path.iterdir()] == [f"{name}.png"]

    def test_places_that_can_not_be_written_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(Refusal, match=r"\(Is a directory\): name a file in it, or choose another name"):
            png.write(STRAIGHT, tmp_path / "folder")
        with pytest.raises(
            Refusal, match=r"none/a.png can't be used \(No such file or directory\): check its name and folder"
        ):
            png.write(STRAIGHT, tmp_path / "none" / "a.png")
        assert [file.name for file in tmp_path.rglob("*")] == ["folder"]

    @pytest.mark.parametrize(
        "image",
        [np.zeros((4, 4, 4), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)],
        ids=["float", "grey", "two channels"],
    )
    def test_other_arrays_are_refused_before_anything_is_written(self, image: Any, tmp_path: Path) -> None:
        with pytest.raises(Refusal, match="A PNG takes uint8"):
            png.write(image, tmp_path / "a.png")
        assert not list(tmp_path.iterdir())
