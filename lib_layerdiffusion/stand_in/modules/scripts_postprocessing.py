"""What scripts of the Extras tab are made of, and running them one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass
class PostprocessedImageSharedInfo:
    target_width: int | None = None
    target_height: int | None = None


class PostprocessedImage:
    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.info: dict[str, Any] = {}
        self.shared = PostprocessedImageSharedInfo()
        self.extra_images: list[PostprocessedImage | Image.Image] = []
        self.nametags: list[str] = []
        self.disable_processing = False
        self.caption: str | None = None

    def create_copy(
        self, new_image: Image.Image, *, nametags: Sequence[str] | None = None, disable_processing: bool = False
    ) -> PostprocessedImage:
        pp = PostprocessedImage(new_image)
        pp.shared = self.shared
        pp.nametags = [*self.nametags, *(nametags or ())]
        pp.info = self.info.copy()
        pp.disable_processing = disable_processing
        return pp


class ScriptPostprocessing:
    order = 1000
    name = ""

    def ui(self) -> dict[str, Any]:
        return {}

    def process(self, pp: PostprocessedImage, **args: Any) -> None:
        pass

    def process_firstpass(self, pp: PostprocessedImage, **args: Any) -> None:
        pass


def run(image: Image.Image, scripts: Sequence[ScriptPostprocessing]) -> PostprocessedImage:
    """Let every script see a picture, then let each work on it in the scripts' order, and on the copies made so far."""
    pp = PostprocessedImage(image)
    chosen = sorted(scripts, key=lambda script: script.order)
    for script in chosen:
        script.process_firstpass(pp)
    pictures = [pp]
    for script in chosen:
        for each in pictures.copy():
            if not each.disable_processing:
                script.process(each)
            pictures += [
                extra if isinstance(extra, PostprocessedImage) else each.create_copy(extra)
                for extra in each.extra_images
            ]
            each.extra_images.clear()
    pp.extra_images = [*pictures[1:]]
    return pp
