"""Texture atlases: pictures cut out again are the same, nothing overlaps, and no filter mixes neighbours."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lib_layerdiffusion.cli import main
from lib_layerdiffusion.export import png
from lib_layerdiffusion.export.atlas import AtlasOptions, Sheet, describe, make_sheets, name_sheets, write
from lib_layerdiffusion.image_file import read_image
from lib_layerdiffusion.layers import premultiply
from lib_layerdiffusion.refusal import Refusal

pytest.importorskip("rectpack")

Bytes = NDArray[np.uint8]

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def draw_sprites(count: int, seed: int = 0, largest: int = 60) -> dict[str, Bytes]:
    """Discs of one colour each, in pictures of mixed sizes with invisible borders."""
    rng = np.random.default_rng(seed)
    sprites: dict[str, Bytes] = {}
    for number in range(count):
        height, width = rng.integers(8, largest, 2)
        y, x = np.mgrid[:height, :width]
        radius = min(height, width) * rng.uniform(0.2, 0.5)
        alpha = (radius - np.hypot(x - width / 2, y - height / 2) + 0.5).clip(0, 1)
        image = np.zeros((height, width, 4), np.uint8)
        image[..., :3] = rng.integers(0, 256, 3)
        image[..., 3] = np.rint(alpha * 255)
        sprites[f"sprite-{number}.png"] = image
    return sprites


def cut_out(sheet: Bytes, about: dict[str, Any]) -> Bytes:
    """What a game engine shows for a frame, on the whole picture's canvas."""
    frame, inside, source = about["frame"], about["spriteSourceSize"], about["sourceSize"]
    whole = np.zeros((source["h"], source["w"], 4), np.uint8)
    part = sheet[frame["y"] : frame["y"] + frame["h"], frame["x"] : frame["x"] + frame["w"]]
    whole[inside["y"] : inside["y"] + inside["h"], inside["x"] : inside["x"] + inside["w"]] = part
    return whole


def list_boxes(sheet: Sheet) -> list[tuple[int, int, int, int]]:
    return [(*f.place, f.place[0] + f.image.shape[1], f.place[1] + f.image.shape[0]) for f in sheet.frames]


@unhurried
@given(
    st.integers(1, 30),
    st.integers(0, 99),
    st.builds(
        AtlasOptions,
        trim=st.booleans(),
        common_canvas=st.booleans(),
        padding=st.integers(0, 5),
        extrude=st.integers(0, 3),
        power_of_two=st.booleans(),
        max_side=st.sampled_from([128, 200, 1024]),
    ),
)
def test_every_picture_lies_once_and_whole_on_a_sheet(count: int, seed: int, options: AtlasOptions) -> None:
    pictures = draw_sprites(count, seed)

    sheets = make_sheets(pictures, options)

    assert sorted(frame.name for sheet in sheets for frame in sheet.frames) == sorted(pictures)
    apart = options.padding + 2 * options.extrude
    for sheet in sheets:
        height, width = sheet.image.shape[:2]
        assert max(height, width) <= options.max_side
        if options.power_of_two:
            assert height & (height - 1) == width & (width - 1) == 0
        for left, top, right, bottom in list_boxes(sheet):
            assert min(left, top) >= options.padding + options.extrude
            assert max(right - width, bottom - height) <= -options.padding - options.extrude
        for a, b in itertools.combinations(list_boxes(sheet), 2):
            assert max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) >= apart


@pytest.mark.parametrize("form", ["hash", "array"])
@pytest.mark.parametrize("trim", [True, False])
def test_pictures_are_cut_out_again_by_the_json(form: Any, trim: bool, tmp_path: Path) -> None:
    pictures = draw_sprites(25)

    (sheet,) = write(pictures, tmp_path / "all", AtlasOptions(trim=trim, form=form))

    image = read_image(tmp_path / "all.png")
    about = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert about["meta"]["image"] == "all.png"
    assert about["meta"]["size"] == {"w": image.shape[1], "h": image.shape[0]}
    frames = about["frames"] if form == "hash" else {each.pop("filename"): each for each in about["frames"]}
    assert frames.keys() == pictures.keys()
    for name, picture in pictures.items():
        assert frames[name]["trimmed"] == (trim and picture[..., 3].min() == 0)
        made = cut_out(image, frames[name])
        visible = picture[..., 3] > 0
        assert (made[..., 3] == picture[..., 3]).all()
        assert (made[visible] == picture[visible]).all()
    assert 0.5 < sheet.occupancy <= 1


@pytest.mark.parametrize("factor", [0.5, 2])
def test_no_neighbour_bleeds_in_when_the_sheet_is_scaled(factor: float) -> None:
    """Bilinear filtering of straight alpha, as graphics cards do it, against the picture scaled by itself."""
    pictures = draw_sprites(40)

    (sheet,) = make_sheets(pictures, AtlasOptions(padding=4))

    scaled = cv2.resize(sheet.image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    for frame in sheet.frames:
        x, y = (int(np.ceil(side * factor)) for side in frame.place)
        height, width = (int(side * factor) - 1 for side in frame.image.shape[:2])
        seen = scaled[y : y + height, x : x + width]
        shown = seen[..., 3] > 0
        (colour,) = np.unique(pictures[frame.name].reshape(-1, 4)[:, :3], axis=0)
        assert np.abs(seen[shown][:, :3].astype(int) - colour).max(initial=0) <= 2


@pytest.mark.parametrize("padding", [2, 3, 4])
def test_half_a_sheet_has_own_colours_up_to_the_borders_of_its_frames(padding: int) -> None:
    """Every pixel of the smaller sheet that a frame takes part in is the mean of four, as of a mipmap."""
    rng = np.random.default_rng(1)
    shapes = rng.integers(5, 30, (40, 2))
    tiles = {f"{n}": np.full((*shape, 4), (*rng.integers(0, 256, 3), 255), np.uint8) for n, shape in enumerate(shapes)}

    (sheet,) = make_sheets(tiles, AtlasOptions(padding=padding))

    height, width = (side // 2 * 2 for side in sheet.image.shape[:2])
    half = cv2.resize(sheet.image[:height, :width], (width // 2, height // 2), interpolation=cv2.INTER_LINEAR)
    for frame, (left, top, right, bottom) in zip(sheet.frames, list_boxes(sheet), strict=True):
        seen = half[top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2, :3]
        assert (seen == frame.image[0, 0, :3]).all()


@pytest.mark.parametrize("padding", [1, 2, 3])
def test_all_of_a_sheet_has_the_colour_of_the_nearest_frame(padding: int) -> None:
    tiles = {f"{number}": np.full((8, 8, 4), (60 * number + 20, 200, 99, 255), np.uint8) for number in range(4)}

    (sheet,) = make_sheets(tiles, AtlasOptions(padding=padding))

    y, x = np.mgrid[: sheet.image.shape[0], : sheet.image.shape[1]]
    boxes = zip(sheet.frames, list_boxes(sheet), strict=True)
    apart = {
        frame.name: np.hypot(
            np.maximum(0, np.maximum(left - x, x - right + 1)), np.maximum(0, np.maximum(top - y, y - bottom + 1))
        )
        for frame, (left, top, right, bottom) in boxes
    }
    nearest = np.min(list(apart.values()), axis=0)
    allowed = [
        (distance == nearest) & (sheet.image[..., 0] == tiles[name][0, 0, 0]) for name, distance in apart.items()
    ]
    assert np.any(allowed, axis=0).all()
    assert ((sheet.image[..., 3] > 0) == (nearest == 0)).all()


@pytest.mark.parametrize("form", ["hash", "array"])
def test_the_pivot_is_told_in_both_words_that_engines_read(form: Any) -> None:
    options = AtlasOptions(pivot=(0.25, 1), form=form)

    (sheet,) = make_sheets(draw_sprites(2), options)

    frames = describe(sheet, "x.png", options)["frames"]
    for frame in frames if form == "array" else frames.values():
        assert frame["pivot"] == frame["anchor"] == {"x": 0.25, "y": 1}


def test_extruded_tiles_have_no_seam() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (16, 16, 4)).astype(np.uint8)
    tile[..., 3] = 255

    (sheet,) = make_sheets({"tile": tile}, AtlasOptions(extrude=2, padding=1))

    x, y = sheet.frames[0].place
    assert (sheet.image[y - 2, x : x + 16] == tile[0]).all()
    assert (sheet.image[y : y + 16, x + 17] == tile[:, -1]).all()


def test_common_canvas_puts_every_picture_in_the_middle_of_one_size() -> None:
    pictures = {"wide": np.full((4, 10, 4), 255, np.uint8), "high": np.full((8, 2, 4), 255, np.uint8)}

    (sheet,) = make_sheets(pictures, AtlasOptions(common_canvas=True))

    frames = describe(sheet, "x.png")["frames"]
    assert frames["wide"]["sourceSize"] == frames["high"]["sourceSize"] == {"w": 10, "h": 8}
    assert frames["wide"]["spriteSourceSize"] == {"x": 0, "y": 2, "w": 10, "h": 4}
    assert frames["high"]["spriteSourceSize"] == {"x": 4, "y": 0, "w": 2, "h": 8}


def test_an_empty_picture_keeps_one_pixel() -> None:
    (sheet,) = make_sheets({"nothing": np.zeros((9, 9, 4), np.uint8)})

    assert describe(sheet, "x.png")["frames"]["nothing"]["frame"]["w"] == 1


def test_what_one_sheet_does_not_hold_goes_to_further_ones(tmp_path: Path) -> None:
    sheets = write(draw_sprites(60), tmp_path / "many", AtlasOptions(max_side=128))

    assert len(sheets) > 1
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"many-{number}.{kind}" for number in range(len(sheets)) for kind in ("png", "json")}


def test_sheets_name_each_other(tmp_path: Path) -> None:
    write(draw_sprites(60), tmp_path / "many", AtlasOptions(max_side=128))

    names = {path.name for path in tmp_path.glob("*.json")}
    for name in names:
        meta = json.loads((tmp_path / name).read_text("utf-8"))["meta"]
        assert set(meta["related_multi_packs"]) == names - {name}


@pytest.mark.parametrize(("before", "after"), [(60, 30), (60, 3), (3, 60)])
def test_sheets_that_are_no_longer_needed_are_removed(before: int, after: int, tmp_path: Path) -> None:
    options = AtlasOptions(max_side=128)
    write(draw_sprites(3), tmp_path / "many-77", options)  # another atlas, called like a numbered sheet
    png.write(np.zeros((3, 3, 4), np.uint8), tmp_path / "many-78.png")
    (tmp_path / "many-78.json").write_text('{"meta": {"image": "many-78.png"}}')
    others = {path.name for path in tmp_path.iterdir()}
    first = write(draw_sprites(before), tmp_path / "many", options)

    sheets = write(draw_sprites(after), tmp_path / "many", options)

    assert len(sheets) != len(first)
    left = {path.name for path in tmp_path.iterdir()} - others
    assert left == {
        f"{base.name}.{kind}" for base in name_sheets(tmp_path / "many", len(sheets)) for kind in ("png", "json")
    }
    assert others <= {path.name for path in tmp_path.iterdir()}


def test_mixing_filters_see_no_dark_fringe() -> None:
    white = np.zeros((12, 12, 4), np.uint8)
    white[3:9, 3:9] = 255

    (sheet,) = make_sheets({"white": white}, AtlasOptions(padding=4))

    x, y = sheet.frames[0].place
    around = sheet.image[y - 2 : y + 8, x - 2 : x + 8]
    assert (around[..., :3] >= 254).all()
    assert premultiply(sheet.image).sum() == pytest.approx(36 * 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: make_sheets({}), "There is no picture for an atlas"),
        (lambda: make_sheets({"a": np.zeros((3, 3, 3), np.uint8)}), "The picture 'a' has to be uint8"),
        (lambda: make_sheets({"big": np.full((90, 9, 4), 255, np.uint8)}, AtlasOptions(max_side=90)), "doesn't fit on"),
        (
            lambda: make_sheets(
                {"big": np.full((300, 300, 4), 255, np.uint8)}, AtlasOptions(power_of_two=True, max_side=301)
            ),
            "'big' needs 302x302 pixels .* a sheet of 256x256, the largest power of two up to 301: allow a larger one",
        ),
        (lambda: AtlasOptions(pivot=(0.5, 2)), "pivot must be two numbers from 0 to 1"),
        (lambda: AtlasOptions(padding=-1), "padding must be a whole number from 0 to 64, not -1"),
        (lambda: AtlasOptions(form="xml"), "There is no form 'xml' of an atlas"),  # type: ignore[arg-type]
    ],
)
def test_what_can_not_be_packed_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        make()


class TestCommandLine:
    def test_folder_becomes_a_sheet(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "in").mkdir()
        pictures = draw_sprites(6)
        for name, picture in pictures.items():
            png.write(picture, tmp_path / "in" / name)

        words = ["atlas", str(tmp_path / "in"), "--power-of-two", "--pivot", "0.5", "1", "--form", "array"]
        assert main([*words, "--name", "My sheet", "--out", str(tmp_path)]) == 0

        assert capsys.readouterr().out.split() == [str(tmp_path / f"my-sheet.{kind}") for kind in ("png", "json")]
        about = json.loads((tmp_path / "my-sheet.json").read_text("utf-8"))
        assert [each["filename"] for each in about["frames"]] == sorted(pictures)
        assert about["frames"][0]["pivot"] == {"x": 0.5, "y": 1}

    @pytest.mark.parametrize("named", [False, True])
    def test_again_in_its_own_folder_it_makes_the_same(self, named: bool, tmp_path: Path, caplog: Any) -> None:
        pictures = draw_sprites(60)
        for name, picture in pictures.items():
            png.write(picture, tmp_path / name)
        options = ["--out", str(tmp_path), "--name", "fruit", "--max-side", "128"]
        assert main(["atlas", str(tmp_path), *options]) == 0
        made = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert tmp_path / "fruit-1.png" in made

        images = map(str, tmp_path.glob("*.png")) if named else [str(tmp_path)]
        caplog.set_level("INFO")
        assert main(["atlas", *sorted(images), *options]) == 0

        frames: list[str] = []
        for path in tmp_path.glob("fruit-*.json"):
            frames += json.loads(path.read_text("utf-8"))["frames"]
        assert sorted(frames) == sorted(pictures)
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in made}
        assert "Left out, since an earlier run of this command wrote it: " in caplog.text

    def test_an_image_is_not_replaced_by_its_sheet(self, tmp_path: Path, capsys: Any) -> None:
        png.write(draw_sprites(1)["sprite-0.png"], tmp_path / "fruit.png")
        before = (tmp_path / "fruit.png").read_bytes()

        assert main(["atlas", str(tmp_path), "--out", str(tmp_path), "--name", "fruit"]) == 2

        assert "The sheet would replace the image" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["fruit.png"]
        assert (tmp_path / "fruit.png").read_bytes() == before

    def test_only_sheets_are_refused(self, tmp_path: Path, capsys: Any) -> None:
        write(draw_sprites(3), tmp_path / "fruit")

        assert main(["atlas", str(tmp_path), "--out", str(tmp_path / "out")]) == 2

        assert "There is nothing but what an earlier run of this command wrote" in capsys.readouterr().err

    def test_two_images_of_one_name_are_refused(self, tmp_path: Path, capsys: Any) -> None:
        paths = [tmp_path / folder / "a.png" for folder in ("one", "two")]
        for path in paths:
            path.parent.mkdir()
            png.write(draw_sprites(1)["sprite-0.png"], path)

        assert main(["atlas", *map(str, paths), "--out", str(tmp_path / "out")]) == 2

        assert "Two images are called a.png" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_empty_folder_is_refused(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["atlas", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert "There are no images in the folder" in capsys.readouterr().err


class TestLibGDX:
    options = AtlasOptions(form="libgdx", padding=2)

    def test_the_text_is_what_its_packer_writes(self, tmp_path: Path) -> None:
        picture = np.zeros((20, 10, 4), np.uint8)
        picture[3:8, 2:6] = 255  # 4 x 5, with 12 invisible rows below

        write({"a b.png": picture}, tmp_path / "fruit", self.options)

        assert sorted(path.name for path in tmp_path.iterdir()) == ["fruit.atlas", "fruit.png"]
        assert (tmp_path / "fruit.atlas").read_text("utf-8") == (
            "fruit.png\nsize: 8,9\nformat: RGBA8888\nfilter: Linear,Linear\nrepeat: none\n"
            "a b\n  rotate: false\n  xy: 2, 2\n  size: 4, 5\n  orig: 10, 20\n  offset: 2, 12\n  index: -1\n"
        )

    def test_one_text_has_all_sheets(self, tmp_path: Path) -> None:
        sheets = write(draw_sprites(60), tmp_path / "fruit", AtlasOptions(form="libgdx", max_side=128))

        assert len(sheets) > 1
        names = [f"fruit-{number}.png" for number in range(len(sheets))]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "fruit.atlas"])
        pages = (tmp_path / "fruit.atlas").read_text("utf-8").split("\n\n")
        assert [page.partition("\n")[0] for page in pages] == names

    @pytest.mark.parametrize(("first", "then"), itertools.permutations(["hash", "libgdx"], 2))
    def test_what_another_form_left_under_the_name_is_removed(self, first: Any, then: Any, tmp_path: Path) -> None:
        other = draw_sprites(2)
        write(other, tmp_path / "fruit-77", AtlasOptions(form=first))
        kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
        (tmp_path / "fruit-1.txt").write_text("mine")
        png.write(other["sprite-0.png"], tmp_path / "fruit-99.png")  # no sheet
        write(draw_sprites(60), tmp_path / "fruit", AtlasOptions(form=first, max_side=128))

        write(draw_sprites(3), tmp_path / "fruit", AtlasOptions(form=then))

        ending = {"hash": "json", "libgdx": "atlas"}[then]
        own = {"fruit.png", f"fruit.{ending}", "fruit-1.txt", "fruit-99.png"}
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in kept} | own
        assert {path: path.read_bytes() for path in kept} == kept

    def test_the_command_tells_its_files_and_takes_no_sheet(self, tmp_path: Path, capsys: Any) -> None:
        for name, picture in draw_sprites(3).items():
            png.write(picture, tmp_path / name)
        words = ["atlas", str(tmp_path), "--form", "libgdx", "--name", "fruit", "--out", str(tmp_path)]
        for _ in range(2):
            assert main(words) == 0
            assert capsys.readouterr().out.split() == [str(tmp_path / "fruit.png"), str(tmp_path / "fruit.atlas")]
            assert "fruit\n" not in (tmp_path / "fruit.atlas").read_text("utf-8")

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            (["a:b.png"], "can't have the name 'a:b'"),
            (["a\nb.png"], "can't have the name"),
            ([" a.png"], "can't have the name ' a'"),
            (["a.png", "a.webp"], "Two pictures are called 'a'"),
        ],
    )
    def test_names_that_its_readers_misread_are_refused(self, names: list[str], sentence: str, tmp_path: Path) -> None:
        (picture,) = draw_sprites(1).values()
        with pytest.raises(Refusal, match=sentence):
            write(dict.fromkeys(names, picture), tmp_path / "fruit", self.options)
        assert not list(tmp_path.iterdir())

    def test_a_pivot_is_refused(self) -> None:
        with pytest.raises(Refusal, match="libGDX's form has no pivot"):
            AtlasOptions(form="libgdx", pivot=(0, 1))
