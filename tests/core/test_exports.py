"""Layered files read back as the layers that went in: pixels, order, names, places."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lib_layerdiffusion.export import archive, ora, psd
from lib_layerdiffusion.layers import Layer, LayerStack, composite, spread
from lib_layerdiffusion.refusal import Refusal

SIZE = (37, 21)  # width, height
NAMES = ["background", "Vordergrund ä", "前景", "🍎 <&\"'>", "x" * 90]


def noise(width: int, height: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


@pytest.fixture
def stack() -> LayerStack:
    """Layers of several sizes, inside, over the edges and outside of the canvas."""
    places = [(0, 0), (5, 3), (-4, -2), (30, 15), (60, 40)]
    sizes = [SIZE, (9, 8), (10, 10), (20, 20), (3, 2)]
    layers = [
        Layer(name, noise(*size, seed), "foreground", offset=place)
        for seed, (name, size, place) in enumerate(zip(NAMES, sizes, places, strict=True))
    ]
    return LayerStack(tuple(layers), SIZE)


def read_ora(source: Any) -> tuple[tuple[int, int], list[tuple[str, tuple[int, int], Any]], zipfile.ZipFile]:
    """Size, and name, place and pixels of each layer from the bottom."""
    file = zipfile.ZipFile(source)
    image = ElementTree.fromstring(file.read("stack.xml"))
    rows = []
    for layer in reversed(image.findall("stack/layer")):
        pixels = np.asarray(Image.open(io.BytesIO(file.read(layer.attrib["src"]))))
        rows.append((layer.attrib["name"], (int(layer.attrib["x"]), int(layer.attrib["y"])), pixels))
    return (int(image.attrib["w"]), int(image.attrib["h"])), rows, file


def check_layers(stack: LayerStack, rows: list[tuple[str, tuple[int, int], Any]]) -> None:
    assert [name for name, _, _ in rows] == [layer.name for layer in stack.layers]
    assert [place for _, place, _ in rows] == [layer.offset for layer in stack.layers]
    for (_, _, pixels), layer in zip(rows, stack.layers, strict=True):
        assert np.array_equal(pixels, layer.image)


def test_an_ora_reads_back(stack, tmp_path):
    path = tmp_path / "ein Bild ä.ora"
    ora.write(stack, path)
    size, rows, file = read_ora(path)
    assert size == SIZE
    check_layers(stack, rows)
    merged = np.asarray(Image.open(io.BytesIO(file.read("mergedimage.png"))))
    assert np.array_equal(merged, composite(stack))
    assert max(Image.open(io.BytesIO(file.read("Thumbnails/thumbnail.png"))).size) <= 256


@pytest.mark.parametrize("name", ["a\x1bb", "a\0b", "a\x0bb", "a\ufffeb", "a\ud800b"])
def test_a_name_that_xml_cannot_hold_is_changed_in_an_ora(name):
    buffer = io.BytesIO()
    ora.write_to(LayerStack((Layer(name, noise(2, 2, 0), "foreground"),), (2, 2)), buffer)
    ((found, _, _),) = read_ora(io.BytesIO(buffer.getvalue()))[1]
    assert found == "a\N{REPLACEMENT CHARACTER}b"


def test_an_ora_says_what_it_is_in_its_first_bytes(stack):
    buffer = io.BytesIO()
    ora.write_to(stack, buffer)
    content = buffer.getvalue()
    assert content[30:54] == b"mimetypeimage/openraster"  # first entry, stored, no extra field
    assert zipfile.ZipFile(buffer).testzip() is None
    image = ElementTree.fromstring(zipfile.ZipFile(buffer).read("stack.xml"))
    assert image.attrib["version"].startswith("0.0.")
    assert {layer.attrib["composite-op"] for layer in image.findall("stack/layer")} == {"svg:src-over"}


def read_psd(source: Any) -> tuple[Any, list[tuple[str, tuple[int, int], Any]]]:
    psd_tools = pytest.importorskip("psd_tools")
    document = psd_tools.PSDImage.open(source)
    rows = [(layer.name, (layer.left, layer.top), np.asarray(layer.topil().convert("RGBA"))) for layer in document]
    return document, rows


def test_a_psd_reads_back(stack, tmp_path):
    path = tmp_path / "ein Bild ä.psd"
    psd.write(stack, path)
    document, rows = read_psd(path)
    assert (document.width, document.height) == SIZE
    check_layers(stack, rows)


def test_a_psd_shows_its_layers_in_readers_of_flat_pictures(stack):
    """The merged picture: Pillow takes it as it lies, on white; psd-tools takes the white out, as Photoshop does."""
    buffer = io.BytesIO()
    psd.write_to(stack, buffer)
    expected = composite(stack).astype(int)
    pillow = np.asarray(Image.open(io.BytesIO(buffer.getvalue()))).astype(int)
    assert np.abs(pillow[..., :3] - composite(stack, "white").astype(int)).max() <= 1
    document, _ = read_psd(io.BytesIO(buffer.getvalue()))
    whole: Any = document.topil()
    for merged in (whole, document.composite(force=True)):
        pixels = np.asarray(merged.convert("RGBA")).astype(int)
        assert np.abs(pixels[..., 3] - expected[..., 3]).max() <= 2
        assert np.abs(pixels - expected)[expected[..., 3] > 32].max() <= 8


def test_a_psd_needs_no_package(stack, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psd_tools", None)
    psd.write(stack, tmp_path / "a.psd")
    assert Image.open(tmp_path / "a.psd").size == SIZE


@pytest.mark.parametrize("width", [1, 2, 3, 127, 128, 129, 130, 257, 1000])
@pytest.mark.parametrize("kind", ["even", "noise", "steps", "pairs"])
def test_rows_of_every_kind_and_length_are_packed(kind, width):
    """Runs and what lies between them end at 128 bytes, and a row may begin and end with either."""
    columns = np.arange(width)
    of_kind = {
        "even": columns * 0,
        "steps": columns // 131,
        "pairs": columns // 2,
        "noise": noise(width, 1, 3)[0, :, 0],
    }
    image = np.repeat(of_kind[kind].astype(np.uint8)[None, :, None], 4, axis=2).repeat(2, axis=0)
    image[1] = image[1, ::-1]
    buffer = io.BytesIO()
    psd.write_to(LayerStack((Layer("a", image, "foreground"),), (width, 2)), buffer)
    ((_, _, pixels),) = read_psd(io.BytesIO(buffer.getvalue()))[1]
    assert np.array_equal(pixels, image)


def test_a_psd_ends_at_the_size_of_its_format(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(psd, "LARGEST_SECTION", 3000)
    with pytest.raises(Refusal, match=r"at most 2 GB.*take ORA"):
        psd.write(stack, tmp_path / "a.psd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "width"), [((30_001, 1), 2), ((1, 400_000), 2), ((8, 8), 30_001)])
def test_a_psd_has_the_largest_sides_of_its_format(size, width, tmp_path):
    stack = LayerStack((Layer("a", noise(width, 1, 0), "foreground"),), size)
    with pytest.raises(Refusal, match=r"at most 30000 pixels on each side.*take ORA"):
        psd.write(stack, tmp_path / "a.psd")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_has_a_whole_canvas_for_each_layer(stack, tmp_path):
    path = tmp_path / "layers.zip"
    archive.write(stack, path)
    file = zipfile.ZipFile(path)
    names = file.namelist()
    assert [name[:3] for name in names] == ["01-", "02-", "03-", "04-", "05-"]
    assert names[:3] == ["01-background.png", "02-vordergrund-ä.png", "03-前景.png"]
    images = [np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names]
    assert {image.shape for image in images} == {(SIZE[1], SIZE[0], 4)}
    assert np.array_equal(images[0], stack.layers[0].image)
    assert np.array_equal(images[1][3:11, 5:14], stack.layers[1].image)
    again = LayerStack(tuple(Layer("a", image, "foreground") for image in images), SIZE)
    expected = composite(stack).astype(int)
    assert np.abs(composite(again) - expected)[expected[..., 3] > 0].max() <= 1


def test_a_layer_of_an_archive_is_what_composing_it_alone_gives(tmp_path):
    pixels = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4)
    for offset in ((-3, -2), (4, 1), (0, 0), (9, 9), (-20, 3), (3, 40)):
        stack = LayerStack((Layer("a", pixels, "foreground", offset),), (6, 4))
        assert np.array_equal(spread(stack.layers[0], stack.size), composite(stack))


def test_a_stack_has_bounds():
    pixel = Layer("a", np.zeros((1, 1, 4), np.uint8), "foreground")
    large = Layer("a", np.broadcast_to(np.uint8(0), (8192, 8192, 4)), "foreground")
    LayerStack((pixel,) * 64, (8192, 8192))
    for layers, size, said in (
        ((pixel,) * 65, (1, 1), "There are 65 layers"),
        ((pixel,), (8193, 8192), "The 8193x8192 of the canvas are 67117056 pixels"),
        ((large,) * 5, (1, 1), "The layers together are 335544320 pixels"),
    ):
        with pytest.raises(Refusal, match=said):
            LayerStack(layers, size)
    with pytest.raises(Refusal, match="There are 65 layers"):
        composite([pixel] * 65)


def test_an_archive_of_too_many_whole_canvases_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "spread", lambda *_: pytest.fail("it was begun"))
    pixel = Layer("a", np.zeros((1, 1, 4), np.uint8), "foreground", (4095, 4095))
    with pytest.raises(Refusal, match="8 of 4096x4096 have more than the 67108864 pixels"):
        archive.write(LayerStack((pixel,) * 8, (4096, 4096)), tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\windows\\x", "a/b", "..", "", "\ud800"])
def test_names_in_an_archive_stay_inside_it(name):
    buffer = io.BytesIO()
    archive.write_to(LayerStack((Layer(name, noise(2, 2, 0), "foreground"),), (2, 2)), buffer)
    (entry,) = zipfile.ZipFile(buffer).namelist()
    assert not set("/\\:") & set(entry)
    assert entry.startswith("01-")
    assert entry.endswith(".png")


@pytest.mark.parametrize("writer", [ora, psd, archive])
def test_files_are_whole_or_not_there(writer, stack, tmp_path: Path):
    with pytest.raises(Refusal, match="check its name and folder"):
        writer.write(stack, tmp_path / "nowhere" / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Refusal, match="choose another name"):
        writer.write(stack, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("writer", [ora, archive])
def test_the_same_layers_make_the_same_archive(writer, stack):
    first, second = io.BytesIO(), io.BytesIO()
    writer.write_to(stack, first)
    writer.write_to(stack, second)
    assert [zipfile.ZipFile(first).read(n) for n in zipfile.ZipFile(first).namelist()] == [
        zipfile.ZipFile(second).read(n) for n in zipfile.ZipFile(second).namelist()
    ]
