"""Whole scenes with a diffusers pipeline: `layer_scene` runs the passes of a plan, each as a generation of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_layerdiffusion.hosts.diffusers import (
    DiffusersHost,
    check_request,
    describe_sampling,
    layer_diffusion,
    open_store,
)
from lib_layerdiffusion.hosts.pipelines import GUIDANCE
from lib_layerdiffusion.image_file import read_image
from lib_layerdiffusion.infotext import compose
from lib_layerdiffusion.layers import Bytes, fit
from lib_layerdiffusion.modes import Role, find_mode
from lib_layerdiffusion.planning import STEPS
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.scene import Pass, Scene, describe, plan_scene
from lib_layerdiffusion.scene_run import MadeScene, make_scene
from lib_layerdiffusion.session import Progress
from lib_layerdiffusion.weights import WeightStore

PARTS = 1000  # of a pass, in reports of progress


def layer_scene(
    pipe: Any,
    prompt: str = "",
    *,
    seed: int = 0,
    negative_prompt: str = "",
    weights: WeightStore | Path | str | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int = STEPS,
    cfg: float = GUIDANCE,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | Callable[[Pass], Mapping[str, Any]] | None = None,
    **options: Any,
) -> MadeScene:
    """Make a scene: `layer_scene(pipe, background="a table", foregrounds=["a red apple", "a glass"], seed=1)`.

    pipe, weights: as for `layer_diffusion`. prompt: put after each layer's own. options: fields of `Scene`.
    width, height: pixels, the checkpoint's own size by default; given images are fitted to it.
    progress(done, total): called over the whole scene; when it returns False, and on Ctrl-C, the scene ends with the
    layers that are complete. So does one whose pass fails; what there is to say about that is in `notes`.
    settings: further arguments of the pipeline, or a function that gives them for a pass, as a ControlNet's image.
    Refusal when a request can't be served, before any pass if it can be known then; the first pass's errors are raised.
    """
    host = DiffusersHost(pipe)
    check_request([prompt], [seed], negative_prompt, cfg)
    scene = Scene.from_dict(options)
    if scene.controlnet_units:
        raise Refusal(
            "controlnet_units is for a WebUI's own ControlNet: give the pipeline's image and scale for each pass by "
            "settings."
        )
    plan = plan_scene(scene, host.family, prompt, seed)
    size = (host.native_size if width is None else width, host.native_size if height is None else height)
    given: dict[Role, Bytes] = {
        role: fit(read_image(getattr(scene, f"{role}_image")), size, scene.resize_mode) for role in plan.given
    }
    store = open_store(pipe, weights)
    for mode in (find_mode(name, host.family) for name in plan.modes):
        for file in filter(None, (mode.file, mode.decoder)):
            store.fetch(file)

    def run(each: Pass, inputs: Mapping[Role, Bytes]) -> Mapping[Role, Bytes]:
        report = _report_part(progress, plan.passes.index(each), len(plan.passes))
        more = (settings(each) if callable(settings) else settings) or {}
        called: dict[str, Any] = {**more, "negative_prompt": negative_prompt, "steps": steps, "cfg": cfg}
        with layer_diffusion(pipe, weights=store, **(each.options(scene, inputs) if each.mode else {})) as ld:
            ld.check_settings(more, steps)
            called |= {"seed": each.seed, "progress": report, "width": size[0], "height": size[1]}
            if not each.mode:
                return dict.fromkeys(each.makes, ld.plain(each.prompt, **called))
            stack = ld(each.prompt, **called)
        return {layer.role: layer.image for layer in stack.layers}

    written = describe_sampling(pipe, steps, cfg, seed, size) | describe(scene)
    return make_scene(plan, run, given, size, scene.match_blend, compose(prompt, negative_prompt, written))


def _report_part(progress: Progress | None, index: int, count: int) -> Progress | None:
    """Report one of `count` passes as a part of all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(index * PARTS + done * PARTS // total, count * PARTS)
