"""The demonstration: what the embedded model makes of its words, in every layer mode of its family, and as a scene."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib_layerdiffusion.cli.progress import progress_bar
from lib_layerdiffusion.embedded import EMBEDDED, EMBEDDED_FOLDER, GIVEN_GUIDANCE, GUIDANCE, model_path
from lib_layerdiffusion.embedded.gallery import contact_sheet, draw_lights, read_captions
from lib_layerdiffusion.export import png
from lib_layerdiffusion.export.names import slug
from lib_layerdiffusion.export.output_folder import OutputFolder
from lib_layerdiffusion.hosts.diffusers import layer_diffusion
from lib_layerdiffusion.hosts.diffusers_scene import layer_scene
from lib_layerdiffusion.hosts.pipelines import load_pipeline
from lib_layerdiffusion.infotext import mark_layer
from lib_layerdiffusion.layers import Layer, LayerStack, composite
from lib_layerdiffusion.modes import Mode, Role, find_mode
from lib_layerdiffusion.outputs import WRITERS, arrange, list_files

Pixels = NDArray[np.uint8]  # [H, W, 3 or 4]

BATCH = 8  # pictures sampled together: few enough for small machines, many enough to keep the cores busy
SOFT = ("wine glass", "soap bubble", "glow", "smoke", "fire", "jellyfish")  # glass, light, smoke and fine threads
SETS = {  # mode -> what foreground and background show
    "together": ("mushroom", "meadow"),
    "foreground_to_background": ("rocket", "starry night"),
    "background_to_foreground": ("penguin", "snow"),
}
SCENE: Mapping[str, Any] = {"background": "snow", "foregrounds": ("snowman", "penguin", "glow")}


def demo(arguments: argparse.Namespace) -> int:
    """Make a picture of each word, a set of layers of each mode and a scene, with sheets of them; renews earlier ones.

    With --count, only that many words and their sheet.
    """
    began = time.monotonic()
    with OutputFolder(arguments.out) as out:
        show = _Demonstration.of(arguments, out.path)
        captions = read_captions(EMBEDDED_FOLDER)
        pictures = show.make_words(captions[: arguments.count])
        if arguments.count is None:
            show.put_over_backgrounds(pictures)
            show.make_sets(pictures)
            show.make_scene()
        sheets = ", ".join(show.sheets)
    seconds = time.monotonic() - began
    print(f"{len(pictures)} words in {seconds:.0f} s; look at {sheets} in {out.path}", file=sys.stderr)
    return 0


@dataclass
class _Demonstration:
    """The loaded model, the settings that all pictures share, and where they go."""

    pipe: Any
    seed: int
    sampling: Mapping[str, Any]
    given_guidance: float  # in the modes that are given an image
    views: int
    folder: Path
    sheets: list[str]

    @classmethod
    def of(cls, arguments: argparse.Namespace, folder: Path) -> _Demonstration:
        guidance, given = (usual if arguments.cfg is None else arguments.cfg for usual in (GUIDANCE, GIVEN_GUIDANCE))
        seed = 1 if arguments.seed is None else arguments.seed
        pipe = load_pipeline(model_path(EMBEDDED), offline=True)
        return cls(pipe, seed, {"steps": arguments.steps, "cfg": guidance}, given, arguments.views, folder, [])

    def open(self, **options: Any) -> Any:
        return layer_diffusion(self.pipe, weights=EMBEDDED_FOLDER / "layer_model", views=self.views, **options)

    def make_words(self, captions: list[str]) -> dict[str, LayerStack]:
        """A transparent picture of each word."""
        made: dict[str, LayerStack] = {}
        with self.open() as ld:
            for first in range(0, len(captions), BATCH):
                prompts = captions[first : first + BATCH]
                with progress_bar(f"{first + 1} to {first + len(prompts)} of {len(captions)}") as progress:
                    stacks = ld.batch(prompts, [self.seed] * len(prompts), progress=progress, **self.sampling)
                for prompt, stack in zip(prompts, stacks, strict=True):
                    made[prompt] = stack
                    self._renew(f"{self.seed}-{slug(prompt)}", stack)
        self._show("contact-sheet", [(prompt, composite(stack, "checker")) for prompt, stack in made.items()], 6)
        return made

    def put_over_backgrounds(self, made: Mapping[str, LayerStack]) -> None:
        """The half-transparent words over lights out of focus, black and white."""
        soft = [made[word] for word in SOFT if word in made]
        side = soft[0].size[0]
        grounds: dict[str, Any] = {"lights": draw_lights(side), "black": "black", "white": "white"}
        cells = [(name, composite(stack, ground)) for name, ground in grounds.items() for stack in soft]
        self._show("backgrounds", cells, len(soft))

    def make_sets(self, words: Mapping[str, LayerStack]) -> None:
        """A set of layers of each mode: the given one first, then the layers that are made, then their recomposite."""
        for name, (front, behind) in SETS.items():
            mode = find_mode(name, "sd15")
            given: dict[Role, Pixels] = {}
            if "foreground" in mode.inputs:
                given["foreground"] = words[front].layers[0].image
            if "background" in mode.inputs:
                given["background"] = self._make_picture(behind)
                self._renew(f"{self.seed}-{slug(behind)}", given["background"][..., :3])
            cells = self._make_set(mode, front, behind, given)
            self._show(name, cells, len(cells))

    def _make_set(self, mode: Mode, front: str, behind: str, given: Mapping[Role, Pixels]) -> list[tuple[str, Pixels]]:
        said = {"foreground": front, "background": behind, "blend": f"{front}, {behind}"}
        prompts = {f"{role}_prompt": said[role] for role in mode.frames}
        images = {f"{role}_image": image for role, image in given.items()}
        sampling = {**self.sampling, "cfg": self.given_guidance} if given else self.sampling
        with self.open(mode=mode.name, **prompts, **images) as ld, progress_bar(mode.name) as progress:
            stack: LayerStack = ld("", seed=self.seed, progress=progress, **sampling)
        for addition, ending, write in list_files(stack, ("rgba", "background", "blend", "psd"), given):
            path = self.folder / f"{self.seed}-{mode.name}{addition}{ending}"
            write(path)
            print(path, flush=True)
        made: dict[Role, Pixels] = {layer.role: layer.image for layer in stack.layers}
        shown = [(f"given: {said[role]}", image) for role, image in given.items()]
        shown += [(said[layer.role] if layer.role != "blend" else "blend", layer.image) for layer in stack.layers]
        cells = [(caption, composite([Layer(caption, image, "foreground")], "checker")) for caption, image in shown]
        return [*cells, ("layers put together", composite(arrange(made, given, stack.size)))]

    def make_scene(self) -> None:
        """A scene of four layers: the recomposite, then the layers from bottom to top, also as PSD and ORA."""
        with progress_bar("scene") as progress:
            made = layer_scene(
                self.pipe,
                seed=self.seed,
                weights=EMBEDDED_FOLDER / "layer_model",
                progress=progress,
                views=self.views,
                **self.sampling,
                **SCENE,
            )
        if made.error is not None:
            raise made.error
        for name, write in WRITERS.items():
            path = self.folder / f"{self.seed}-scene.{name}"
            write(made.stack, path)
            print(path, flush=True)
        for layer in made.stack.layers:
            infotext = mark_layer(made.stack.infotext, layer.name)
            self._renew(f"{self.seed}-scene-{slug(layer.name)}", layer.image, infotext)
        cells = [("the scene", composite(made.stack))]
        cells += [(layer.name, composite([layer], "checker")) for layer in made.stack.layers]
        self._show("scene", cells, len(cells))

    def _make_picture(self, prompt: str) -> Pixels:
        """An opaque picture of the model itself."""
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        with self.open() as ld:
            return ld.plain(prompt, seed=self.seed, width=side, height=side, **self.sampling)

    def _show(self, name: str, cells: list[tuple[str, Pixels]], columns: int) -> None:
        self._renew(name, contact_sheet([(caption, picture[..., :3]) for caption, picture in cells], columns))
        self.sheets.append(f"{name}.png")

    def _renew(self, name: str, image: LayerStack | Pixels, infotext: str | None = None) -> None:
        """Write a PNG, over an earlier one of this name, and tell its path on stdout."""
        path = self.folder / f"{name}.png"
        png.write(image, path, infotext)
        print(path, flush=True)
