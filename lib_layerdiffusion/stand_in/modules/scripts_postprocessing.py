"""What scripts of the Extras tab are made of, and running them one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image


class PostprocessedImage:
    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.info: dict[str, Any] = {}
        self.extra_images: list[PostprocessedImage] = []


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
    """Let every script see a picture, then let each work on it in the scripts' order."""
    pp = PostprocessedImage(image)
    chosen = sorted(scripts, key=lambda script: script.order)
    for script in chosen:
        script.process_firstpass(pp)
    for script in chosen:
        script.process(pp)
    return pp
