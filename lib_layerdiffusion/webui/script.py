"""The script that the WebUI sees: each hook is one line into the Generation on `p`."""

from __future__ import annotations

from typing import Any

from modules import scripts

from . import panel
from .arguments import TITLE
from .extension import Extension
from .generation import Generation, present


def make_script(extension: Extension) -> type[scripts.Script]:
    """The Script class for the WebUI to find, bound to the extension."""

    class Script(scripts.Script):
        sorting_priority = 100.0  # after other extensions, whose pictures the transparent image is to follow

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            made = panel.build(is_img2img, self.elem_id, extension)
            self.infotext_fields = made.infotext_fields
            self.paste_field_names = made.paste_field_names
            return made.controls

        def before_process(self, p: Any, *args: Any) -> None:
            Generation.begin(extension, p, args)

        def process(self, p: Any, *args: Any) -> None:
            present(p).prepare()

        def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            present(p).say_prompts()

        def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
            present(p).wrap_sampler(kwargs["x"])

        def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
            present(p).take_samples(ps.samples)

        def postprocess_batch_list(self, p: Any, pp: Any, *args: Any, **kwargs: Any) -> None:
            present(p).decode(pp)

        def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
            present(p).finish_image(pp)

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            present(p).finish(processed)

    return Script
