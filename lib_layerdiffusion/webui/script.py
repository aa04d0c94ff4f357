"""The script that the WebUI sees: each hook is one line into the Generation on `p`."""

from __future__ import annotations

from typing import Any

from modules import scripts

from . import page_images, panel
from .extension import Extension
from .generation import Generation, current, note_request

API_NAME = "LayerDiffuse"  # the script's title, by which API clients name it, as the reference extension's do


def make_script(extension: Extension) -> type[scripts.Script]:
    """The Script class for the WebUI to find, bound to the extension."""

    class Script(scripts.Script):
        sorting_priority = 100.0  # after other extensions, whose pictures the transparent image is to follow

        def title(self) -> str:
            return API_NAME

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            made = panel.build(is_img2img, self.elem_id, extension)
            self.infotext_fields = made.infotext_fields
            self.paste_field_names = made.paste_field_names
            return made.controls

        def after_component(self, component: Any, **_kwargs: Any) -> None:
            page_images.watch(component)

        def setup(self, p: Any, *args: Any) -> None:
            note_request(p)

        def before_process(self, p: Any, *args: Any) -> None:
            Generation.begin(extension, p, args)

        def process(self, p: Any, *args: Any) -> None:
            current(p).prepare()

        def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            current(p).set_frame_prompts()

        def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
            current(p).wrap_sampler(kwargs["x"])

        def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
            current(p).take_samples(ps.samples)

        def postprocess_batch_list(self, p: Any, pp: Any, *args: Any, **kwargs: Any) -> None:
            current(p).decode(pp)

        def postprocess_maskoverlay(self, p: Any, ppmo: Any, *args: Any) -> None:
            current(p).take_mask(ppmo)

        def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
            current(p).finish_image(pp)

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            current(p).finish(processed)

    return Script
