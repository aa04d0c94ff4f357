"""A generation in a WebUI: what each of its hooks does for the Session. All state of it is here, on `p`."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastapi import HTTPException
from modules import extra_networks, shared
from PIL import Image
from torch import Tensor

from .. import infotext
from ..export.whole_job import check_packages, list_wanted, why_not
from ..host import Host
from ..image_file import has_transparency
from ..layers import fit
from ..modes import ROLES, Mode, Role, any_row
from ..options import AS_NEEDED, LayerOptions
from ..planning import SIZE_STEP, Facts, Plan, round_up
from ..planning import plan as make_plan
from ..refusal import Refusal
from ..session import Session, extend
from ..views import Cancelled
from . import job_options, page_images, results, whole_job, xyz
from .arguments import is_enabled, read_options
from .base64_images import read_input_image
from .extension import Extension
from .fetching import fetch
from .replacing import Replaced, replace_method

logger = logging.getLogger(__name__)

ATTRIBUTE = "layerdiffusion"  # of `p`
WRITTEN = f"{ATTRIBUTE}_params"  # of `p`: names of the parameters that were added to its images' infotexts
MASK = f"{ATTRIBUTE}_mask"  # of `p`: the one that came with the request
GRID_SCRIPTS = ("xyz_grid.py", "prompt_matrix.py", "loopback.py")  # they put all that a job answers on one grid
TILING_SCRIPTS = ("sd_upscale.py", "outpainting_mk_2.py", "poor_mans_outpainting.py")
BEFORE_HIRES = (
    "The files named -before-highres-fix are opaque, since only the last pass is decoded to transparency: switch "
    "hires fix off for a transparent picture of the first pass."
)
SEEDS = ("Seed", "Variation seed")  # parameters of an image
RESIZE_MODES = ("stretch", "crop", "fill", "stretch")  # img2img's "resize mode" by its number; the last is latent


def current(p: Any) -> Any:
    """The generation on `p`, or something with the same steps that does nothing."""
    generation = getattr(p, ATTRIBUTE, None)
    return generation if generation is not None and generation.p is p else IDLE  # ADetailer ends a copy of `p`


class Refused(Refusal, HTTPException):
    """A refusal as the WebUI's API answers it; after any other exception the server would cut the connection."""

    def __init__(self, refusal: Refusal, status: int = 422) -> None:
        HTTPException.__init__(self, status, str(refusal))

    def __str__(self) -> str:
        return self.detail


class Idle:
    """Takes the place of a Generation where no layers are wanted."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


IDLE = Idle()


def step(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method a step of the generation, which ends with its failure, since WebUIs swallow what hooks raise."""

    @functools.wraps(method)
    def run(self: Generation, *args: Any) -> None:
        if self.failure is None:
            try:
                method(self, *args)
            except Exception as error:  # noqa: BLE001 - whatever it is, the user is told and nothing stays patched
                self.fail(error, *args)

    return run


class Generation:
    """What one request asks for and how far it has come; the hooks call its methods in this order."""

    def __init__(self, extension: Extension, p: Any) -> None:
        self.extension = extension
        self.p = p
        self.failure: Refusal | None = None
        self.closed = False
        self.options = LayerOptions()
        self.session: Session | None = None
        self.latents: Any = None  # of the last sampling pass, sampler space
        self.given: dict[Role, results.Pixels] = {}  # images that the mode starts from, of the plan's size
        self.behind: results.Pixels | None = None  # RGBA of any size, for the preview over an image
        self.starts: list[results.Pixels] = []  # RGBA images that image to image starts from with their transparency
        self.originals: list[results.Pixels] = []  # RGBA images of which inpainting keeps what isn't masked
        self.batch: results.Batch | None = None
        self.notes: list[str] = []  # sentences for the user
        self.written = ""  # a sentence that names the files of all pictures
        self.wants_whole_job = False  # a sheet or an animation of all pictures
        self.sheets: list[dict[str, Any]] = []  # their JSON, for API clients
        self.sets: list[results.LayerSet] = []
        self.first_pass: results.Pixels | None = None  # RGBA, of which the WebUI is to make a larger version
        self._masks: dict[int, Any] = {}  # of the batch's images by index, as they are laid over; None: they aren't
        self._sampler: Any = None
        self._injected = ExitStack()  # what is in place during the sampler's call
        self._replaced: list[Replaced] = []
        self._before: dict[str, Any] = {}  # attributes of `p` as they were
        self._options_before: dict[str, Any] = {}  # of the WebUI

    @classmethod
    def begin(cls, extension: Extension, p: Any, args: Sequence[Any]) -> None:
        """Start on a request, if it wants layers; `before_process`, which is before the checkpoint is loaded."""
        earlier = getattr(p, ATTRIBUTE, None)
        if earlier is not None and earlier.p is p:
            earlier.close()
        setattr(p, ATTRIBUTE, None)
        axes = getattr(p, xyz.ATTRIBUTE, None) or {}
        inside_another = getattr(p, "_ad_inner", False)  # ADetailer's pass over a detail of this picture
        copied = earlier is not None and earlier.p is not p and not earlier.closed  # and begins another
        first_pass = _flatten_first_pass(p)
        if inside_another or copied or not (is_enabled(args) or axes):
            return
        if sentence := why_no_layers(p):
            _tell(p, sentence)
            p.extra_generation_params = {**p.extra_generation_params, infotext.NOTES: [sentence]}
            return
        generation = cls(extension, p)
        generation.first_pass = first_pass
        setattr(p, ATTRIBUTE, generation)
        generation.read(args, axes)

    @step
    def read(self, args: Sequence[Any], axes: Mapping[str, Any]) -> None:
        """Read the options and make room in the batch for the frames of each set."""
        p = self.p
        self._strike_out()  # of an earlier job with this `p`
        setattr(p, WRITTEN, [])
        _refuse_tiles(p)
        self.options = read_options(args, bool(getattr(p, "is_api", False)), {"enabled": True, **axes})
        self._keep("batch_size", "width", "height", "prompt", "negative_prompt", "seed", "subseed", "init_images")
        self._keep("override_settings", "do_not_save_grid", "image_mask")
        self._options_before = job_options.override(p)
        self._look_at_whole_job()
        frames = len(self.mode.frames)
        images = p.batch_size * p.n_iter // (1 if self.options.batch_counts == "sets" else frames)
        if images < 2 or getattr(p, "is_api", False):  # a set isn't a batch, and API clients find the images first
            p.do_not_save_grid = True
        self._write_down(infotext.describe(self.options))
        self.asked = (p.width, p.height)
        p.width, p.height = self.sampled = round_up(p.width, SIZE_STEP), round_up(p.height, SIZE_STEP)
        if self._paints_crop():
            self.asked = self.sampled  # it is brought to the size of its box anyway
        if self.sampled != self.asked:
            self._write_down({"Size": "{}x{}".format(*self.asked)})
        given = [*(getattr(p, "init_images", None) or [])]
        if given:
            p.init_images = [page_images.give_back_alpha(image) for image in given]
        if any(page_images.is_sketch(image) for image in given):
            self._comment(page_images.SKETCHED)
        if self.options.batch_counts == "sets" and frames > 1:
            p.batch_size *= frames
            for name in ("prompt", "negative_prompt"):
                setattr(p, name, _spread(getattr(p, name), frames))
            p.seed, p.subseed = _count_up(p.seed, frames, not p.subseed_strength), _count_up(p.subseed, frames)
        if getattr(p, "init_images", None) and len(p.init_images) > 1:
            p.init_images = _spread(list(p.init_images), frames)

    @step
    def prepare(self) -> None:
        """Plan, fetch and check everything before any sampling; `process`, with the checkpoint loaded."""
        p = self.p
        host = self.extension.host_of(p.sd_model)
        self.session = Session(host, self.extension.store(p.sd_model))
        if reason := host.why_not(self.mode.name, self.session.store):
            raise Refusal(reason)
        self._refuse_merging()
        if (p.width, p.height) != self.sampled:  # the WebUI or another extension wants another size
            self.asked = p.width, p.height
            p.extra_generation_params.pop("Size", None)
        self._read_starts()
        plan = self._plan(*self.asked)
        if (image := self.options.preview_image) is not None:
            self.behind = read_input_image(image, "preview_image")
        fetch(self.session.store, plan.files)
        self._open(plan)
        frames = plan.frames
        if len(frames) > 1:
            layers = [*frames] * (p.batch_size * p.n_iter // len(frames))
            self._write_down({infotext.LAYER: layers, **_seeds_of_sets(len(frames), p.subseed_strength)})
        if getattr(p, "enable_hr", False) and getattr(shared.opts, "save_images_before_highres_fix", False):
            self._comment(BEFORE_HIRES)
        if self.originals:
            self._fit_originals(plan)
        if self.starts:
            self._start_from_transparency(plan)
        if self.first_pass is not None:
            self._start_from_first_pass(plan, self.first_pass)

    @step
    def set_frame_prompts(self) -> None:
        """Give each frame of a set the set's prompt with its own additional one before it; `process_batch`."""
        p = self.p
        plan = self._plan(*self.plan.size)  # again, for another extension may have put AND into the prompts meanwhile
        frames = len(plan.frames)
        extras = [_strip_networks(extra) for extra in plan.prompts]
        for name, added in (("prompts", extras), ("hr_prompts", extras), ("negative_prompts", None)):
            texts = getattr(p, name, None)
            if texts and len(texts) % frames == 0:
                of_set = [texts[index - index % frames] for index in range(len(texts))]
                setattr(p, name, [_join(added, index % frames, text) for index, text in enumerate(of_set)])

    @step
    def wrap_sampler(self, x: Tensor) -> None:
        """Inject around the coming call of the sampler; `process_before_every_sampling`, at times twice for a pass."""
        p, host = self.p, self.extension.host_of(self.p.sd_model)
        width, height = 8 * x.shape[3], 8 * x.shape[2]
        same_size = (width, height) == (self.plan.width, self.plan.height)
        size = self.plan.size if same_size else (width, height)
        same_model = host.unet is self.live.host.unet
        if not (same_size and same_model):
            self._open_for(host, size)
        if p.sampler is not self._sampler:
            self._sampler = p.sampler
            for name in ("sample", "sample_img2img"):
                self._replaced.append(replace_method(p.sampler, name, self._inject))

    def _open_for(self, host: Host, size: tuple[int, int]) -> None:
        """Open a session for a pass of another size or of another checkpoint."""
        if host.unet is not self.live.host.unet:
            self.live.close()
            self.session = Session(host, self.extension.store(self.p.sd_model))
        self._open(self._plan(*size))

    def _inject(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        def inject_and_sample(*args: Any, **kwargs: Any) -> Any:
            if self.failure is not None:
                return sample(*args, **kwargs)
            try:
                with self._injected:
                    self._injected.enter_context(self.live.sampling())
                    self.latents = sample(*args, **kwargs)
            except Refusal as refusal:  # by what is injected: another extension changes the UNet so that it can't work
                self.fail(refusal)
                if self.extension.setting("go_on"):
                    return sample(*args, **kwargs)
            if self.failure is not None and not self.extension.setting("go_on"):
                raise self.failure
            return self.latents

        return inject_and_sample

    @step
    def follow_refiner(self) -> None:
        """Inject into the refiner's UNet once it has replaced the checkpoint's; before every step of sampling."""
        host = self.extension.host_of(self.p.sd_model)
        if host.unet is not self.live.host.unet:
            self._injected.close()
            self._open_for(host, self.plan.size)
            self._injected.enter_context(self.live.sampling())

    @step
    def take_samples(self, samples: Any) -> None:
        """Take the batch's latents while the WebUI still has them (masks are blended in); `post_sample`."""
        if not getattr(samples, "already_decoded", False):
            self.latents = samples

    @step
    def decode(self, pp: Any) -> None:
        """Decode the batch's transparency from the WebUI's own pixels; `postprocess_batch_list`."""
        pixels = torch.stack([image[:3].float().cpu() for image in pp.images])
        self.live.collect(self.latents)
        size = tuple(8 * side for side in self.latents.shape[2:])
        fitting = pixels if pixels.shape[2:] == size else F.interpolate(pixels, size, mode="area")
        shared.state.textinfo = "Decoding transparency"
        stopped = shared.state.interrupted
        try:
            views = 1 if stopped else None
            decoded = self.live.decode(fitting, lambda *_: stopped or not shared.state.interrupted, views=views)
        except Cancelled:
            decoded = self.live.decode(fitting, views=1)
        shared.state.textinfo = None
        self.batch = results.Batch(self.plan, decoded, pixels)
        self._masks.clear()
        for sentence in self.batch.judge() if self.extension.setting("alpha_check") else ():
            self._comment(sentence)

    @step
    def take_mask(self, overlay: Any) -> None:
        """Keep the mask by which the WebUI lays the original over an image; `postprocess_maskoverlay`."""
        self._masks[self.p.batch_index] = overlay.mask_for_overlay if overlay.overlay_image is not None else None

    @step
    def finish_image(self, pp: Any) -> None:
        """Make the transparent image from what the WebUI and others made of its picture, before that is saved."""
        if self.batch is None:
            return
        index = self.p.batch_index
        mask = self._masks.get(index, getattr(self.p, "mask_for_overlay", None))
        if self.originals and mask is not None:
            start = self.originals[index % len(self.originals)]
            pp.image = self.batch.finish_masked(index, pp.image, start, mask, getattr(self.p, "paste_to", None))
        else:
            pp.image = self.batch.finish(index, pp.image)
        role = self.plan.frames[index % len(self.plan.frames)]
        if index % len(self.plan.frames) == 0:
            complete = not (shared.state.interrupted or shared.state.skipped)
            self.sets.append(results.LayerSet(self.plan, self.given, is_complete=complete))
        self.sets[-1].images[role] = pp.image

    def finish(self, processed: Any) -> None:
        """Add previews and files, and leave everything as it was; `postprocess`, the last hook."""
        try:
            if self.failure is None and self.sets:
                script = _find_script(self.p)
                is_cell = script is not None and _file_of(script) in GRID_SCRIPTS
                save = self.extension.setting("save_previews")
                failed = results.deliver(self.sets, self.options, processed, not is_cell, save, self.behind)
                is_answer = getattr(self.p, "is_api", False) and script is None
                if self.wants_whole_job:
                    told = whole_job.deliver(self.p, self.sets, self.options, processed, is_answer, not is_cell)
                    failed += told.failed
                    self.written, self.sheets = told.written, told.sheets if is_answer else []
                if is_answer:
                    results.keep_alpha_in_answer(processed, self._options_before.get("samples_format"))
                for sentence in failed:
                    self._comment(sentence)
                if self.written:
                    _tell(self.p, self.written, logging.INFO)
                self.report(" ".join(failed) or (f"ok. {self.written}" if self.written else "ok"))
        except Exception as error:  # the images are made and saved, so they are not thrown away
            self._comment(f"LayerDiffusion made the layers, but not all previews and files: {error}")
            logger.warning("Previews and files failed", exc_info=not isinstance(error, Refusal))
            self.report(str(error))
        finally:
            self.close()
            self._hand_over_notes(processed)

    # -- the end, good or bad

    def fail(self, error: Exception, *places: Any) -> Refused:
        """End the generation: say why in the log, and make the WebUI's next step raise it, for page and API."""
        foreseen = isinstance(error, Refusal)
        self.failure = refusal = Refused(error) if foreseen else Refused(wrap_error(error), 500)
        self.report(str(refusal))
        p = self.p
        self.close()
        if self.extension.setting("go_on"):
            logger.warning("%s The generation continues without layers.", refusal)
            self._comment(str(refusal))
            return refusal
        logger.error("%s", refusal, exc_info=None if foreseen else error)
        sampler = getattr(p, "sampler", None)
        for owner, name in ((p, "init"), (p, "sample"), (sampler, "sample"), (sampler, "sample_img2img")):
            if hasattr(owner, name):
                setattr(owner, name, functools.partial(_raise, refusal))
        for place in places:
            for name in ("images", "image"):
                if hasattr(place, name):
                    setattr(place, name, Unavailable(refusal))
        return refusal

    def _hand_over_notes(self, processed: Any) -> None:
        """Give API clients the sentences (`info` has no comments), and the page those that came after its own."""
        answered = processed.extra_generation_params or {}
        processed.extra_generation_params = {name: v for name, v in answered.items() if name not in SEEDS}
        if self.sheets:
            processed.extra_generation_params[infotext.SHEETS] = self.sheets
        if self.notes:
            processed.extra_generation_params[infotext.NOTES] = self.notes
        if not (sentences := [*self.notes, *filter(None, [self.written])]):
            return
        shown = str(getattr(processed, "comments", None) or "")
        processed.comments = shown + "".join(f"{each}\n" for each in dict.fromkeys(sentences) if each not in shown)

    def close(self) -> None:
        """Undo all that this generation changed, in the model and on `p`."""
        self.closed = True
        if self.session is not None:
            self.session.close()
        while self._replaced:
            self._replaced.pop().restore()
        for name, value in self._before.items():
            setattr(self.p, name, value)
        self._strike_out((infotext.LAYER,) if self.failure is None else None)  # a grid's text is written after this
        job_options.restore(self._options_before)
        self._before.clear()
        self._options_before.clear()

    def report(self, outcome: str) -> None:
        """Keep the outcome for the status line and `doctor`."""
        host = self.session.host.name if self.session else ""
        options, p = self.options, self.p
        plan = f"{options.mode}, weight {options.weight:g}"
        views = f"{options.views} views" if options.views != AS_NEEDED else "views as needed"
        job = (
            f"{options.start_at:g} to {options.stop_at:g}, {views}, {type(p).__name__} "
            f"{p.width}x{p.height}, batch {p.batch_size} x {p.n_iter}, {p.steps} steps of {p.sampler_name}"
        )
        self.extension.report(options.mode, host, plan, job, outcome)

    # -- parts of the steps

    @property
    def live(self) -> Session:
        if self.session is None:
            raise RuntimeError("the WebUI left out the hook `process`")
        return self.session

    @property
    def mode(self) -> Mode:
        """What is the same for all families, known before the checkpoint is."""
        return any_row(self.options.mode)

    @property
    def plan(self) -> Plan:
        return self.live.plan

    def _look_at_whole_job(self) -> None:
        """Tell what stands in the way of a sheet or an animation of all pictures, before any is made."""
        wanted, script = list_wanted(self.options), _find_script(self.p)
        reason = why_not(self.options, self.mode)
        if wanted and script is not None and _file_of(script) == xyz.SCRIPT:
            reason = (
                f"A plot has no {' and no '.join(wanted)}, since each of its cells is a job of its own: put its "
                "pictures together by the commands `layerdiffusion atlas` and `layerdiffusion animate`."
            )
        if reason:
            self._comment(reason)
        else:
            check_packages(self.options)
        self.wants_whole_job = bool(wanted) and reason is None

    def _facts(self, width: int, height: int) -> Facts:
        p, host = self.p, self.live.host
        return Facts(
            family=host.family,
            width=width,
            height=height,
            batch=p.batch_size // (len(self.mode.frames) if self.options.batch_counts == "sets" else 1),
            steps=p.steps,
            unet_channels=host.unet_channels,
            combined_prompts=any(
                re.search(r"\bAND\b", each) for each in (*p.all_prompts, *(getattr(p, "prompts", None) or ()))
            ),
            transparent_input=bool(self.starts) or self._encodes_first_pass(),
        )

    def _plan(self, width: int, height: int) -> Plan:
        return make_plan(self.options, self._facts(width, height))

    def _open(self, plan: Plan) -> None:
        self.given = self._read_given(plan.size)
        self.live.open(plan, {role: self.given[role] for role in plan.mode.inputs})

    def _read_given(self, size: tuple[int, int]) -> dict[Role, results.Pixels]:
        """The images that were given, RGBA of that size."""
        given: dict[Role, results.Pixels] = {}
        for role in ROLES:
            if (image := self.options.image(role)) is not None:
                given[role] = fit(read_input_image(image, f"{role}_image"), size, self.options.resize_mode)
        return given

    def _refuse_merging(self) -> None:
        """Token merging pairs other tokens in each image, so frames and controls that go by position can't work."""
        ratio = self.p.get_token_merging_ratio() if hasattr(self.p, "get_token_merging_ratio") else 0
        mode = self.mode
        if ratio and mode.kind == "attention_sharing" and (len(mode.frames) > 1 or mode.inputs):
            raise Refusal(
                f"Layer mode {mode.name!r} can't be used with token merging: set the token merging ratio to 0."
            )

    def _paints_crop(self) -> bool:
        """Whether only the mask's surroundings are sampled, enlarged to the whole size."""
        return getattr(self.p, "image_mask", None) is not None and bool(self.p.inpaint_full_res)

    def _read_starts(self) -> None:
        """Read the images of image to image where their pixels are needed: for their transparency, or for a mask."""
        given = [image for image in getattr(self.p, "init_images", None) or [] if image is not None]
        transparent = any(has_transparency(image) for image in given)
        masked = getattr(self.p, "image_mask", None) is not None
        if not (masked or (transparent and self.mode.encoder is not None)):
            return
        read = [read_input_image(image, "init_images") for image in given]
        if self.mode.encoder is not None and any(image[..., 3].min() < 255 for image in read):
            self.starts = read
        if masked and self.mode.transparent_frame is not None:
            self.originals = read

    def _fit_originals(self, plan: Plan) -> None:
        """Bring images and mask to the plan's size, so that what isn't masked stays as it is there."""
        p = self.p
        if self._paints_crop():
            return
        self.originals = [_fit_as_webui(image, plan.size, p.resize_mode) for image in self.originals]
        if plan.size != (plan.width, plan.height):
            p.init_images = [Image.fromarray(extend(image, plan)) for image in self.originals]
            mask = fit(read_input_image(p.image_mask, "mask"), plan.size, RESIZE_MODES[p.resize_mode])
            p.image_mask = Image.fromarray(extend(mask, plan))

    def _start_from_transparency(self, plan: Plan) -> None:
        """Let the WebUI's own encoding of the init images carry their transparency."""
        p, mode = self.p, RESIZE_MODES[self.p.resize_mode]
        only_masked = self._paints_crop()
        if not only_masked:
            self.starts = [extend(fit(image, plan.size, mode), plan) for image in self.starts]
        p.init_images = [Image.fromarray(results.on_grey(image)) for image in self.starts]

        def encoded_now() -> list[results.Pixels]:
            box = p.paste_to if only_masked else None  # none if the mask is empty: then all is sampled
            if box is None:
                return [fit(image, plan.size, mode) if only_masked else image for image in self.starts]
            x, y, width, height = box
            crops = (image[y : y + height, x : x + width] for image in self.starts)
            return [fit(crop, plan.size, "stretch") for crop in crops]

        def wrap(init: Callable[..., Any]) -> Callable[..., Any]:
            def encode_transparency(*args: Any, **kwargs: Any) -> Any:
                try:
                    with self.live.encoding_batch(encoded_now):
                        return init(*args, **kwargs)
                except Refusal as refusal:
                    raise self.fail(refusal) from None

            return encode_transparency

        self._replaced.append(replace_method(p, "init", wrap))

    def _encodes_first_pass(self) -> bool:
        image = self.first_pass
        return image is not None and self.mode.encoder is not None and bool(image[..., 3].min() < 255)

    def _start_from_first_pass(self, plan: Plan, image: results.Pixels) -> None:
        """Let the second pass over a picture of the gallery start from its transparency, as large as it is encoded."""
        p = self.p
        if len(plan.frames) > 1:
            raise Refusal(
                f"Layer mode {plan.mode.name!r} makes {len(plan.frames)} images at once, and this button enlarges one: "
                "tick Hires. fix and generate the set again, or choose layer mode 'foreground'."
            )
        if not self._encodes_first_pass():
            return
        own = self._plan(image.shape[1], image.shape[0])
        p.firstpass_image = Image.fromarray(results.on_grey(extend(image, own)))

        def wrap(run: Callable[..., Any], in_second_pass: bool) -> Callable[..., Any]:
            """Latents are enlarged after the encoding, pictures before it, then perhaps with another checkpoint."""

            def encode_transparency(*args: Any, **kwargs: Any) -> Any:
                if in_second_pass != (p.latent_scale_mode is None):
                    return run(*args, **kwargs)
                target = p.hr_upscale_to_x // SIZE_STEP * SIZE_STEP, p.hr_upscale_to_y // SIZE_STEP * SIZE_STEP
                size = target if in_second_pass else own.size
                try:
                    self._open_for(self.extension.host_of(p.sd_model), size)
                    with self.live.encoding_batch(lambda: [fit(image, size, "stretch")]):
                        return run(*args, **kwargs)
                except Refusal as refusal:
                    raise self.fail(refusal) from None

            return encode_transparency

        for name, in_second_pass in (("sample", False), ("sample_hr_pass", True)):
            wrap_it = functools.partial(wrap, in_second_pass=in_second_pass)
            self._replaced.append(replace_method(p, name, wrap_it))

    def _write_down(self, params: Mapping[str, Any]) -> None:
        """Add to the parameters that WebUIs write into images."""
        p = self.p
        p.extra_generation_params = {**p.extra_generation_params, **params}
        setattr(p, WRITTEN, [*getattr(p, WRITTEN, ()), *params])

    def _strike_out(self, names: Sequence[str] | None = None) -> None:
        """Take these parameters that were added to `p` out again, or all of them."""
        p = self.p
        out = set(getattr(p, WRITTEN, ()) if names is None else names)
        p.extra_generation_params = {name: v for name, v in p.extra_generation_params.items() if name not in out}

    def _keep(self, *names: str) -> None:
        self._before |= {name: getattr(self.p, name) for name in names if hasattr(self.p, name)}

    def _comment(self, sentence: str) -> None:
        """Show a sentence below the pictures, and to API clients."""
        self.notes.append(sentence)
        _tell(self.p, sentence)


class Unavailable:
    """Replaces what a WebUI expects images in, and raises as soon as it looks at them."""

    def __init__(self, refusal: Refusal) -> None:
        self.__dict__["refusal"] = refusal

    def __iter__(self) -> Any:
        raise self.refusal

    def __len__(self) -> int:
        raise self.refusal

    def __getattr__(self, name: str) -> Any:
        raise self.__dict__["refusal"]


def note_request(p: Any) -> None:
    """Remember the mask that the user gave, to tell it from those that a script makes; `setup`, before all else."""
    setattr(p, MASK, getattr(p, "image_mask", None))


def why_no_layers(p: Any) -> str | None:
    """A sentence where the chosen script paints a picture in tiles, through masks of its own, so that it is opaque."""
    script, mask = _find_script(p), getattr(p, "image_mask", None)
    if script is None or mask is None or mask is getattr(p, MASK, mask) or _file_of(script) in TILING_SCRIPTS:
        return None
    return (
        f"The script {script.title()!r} paints in tiles of its own, which have no transparency, so its picture stays "
        "opaque and is made without layers: use img2img itself for a transparent one."
    )


def _refuse_tiles(p: Any) -> None:
    """Refusal for the WebUIs' scripts that put a picture together from opaque tiles."""
    script = _find_script(p)
    if script is not None and _file_of(script) in TILING_SCRIPTS:
        raise Refusal(
            f"The script {script.title()!r} puts its picture together from opaque tiles, so transparency is lost: "
            "switch LayerDiffusion off for it, or use img2img in a larger size or hires fix."
        )


def _find_script(p: Any) -> Any:
    """The script that was chosen from the WebUI's list and asked for the images (such as a plot); None if none was."""
    args = getattr(p, "script_args", None)
    listed = getattr(getattr(p, "scripts", None), "selectable_scripts", [])
    chosen = args[0] if args else None  # an API client's infotext puts a text there
    return listed[chosen - 1] if isinstance(chosen, int) and 0 < chosen <= len(listed) else None


def _file_of(script: Any) -> str:
    return PurePath(script.filename or "").name


def _flatten_first_pass(p: Any) -> results.Pixels | None:
    """Make the gallery's picture that is to be enlarged opaque, since WebUIs can't encode alpha; returns it as RGBA."""
    picture = getattr(p, "firstpass_image", None)
    if picture is None:
        return None
    pixels = read_input_image(picture, "firstpass_image")
    if picture.mode != "RGB" or has_transparency(picture):
        from modules import images  # here, for a WebUI that is refused may have none

        p.firstpass_image = images.flatten(Image.fromarray(pixels), shared.opts.img2img_background_color)
    return pixels


def _tell(p: Any, sentence: str, level: int = logging.WARNING) -> None:
    """Show a sentence in the log and below the pictures."""
    logger.log(level, "%s", sentence)
    if hasattr(p, "comment"):
        p.comment(sentence)


def _raise(refusal: Refusal, *_args: Any, **_kwargs: Any) -> None:
    raise refusal


def wrap_error(error: Exception) -> Refusal:
    """The sentence for an error that nobody foresaw."""
    return Refusal(
        f"LayerDiffusion failed ({type(error).__name__}: {error}): see the log, switch it off to generate an ordinary "
        "image, and please report it."
    )


def _spread(value: Any, frames: int) -> Any:
    """Each entry of a list once for every frame; anything else as it is."""
    return [each for each in value for _ in range(frames)] if isinstance(value, list) else value


def _fit_as_webui(image: results.Pixels, size: tuple[int, int], resize_mode: int) -> results.Pixels:
    """Fit RGBA to a size; an opaque image by the WebUI itself, so that it gets the same pixels."""
    if image.shape[1::-1] == size:
        return image
    if image[..., 3].min() < 255:
        return fit(image, size, RESIZE_MODES[resize_mode])
    from modules import images  # here, for a WebUI that is refused may have none

    picture = Image.fromarray(image[..., :3])
    resized = images.resize_image(0 if resize_mode == 3 else resize_mode, picture, *size)
    return np.asarray(resized.convert("RGBA"))


def _count_up(seed: Any, frames: int, differ: bool = True) -> Any:
    """A seed for every frame, counted from its set's as WebUIs count them from a job's; a single one as it is."""
    return [each + differ * n for each in seed for n in range(frames)] if isinstance(seed, list) else seed


def _seeds_of_sets(frames: int, subseed_strength: float) -> dict[str, Callable[..., Any]]:
    """Parameters by which every image of a set names the set's seeds, its first image's: they make the set again."""

    def first(seeds: Sequence[Any], index: int) -> Any:
        return seeds[index - index % frames]

    seed, subseed = SEEDS
    written: dict[str, Callable[..., Any]] = {seed: lambda all_seeds, index, **_: first(all_seeds, index)}
    if subseed_strength:
        written[subseed] = lambda all_subseeds, index, **_: first(all_subseeds, index)
    return written


def _strip_networks(text: str) -> str:
    """A prompt without <lora:...> tags, which are read from the main prompt only."""
    return extra_networks.parse_prompt(text)[0].strip() if text else ""


def _join(extras: Sequence[str] | None, frame: int, text: str) -> str:
    return ", ".join(filter(None, (extras[frame], text))) if extras else text
