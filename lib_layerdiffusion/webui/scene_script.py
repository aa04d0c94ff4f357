"""The script "LayerDiffusion scene" in the WebUI's list of scripts: its controls, and what API clients send instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modules import scripts

from ..refusal import Refusal
from ..scene import SCENE_FIELDS, TITLE, Scene
from . import scene_panel
from .extension import Extension
from .generation import Refused

CURE = 'send one object, such as {"background": "a table", "foregrounds": ["a red apple", "a glass"]}'


def make_scene_script(extension: Extension) -> type[scripts.Script]:
    """The Script class for the WebUI to find, bound to the extension."""

    class SceneScript(scripts.Script):
        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> bool:
            return not is_img2img

        def ui(self, is_img2img: bool) -> list[Any]:
            made = scene_panel.build(self.elem_id, extension)
            self.infotext_fields = [(control, scene_panel.paste(name)) for name, control in made.items()]
            return [*made.values()]

        def run(self, p: Any, *args: Any) -> Any:
            from . import scene_job  # here, for a WebUI that is refused may lack what it imports

            try:
                scene = read_scene(args)
            except Refusal as refusal:
                raise Refused(refusal) from None
            return scene_job.run(extension, p, scene)

    return SceneScript


def read_scene(args: Sequence[Any]) -> Scene:
    """A scene from the page's values in their order, or from the one object that an API client sent."""
    if args and isinstance(args[0], Mapping):
        return Scene.from_dict(args[0])
    shown = zip(SCENE_FIELDS, args, strict=False)
    return Scene.from_dict({name: scene_panel.understand(name, value) for name, value in shown})


def complete_arguments(sent: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """What an API client sent as `script_args`, as long as the page's `values`, which hold where it is silent.

    WebUIs put a short list into the place of the whole one, and then the next script's values follow it.
    """
    if len(sent) > len(values):
        raise Refusal(f"script_args has {len(sent)} entries, and {len(values)} are read: {CURE}.")
    if any(isinstance(each, Mapping) for each in sent[:1]) and len(sent) > 1:
        raise Refusal(f"script_args has an object and other entries, and one object is read: {CURE}.")
    return [*sent, *values[len(sent) :]]
