"""What is made of all transparent pictures of a job together: a sheet with its JSON, and an animation."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..layers import Bytes
from ..modes import Mode
from ..options import LayerOptions
from ..refusal import Refusal
from . import animation, atlas
from .output_folder import OutputFolder

logger = logging.getLogger(__name__)

Kind = Literal["atlas", "animation"]
ADDED = {"atlas": "-sheet", "animation": "-animation"}  # to the name of the job's first picture


@dataclass(frozen=True, eq=False)
class Made:
    """A sheet, or an animation by its first frame: straight RGBA [H, W, 4] uint8."""

    kind: Kind
    image: Bytes
    files: tuple[Path, ...] = ()  # that were written, the image first
    about: dict[str, Any] | None = None  # the sheet's JSON
    content: bytes = b""  # of the animation's file


def list_wanted(options: LayerOptions) -> list[str]:
    """What is wanted of all pictures, as sentences name it."""
    wanted = {"sheet": options.atlas, "animation": options.animation}
    return [name for name, is_wanted in wanted.items() if is_wanted]


def why_not(options: LayerOptions, mode: Mode) -> str | None:
    """A sentence when a mode makes nothing that could be put on what is wanted."""
    wanted = list_wanted(options)
    if not wanted or mode.transparent_frame is not None:
        return None
    return (
        f"Layer mode {mode.name!r} makes no transparent picture, so there is no {' and no '.join(wanted)}: switch that "
        "off, or choose a mode with a transparent foreground."
    )


def check_packages(options: LayerOptions) -> None:
    """Refusal when a package that is needed for what is wanted isn't installed."""
    if options.atlas and importlib.util.find_spec("rectpack") is None:
        raise Refusal(
            "A sheet needs the Python package rectpack, which isn't installed: install it with `pip install rectpack` "
            "(in a WebUI's own Python environment), or switch the sheet off."
        )


class WholeJob:
    """The transparent pictures of a job, by their files' names and in their order."""

    def __init__(self) -> None:
        self.pictures: dict[str, Bytes] = {}
        self.first: Path | None = None  # file of the first picture, beside which all is written
        self._earlier: dict[Kind, Path] = {}  # what `make` wrote before and then replaces; a sheet's has no ending

    def add(self, picture: Bytes, path: Path | None) -> None:
        """Add a straight RGBA picture [H, W, 4] uint8; path: its file, None when it has none."""
        self.first = self.first or path
        first = path or Path(f"picture-{len(self.pictures) + 1}.png")
        name, number = first.name, 2
        while name in self.pictures:  # of another folder
            name, number = f"{first.stem}-{number}{first.suffix}", number + 1
        self.pictures[name] = picture

    def make(self, options: LayerOptions, infotext: str | None = None) -> tuple[list[Made], list[str]]:
        """Make what the options ask for; also a sentence for each that failed.

        It is written beside the first picture's file, if there is one, under names that no other file has.
        infotext: what the sheet's PNG says of its making.
        """
        made: list[Made] = []
        failed: list[str] = []
        makers: dict[Kind, Callable[[], list[Made]]] = {
            "atlas": partial(self._make_sheets, options, infotext),
            "animation": partial(self._make_animation, options.animation_format, options.animation_fps),
        }
        for kind, make in makers.items():
            if not getattr(options, kind):
                continue
            try:
                made += make()
            except Refusal as refusal:
                failed.append(str(refusal))
            except Exception as error:  # whatever it is, it costs none of the pictures, which are made
                logger.exception("The %s can't be made", kind)
                text = " ".join(str(error).split())[:200]
                failed.append(f"The {kind} can't be made ({type(error).__name__}: {text}): please report it.")
        return made, failed

    def _make_sheets(self, options: LayerOptions, infotext: str | None) -> list[Made]:
        how = atlas.AtlasOptions.of(options)
        if self.first is None:
            sheets, path = atlas.make_sheets(self.pictures, how), Path("sheet")
        else:
            path = self._earlier.get("atlas") or atlas.name_new_sheets(_name(self.first, "atlas"))
            sheets = atlas.write(self.pictures, path, how, infotext=infotext)
            self._earlier["atlas"] = path
        made: list[Made] = []
        paths = [(Path(f"{each}.png"), Path(f"{each}.json")) for each in atlas.name_sheets(path, len(sheets))]
        for sheet, files in zip(sheets, paths, strict=True):
            others = [about.name for _, about in paths if about != files[1]]
            about = atlas.describe(sheet, files[0].name, how, others)
            made.append(Made("atlas", sheet.image, files if self.first else (), about))
        return made

    def _make_animation(self, format: str, fps: float) -> list[Made]:
        frames = [*self.pictures.values()]
        if self.first is None:
            return [Made("animation", frames[0], content=animation.encode(frames, format, fps))]
        write = partial(animation.write, frames, fps=fps)
        if path := self._earlier.get("animation"):
            write(path)
        else:
            name = _name(self.first, "animation")
            path = OutputFolder(name.parent).write(name.name, f".{format}", write)
            self._earlier["animation"] = path
        return [Made("animation", frames[0], (path,), content=path.read_bytes())]


def _name(first: Path, kind: Kind) -> Path:
    """What is made of all pictures is called by the first one's file; without an ending."""
    return first.with_name(f"{first.stem}{ADDED[kind]}")
