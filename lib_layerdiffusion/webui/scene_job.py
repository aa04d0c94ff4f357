"""A scene as a job of the WebUI: each pass is a generation of its own, on a copy of `p`; the answer has all layers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from modules import images as webui_images
from modules import processing, shared
from PIL import Image

from .. import infotext
from ..export.names import slug
from ..hosts import DetectedHost
from ..layers import Bytes, LayerStack, Size, fit
from ..modes import Role, find_mode
from ..options import check_text
from ..outputs import WRITERS, write_files
from ..planning import LARGEST_SEED
from ..refusal import Refusal
from ..scene import Pass, Scene, ScenePlan, describe, plan_scene
from ..scene_run import MadeScene, make_scene
from ..views import Cancelled
from . import controlnet, job_options, results
from .base64_images import read_input_image
from .extension import Extension
from .fetching import fetch
from .generation import ATTRIBUTE, Refused, wrap_error
from .script import API_NAME

logger = logging.getLogger(__name__)


def run(extension: Extension, p: Any, scene: Scene) -> Any:
    """Make as many scenes as the job has images, and answer as `process_images` does.

    An interrupt, or a pass that fails, ends the job with the layers that are complete; Refused when there is none.
    """
    job = SceneJob(extension, p, scene)
    try:
        return job.run()
    except Refused:
        raise
    except Refusal as refusal:
        logger.error("%s", refusal)
        raise Refused(refusal) from None
    except Exception as error:
        raise Refused(wrap_error(error), 500) from error


class SceneJob:
    """The passes of one job and what they have made so far."""

    def __init__(self, extension: Extension, p: Any, scene: Scene) -> None:
        self.extension = extension
        self.p = p
        self.scene = scene
        self.pictures: list[Image.Image] = []
        self.notes: list[str] = []
        self.last: Any = None  # the `p` of the last pass, which knows what infotexts need
        self.units: dict[str, Any] = {}  # what infotexts say of the ControlNet units that took part in passes

    def run(self) -> Any:
        p, scene = self.p, self.scene
        check_text("prompt", p.prompt)
        if getattr(p, "enable_hr", False):
            raise Refusal("A scene is made in one size: switch Hires. fix off and choose a larger width and height.")
        host = self._load_checkpoint()
        seed, count = int(processing.get_fixed_seed(p.seed)), p.batch_size * p.n_iter
        plan = plan_scene(scene, host.family, p.prompt, seed)
        if scene.controlnet_units:
            controlnet.check(p, frozenset().union(*(each.units or () for each in plan.passes)))
        size = (p.width, p.height)
        given = {role: self._read_given(role, size) for role in plan.given}
        self._check_files(host, plan)
        shared.state.job_count = count * len(plan.passes)
        for number in range(count):
            own = (seed + number * plan.images) % (LARGEST_SEED + 1)
            plan = plan_scene(scene, host.family, p.prompt, own)
            try:
                made = make_scene(plan, functools.partial(self._run_pass, plan), given, size, scene.match_blend)
            except Cancelled:
                self.notes.append("The scene was interrupted before its first layer was complete.")
                break
            except Exception as error:
                if not self.pictures:
                    raise
                self.notes.append(str(error))
                break
            self._deliver(made, own)
            if made.error is not None:
                break
        shared.state.textinfo = None
        return self._answer(seed)

    def _load_checkpoint(self) -> DetectedHost:
        """Let the WebUI load the checkpoint that the job asks for, and stop it before it makes anything."""
        self.last = probe = self._copy()
        probe.scripts = None
        probe.init = _stop
        try:
            processing.process_images(probe)
        except _LoadedError:
            del probe.init
        return self.extension.host_of(probe.sd_model)

    def _check_files(self, host: DetectedHost, plan: ScenePlan) -> None:
        """Refuse what can't be run, and fetch what is missing, before any pass."""
        store = self.extension.store(self.last.sd_model)
        for name in plan.modes:
            if reason := host.why_not(name, store):
                raise Refusal(reason)
        modes = [find_mode(name, host.family) for name in plan.modes]
        fetch(store, [file for mode in modes for file in (mode.file, mode.decoder) if file])

    def _read_given(self, role: Role, size: Size) -> Bytes:
        name = f"{role}_image"
        return fit(read_input_image(getattr(self.scene, name), name), size, self.scene.resize_mode)

    def _copy(self) -> Any:
        """A copy of `p` of which a pass may change what it likes."""
        p = copy(self.p)
        p.extra_generation_params = dict(p.extra_generation_params)
        p.override_settings = dict(p.override_settings)
        p.styles = list(p.styles or ())
        p.batch_size = p.n_iter = 1
        p.do_not_save_samples = p.do_not_save_grid = True  # complete layers are saved at the end, under their names
        return p

    def _run_pass(self, plan: ScenePlan, each: Pass, inputs: Mapping[Role, Bytes]) -> Mapping[Role, Bytes]:
        state = shared.state
        if state.interrupted or state.stopping_generation:
            raise Cancelled
        number = plan.passes.index(each) + 1
        state.textinfo = f"Scene, pass {number} of {len(plan.passes)}: {each.title}"
        p = self._copy()
        p.prompt, p.seed = each.prompt, each.seed
        p.script_args = self._write_arguments(each, each.options(self.scene, inputs) if each.mode else False)
        processed = processing.process_images(p)
        if state.interrupted or state.skipped:
            raise Cancelled
        self.last = p
        if each.units is not None:
            self.units |= controlnet.number_parameters(p.extra_generation_params, each.units)
        if not each.mode:
            picture = processed.images[processed.index_of_first_image]
            return dict.fromkeys(each.makes, np.asarray(picture.convert("RGBA")))
        generation = getattr(p, ATTRIBUTE, None)
        if generation is None:
            raise Refusal("The WebUI made this pass without layers: see its log, and report it.")
        self.notes += generation.notes
        if generation.failure is not None:  # and the setting "go on" is on
            raise generation.failure
        return {role: np.asarray(image.convert("RGBA")) for role, image in generation.sets[-1].images.items()}

    def _write_arguments(self, each: Pass, own: Any) -> Sequence[Any]:
        """The arguments of all scripts for a pass, with its own for the one that makes layers."""
        scripts = self.p.scripts.alwayson_scripts
        script = next(script for script in scripts if script.title() == API_NAME)
        args = list(self.p.script_args)
        args[script.args_from] = own
        if each.units is not None:
            controlnet.use(self.p, args, each.units)
        return tuple(args)

    def _deliver(self, made: MadeScene, seed: int) -> None:
        """Add a scene's pictures to the answer, each with its infotext, and save them."""
        written = {**self._params(), **describe(self.scene)}
        base: Path | None = None
        for name, pixels in made.pictures(self.scene.outputs):
            picture = Image.fromarray(pixels)
            text = self._compose({**written, infotext.LAYER: name}, seed)
            if self._saves():
                with job_options.applied():
                    self._save(picture, text, seed, name)
                saved = Path(picture.already_saved_as)  # pyright: ignore[reportAttributeAccessIssue]
                base = base or saved.with_name(saved.name.removesuffix(f"-{slug(name)}.png") + ".png")
            picture.info["parameters"] = text
            self.pictures.append(picture)
        self.notes += made.notes
        self._write_files(LayerStack(made.stack.layers, made.stack.size, self._compose(written, seed)), base)

    def _params(self) -> dict[str, Any]:
        """What the WebUI and other extensions write into infotexts."""
        params = self.last.extra_generation_params
        params = {name: value for name, value in params.items() if not name.startswith(infotext.PREFIX)}
        if not self.scene.controlnet_units:
            return params
        return {name: value for name, value in params.items() if not controlnet.PARAMETER.fullmatch(name)} | self.units

    def _compose(self, params: Mapping[str, Any], seed: int) -> str:
        """The WebUI's infotext of the whole scene: its own prompt and seed, and not those of a pass."""
        p = copy(self.last)
        p.extra_generation_params = dict(params)
        prompt = shared.prompt_styles.apply_styles_to_prompt(self.p.prompt, p.styles)
        texts = {"all_prompts": [prompt], "all_negative_prompts": p.all_negative_prompts[:1]}
        return processing.create_infotext(p, all_seeds=[seed], all_subseeds=p.all_subseeds[:1], index=0, **texts)

    def _saves(self) -> bool:
        return bool(shared.opts.samples_save) and not self.p.do_not_save_samples

    def _save(self, picture: Image.Image, text: str, seed: int, name: str) -> None:
        title = self.scene.background or self.p.prompt
        webui_images.save_image(
            picture, self.p.outpath_samples, "", seed, title, "png", info=text, p=self.last, suffix=f"-{slug(name)}"
        )

    def _write_files(self, stack: LayerStack, base: Path | None) -> None:
        if base is not None:
            self.notes += write_files(stack, self.scene.outputs, base)
        elif names := " or ".join(name.upper() for name in WRITERS if name in self.scene.outputs):
            self.notes.append(results.why_no_file(names))

    def _answer(self, seed: int) -> Any:
        p = self.last
        texts = [picture.info["parameters"] for picture in self.pictures]
        count = len(self.pictures)
        processed = processing.Processed(
            p,
            self.pictures,
            seed=seed,
            info=texts[0] if texts else "",
            subseed=p.all_subseeds[0],
            all_prompts=[self.p.prompt] * count,
            all_negative_prompts=[self.p.negative_prompt] * count,
            all_seeds=[seed] * count,
            all_subseeds=p.all_subseeds[:1] * count,
            infotexts=texts,
        )
        processed.extra_generation_params = describe(self.scene)
        if self.notes:
            notes = list(dict.fromkeys(self.notes))
            processed.extra_generation_params[infotext.NOTES] = notes
            shown = str(getattr(processed, "comments", None) or "")
            processed.comments = shown + "".join(f"{each}\n" for each in notes if each not in shown)
            for sentence in notes:
                logger.warning("%s", sentence)
        if getattr(self.p, "is_api", False) and shared.opts.samples_format != "png":  # in which layers would be inexact
            processed.images = [results.encode_png(picture) for picture in self.pictures]
        return processed


class _LoadedError(Exception):
    """Ends a job whose checkpoint is loaded."""


def _stop(*_args: Any, **_named: Any) -> None:
    raise _LoadedError
