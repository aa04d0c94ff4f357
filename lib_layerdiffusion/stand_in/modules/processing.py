"""A job from request to images: `process_images`, and the two kinds of `p` that all hooks are called with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from . import devices, extra_networks, images, masking, prompt_parser, scripts, sd_samplers, shared
from .processed import Processed, create_infotext
from .rng import ImageRNG

opt_C, opt_f = 4, 8


class DecodedSamples(list[Tensor]):
    """What `sample` returns after hires fix: images [3, H, W], about -1..1, instead of latents."""

    already_decoded = True


def decode_latent_batch(model: Any, latents: Tensor) -> DecodedSamples:
    """Decode latents image by image."""
    return DecodedSamples(model.decode_first_stage(latent).cpu()[0] for latent in latents.split(1))


def images_tensor_to_samples(pixels: Tensor, model: Any) -> Tensor:
    """Encode [B, 3, H, W], 0..1, image by image."""
    return torch.cat(
        [model.get_first_stage_encoding(model.encode_first_stage(image * 2 - 1)) for image in pixels.split(1)]
    )


def get_fixed_seed(seed: Any) -> int:
    """A seed; a random one for -1 or nothing."""
    return random.randrange(2**32 - 2) if seed in (-1, "", None) else int(seed)


@dataclass(repr=False, eq=False)
class StableDiffusionProcessing:
    """The request and everything that becomes of it; extensions read and change it."""

    outpath_samples: str | None = None
    outpath_grids: str | None = None
    prompt: Any = ""  # text, or a list with one for each image
    negative_prompt: Any = ""
    styles: list[str] = field(default_factory=list)
    seed: Any = -1
    subseed: Any = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = 0
    seed_resize_from_w: int = 0
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool = False
    tiling: bool = False
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    denoising_strength: float = 0.75
    override_settings: dict[str, Any] = field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    firstpass_image: Any = None  # a picture of the gallery, of which only the second pass is made

    def __post_init__(self) -> None:
        self.is_api = False
        self.user: str | None = None
        self.comments: dict[str, int] = {}
        self.sampler: Any = None
        self.rng: Any = None
        self.c: Any = None
        self.uc: Any = None
        self.mask: Any = None  # in latents, 1 where the original stays; None without inpainting
        self.nmask: Any = None
        self.paste_to: tuple[int, int, int, int] | None = None
        self.overlay_images: list[Any] | None = None
        self.color_corrections: list[Any] | None = None
        self.is_hr_pass = False
        self.hr_cfg = 1.0
        self.iteration = 0
        self.batch_index = 0
        self.modified_noise: Tensor | None = None
        self.token_merging_ratio = self.token_merging_ratio_hr = 0.0
        self.all_prompts: list[str] = []
        self.all_negative_prompts: list[str] = []
        self.all_seeds: list[int] = []
        self.all_subseeds: list[int] = []
        self.prompts: list[str] = []
        self.negative_prompts: list[str] = []
        self.seeds: list[int] = []
        self.subseeds: list[int] = []
        self.extra_network_data: Any = None
        self._scripts: Any = None
        self._script_args: Sequence[Any] = ()
        if shared.traits.keeps_latents:
            self.latents_after_sampling: list[Any] = []
            self.pixels_after_sampling: list[Any] = []

    @property
    def sd_model(self) -> Any:
        """The loaded model; another one may be loaded in the middle of a job."""
        return shared.sd_model

    @sd_model.setter
    def sd_model(self, model: Any) -> None:
        """WebUIs ignore this, too."""

    @property
    def scripts(self) -> Any:
        return self._scripts

    @scripts.setter
    def scripts(self, runner: Any) -> None:
        self._scripts = runner
        self._set_up_scripts()

    @property
    def script_args(self) -> Sequence[Any]:
        return self._script_args

    @script_args.setter
    def script_args(self, args: Sequence[Any]) -> None:
        self._script_args = args
        self._set_up_scripts()

    def _set_up_scripts(self) -> None:
        if self._scripts is not None and self._script_args:
            self._scripts.setup_scrips(self, is_ui=not self.is_api)

    def comment(self, text: str) -> None:
        """Show a sentence below the images."""
        self.comments[text] = 1

    def get_token_merging_ratio(self, for_hr: bool = False) -> float:
        ratio = self.token_merging_ratio or shared.opts.token_merging_ratio
        return (self.token_merging_ratio_hr or shared.opts.token_merging_ratio_hr or ratio) if for_hr else ratio

    def save_samples(self) -> bool:
        """Whether images are written to disk; those of an interrupted job aren't."""
        opts, state = shared.opts, shared.state
        whole = opts.save_incomplete_images or not (state.interrupted or state.skipped)
        return opts.samples_save and not self.do_not_save_samples and whole

    def setup_prompts(self) -> None:
        """One prompt for each image of the job, with styles."""
        count = self.batch_size * self.n_iter
        prompts, negatives = _spread(self.prompt, count), _spread(self.negative_prompt, count)
        if len(prompts) != len(negatives):
            raise RuntimeError(f"Got {len(prompts)} prompts and {len(negatives)} negative prompts")
        self.all_prompts, self.all_negative_prompts = self.apply_styles(prompts, negatives)
        self.main_prompt, self.main_negative_prompt = self.all_prompts[0], self.all_negative_prompts[0]

    def apply_styles(self, prompts: list[str], negatives: list[str]) -> tuple[list[str], list[str]]:
        styles = shared.prompt_styles
        return (
            [styles.apply_styles_to_prompt(text, self.styles) for text in prompts],
            [styles.apply_negative_styles_to_prompt(text, self.styles) for text in negatives],
        )

    def init(self, all_prompts: list[str], all_seeds: list[int], all_subseeds: list[int]) -> None:
        """Prepare the whole job; image to image encodes here."""

    @property
    def batch_part(self) -> slice:
        """Where the current batch's images are among those of the whole job."""
        return slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)

    def restore_prompts(self) -> None:
        """The batch's prompts as they were given, with tags of extra networks."""
        self.prompts = self.all_prompts[self.batch_part]
        self.negative_prompts = self.all_negative_prompts[self.batch_part]

    def begin_batch(self) -> None:
        """Take this batch's part of the job."""
        part = self.batch_part
        self.restore_prompts()
        self.seeds, self.subseeds = self.all_seeds[part], self.all_subseeds[part]
        self.rng = self.make_rng((opt_C, self.height // opt_f, self.width // opt_f))

    def make_rng(self, shape: Sequence[int]) -> ImageRNG:
        """The random numbers of the batch for latents of that shape [C, H, W]."""
        varied = {
            name: getattr(self, name) for name in ("subseed_strength", "seed_resize_from_h", "seed_resize_from_w")
        }
        return ImageRNG(shape, self.seeds, self.subseeds, **varied)

    def parse_extra_network_prompts(self) -> None:
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def setup_conds(self) -> None:
        """Encode the batch's prompts."""
        self.c, self.uc = self.encode(self.prompts, self.negative_prompts, self.width, self.height, self.cfg_scale)

    def encode(self, prompts: list[str], negatives: list[str], width: int, height: int, cfg: float) -> tuple[Any, Any]:
        """Conditions for prompts and negative prompts; None for the latter where they have no effect (Forge)."""
        size = {"width": width, "height": height}
        positive, negative = (prompt_parser.SdConditioning(texts, **size) for texts in (prompts, negatives))
        c = prompt_parser.get_multicond_learned_conditioning(self.sd_model, positive, self.steps)
        if cfg == 1 and not shared.traits.uncond_at_cfg_1:
            return c, None
        return c, prompt_parser.get_learned_conditioning(self.sd_model, negative, self.steps)

    def image_conditioning_for(self, x: Tensor) -> Tensor:
        """WebUIs pass conditions of inpainting checkpoints here, and zeros for all others."""
        return x.new_zeros(x.shape[0], 5, 1, 1)

    def run_hook_before_sampling(self, x: Tensor, noise: Tensor, c: Any, uc: Any) -> Tensor:
        """Call the last hook before the sampler's next call; it may replace the noise."""
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=x, noise=noise, c=c, uc=uc)
        noise = noise if self.modified_noise is None else self.modified_noise
        self.modified_noise = None
        return noise

    def sample(
        self,
        conditioning: Any,
        unconditional_conditioning: Any,
        seeds: Any,
        subseeds: Any,
        subseed_strength: Any,
        prompts: Any,
    ) -> Any:
        """Latents of the batch; what WebUIs call, and extensions replace."""
        return self.sample_batch(conditioning, unconditional_conditioning)

    def sample_batch(self, conditioning: Any, unconditional_conditioning: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.sampler = self.c = self.uc = None


@dataclass(repr=False, eq=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """Text to image, optionally with a second pass in a larger size (hires fix)."""

    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: Any = ""
    hr_negative_prompt: Any = ""
    hr_cfg: float = 0.0  # 0: as the first pass

    def __post_init__(self) -> None:
        second_cfg = self.hr_cfg
        super().__post_init__()
        self.hr_cfg = second_cfg or self.cfg_scale
        self.hr_upscale_to_x = self.hr_upscale_to_y = 0
        self.latent_scale_mode: dict[str, Any] | None = None
        self.hr_prompts: list[str] = []
        self.hr_negative_prompts: list[str] = []
        self.all_hr_prompts: list[str] = []
        self.all_hr_negative_prompts: list[str] = []
        self.hr_extra_network_data: Any = None
        self.hr_c: Any = None
        self.hr_uc: Any = None

    def setup_prompts(self) -> None:
        super().setup_prompts()
        if self.enable_hr:
            count = self.batch_size * self.n_iter
            texts = _spread(self.hr_prompt or self.prompt, count)
            negatives = _spread(self.hr_negative_prompt or self.negative_prompt, count)
            self.all_hr_prompts, self.all_hr_negative_prompts = self.apply_styles(texts, negatives)

    def init(self, all_prompts: list[str], all_seeds: list[int], all_subseeds: list[int]) -> None:
        if not self.enable_hr:
            return
        name = self.hr_upscaler or shared.latent_upscale_default_mode
        self.latent_scale_mode = shared.latent_upscale_modes.get(name)
        if self.latent_scale_mode is None and name not in [upscaler.name for upscaler in shared.sd_upscalers]:
            raise ValueError(f"could not find upscaler named {name}")
        scaled = int(self.width * self.hr_scale), int(self.height * self.hr_scale)
        self.hr_upscale_to_x, self.hr_upscale_to_y = self.hr_resize_x or scaled[0], self.hr_resize_y or scaled[1]
        params = self.extra_generation_params
        params["Denoising strength"] = self.denoising_strength
        params["Hires resize"] = f"{self.hr_upscale_to_x}x{self.hr_upscale_to_y}"
        params["Hires upscaler"] = name
        if self.hr_second_pass_steps:
            params["Hires steps"] = self.hr_second_pass_steps
        params["Hires prompt"] = lambda p, index, prompt_text, **_: _differing(p.all_hr_prompts[index], prompt_text)
        if shared.state.job_count == -1:
            shared.state.job_count = self.n_iter * 2
            shared.state.processing_has_refined_job_count = True

    def parse_extra_network_prompts(self) -> None:
        super().parse_extra_network_prompts()
        if self.enable_hr:
            part = self.batch_part
            self.hr_negative_prompts = self.all_hr_negative_prompts[part]
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[part])

    def setup_conds(self) -> None:
        super().setup_conds()
        if self.enable_hr:
            if not self.disable_extra_networks:
                extra_networks.activate(self, self.hr_extra_network_data)
            size = self.hr_upscale_to_x, self.hr_upscale_to_y
            self.hr_c, self.hr_uc = self.encode(self.hr_prompts, self.hr_negative_prompts, *size, self.hr_cfg)
            if not self.disable_extra_networks:
                extra_networks.activate(self, self.extra_network_data)

    def sample_batch(self, conditioning: Any, unconditional_conditioning: Any) -> Any:
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        if self.firstpass_image is not None and self.enable_hr:
            return self.sample_hr_pass(*self._take_first_pass())
        x = self.rng.next()
        x = self.run_hook_before_sampling(x, x, conditioning, unconditional_conditioning)
        image_conditioning = self.image_conditioning_for(x)
        samples = self.sampler.sample(
            self, x, conditioning, unconditional_conditioning, image_conditioning=image_conditioning
        )
        if not self.enable_hr or shared.state.interrupted:
            return samples
        return self.sample_hr_pass(samples)

    def _take_first_pass(self) -> tuple[Tensor | None, Tensor | None]:
        """The gallery's picture as latents, or as pixels -1..1 where those are enlarged; only three channels fit."""
        values = np.asarray(self.firstpass_image, np.float32) / 255
        pixels = torch.from_numpy(np.moveaxis(values, 2, 0).copy())[None]
        if self.latent_scale_mode is None:
            return None, pixels * 2 - 1
        return images_tensor_to_samples(pixels, self.sd_model), None

    def sample_hr_pass(self, samples: Tensor | None, decoded: Tensor | None = None) -> DecodedSamples:
        """Enlarge the latents, or the decoded images, and sample again from there."""
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name, self.sd_model)
        samples = self._enlarge(samples, decoded)
        shared.state.nextjob()
        self.rng = self.make_rng(samples.shape[1:])
        noise = self.rng.next()
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        if self.scripts is not None:
            self.scripts.before_hr(self)
        for _ in range(shared.traits.hires_sampling_hooks):
            noise = self.run_hook_before_sampling(samples, noise, self.hr_c, self.hr_uc)
        samples = self.sampler.sample_img2img(
            self,
            samples,
            noise,
            self.hr_c,
            self.hr_uc,
            steps=self.hr_second_pass_steps or self.steps,
            image_conditioning=self.image_conditioning_for(samples),
        )
        self.sampler = None
        made = decode_latent_batch(self.sd_model, samples)
        self.is_hr_pass = False
        return made

    def _enlarge(self, samples: Any, decoded: Any) -> Tensor:
        width, height = self.hr_upscale_to_x, self.hr_upscale_to_y
        if self.latent_scale_mode is not None:
            return F.interpolate(samples, (height // opt_f, width // opt_f), **self.latent_scale_mode)
        decoded = decode_latent_batch(self.sd_model, samples) if decoded is None else decoded
        pictures = [to_image(each) for each in to_unit(decoded)]
        larger = [images.resize_image(0, picture, width, height, self.hr_upscaler) for picture in pictures]
        return images_tensor_to_samples(torch.stack([to_tensor(picture) for picture in larger]), self.sd_model)

    def close(self) -> None:
        super().close()
        self.hr_c = self.hr_uc = None


@dataclass(repr=False, eq=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """Image to image, optionally only where a mask is white (inpainting)."""

    init_images: list[Any] = field(default_factory=list)
    resize_mode: int = 0  # 0 stretch, 1 crop, 2 fill, 3 stretch in latents
    image_cfg_scale: float | None = None
    mask: Any = None  # an image; afterwards, as in WebUIs, its part in latents
    mask_blur: int = 4
    inpainting_fill: int = 1  # 0 blurred surroundings, 1 original, 2 latent noise, 3 latent nothing
    inpaint_full_res: bool = True  # paint only the masked part, enlarged to the whole size
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        given = self.mask
        super().__post_init__()
        self.image_mask = given
        self.mask_for_overlay: Any = None
        self.init_latent: Any = None
        self.image_conditioning: Any = None
        if self.initial_noise_multiplier is None:
            self.initial_noise_multiplier = shared.opts.initial_noise_multiplier

    def init(self, all_prompts: list[str], all_seeds: list[int], all_subseeds: list[int]) -> None:
        self.extra_generation_params["Denoising strength"] = self.denoising_strength
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        crop_region, mask = self._prepare_mask()
        if self.scripts is not None and shared.traits.init_images_hook:
            self.scripts.before_process_init_images(self, {"crop_region": crop_region, "image_mask": mask})
        pictures = [self._prepare_image(image, crop_region, mask) for image in self.init_images]
        if len(pictures) == 1:
            pictures *= self.batch_size
            self.overlay_images = (self.overlay_images or []) * self.batch_size or None
        elif len(pictures) <= self.batch_size:
            self.batch_size = len(pictures)
        else:
            raise RuntimeError(f"bad number of images passed: {len(pictures)}; expecting {self.batch_size} or less")
        torch.manual_seed(all_seeds[0])  # encoding draws from the posterior; here the same job gives the same image
        pixels = torch.stack([to_tensor(picture) for picture in pictures])
        self.init_latent = images_tensor_to_samples(pixels, self.sd_model)
        if self.resize_mode == 3:
            size = self.height // opt_f, self.width // opt_f
            self.init_latent = F.interpolate(self.init_latent, size, mode="bilinear")
        if mask is not None:
            self._mask_latents(mask, all_seeds)
        self.image_conditioning = self.image_conditioning_for(self.init_latent)

    def _prepare_mask(self) -> tuple[tuple[int, int, int, int] | None, Image.Image | None]:
        """The box that is painted when only the mask's surroundings are, and the mask for it."""
        if self.image_mask is None:
            return None, None
        mask = masking.create_binary_mask(self.image_mask)
        if self.inpainting_mask_invert:
            mask = ImageOps.invert(mask)
        mask = masking.blur(mask, self.mask_blur)
        self.overlay_images = []
        box = masking.find_box(mask, self.inpaint_full_res_padding) if self.inpaint_full_res else None
        if box is None:
            mask = images.resize_image(self.resize_mode, mask, self.width, self.height)
            self.mask_for_overlay = mask.point(lambda value: min(2 * value, 255))
            return None, mask
        self.mask_for_overlay = mask
        box = masking.fit_box(box, (self.width, self.height), mask.size)
        self.paste_to = (box[0], box[1], box[2] - box[0], box[3] - box[1])
        self.extra_generation_params["Inpaint area"] = "Only masked"
        return box, images.resize_image(2, mask.crop(box), self.width, self.height)

    def _prepare_image(
        self, image: Image.Image, box: tuple[int, int, int, int] | None, mask: Image.Image | None
    ) -> Image.Image:
        """An init image without alpha, in the job's size; with a mask its unmasked part is kept for the end."""
        image = images.flatten(image, shared.opts.img2img_background_color)
        if box is None and self.resize_mode != 3:
            image = images.resize_image(self.resize_mode, image, self.width, self.height)
        if mask is not None:
            if self.mask_for_overlay.size != image.size:
                self.mask_for_overlay = images.resize_image(self.resize_mode, self.mask_for_overlay, *image.size)
            kept = Image.new("RGBa", image.size)
            kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(self.mask_for_overlay))
            self.overlay_images = [*(self.overlay_images or []), kept.convert("RGBA")]
        if box is not None:
            image = images.resize_image(2, image.crop(box), self.width, self.height)
        if mask is not None and self.inpainting_fill != 1:
            image = masking.fill(image, mask)
        return image

    def _mask_latents(self, mask: Image.Image, all_seeds: list[int]) -> None:
        latent = self.init_latent
        small = np.asarray(mask.convert("L").resize((latent.shape[3], latent.shape[2])), np.float32) / 255
        self.nmask = torch.from_numpy(np.around(small)).expand(latent.shape[1:]).clone()
        self.mask = 1 - self.nmask
        if self.inpainting_fill == 2:
            noise = ImageRNG(latent.shape[1:], all_seeds[: len(latent)]).next()
            self.init_latent = latent * self.mask + noise * self.nmask
        elif self.inpainting_fill == 3:
            self.init_latent = latent * self.mask

    def sample_batch(self, conditioning: Any, unconditional_conditioning: Any) -> Any:
        noise = self.rng.next() * self.initial_noise_multiplier
        noise = self.run_hook_before_sampling(self.init_latent, noise, conditioning, unconditional_conditioning)
        samples = self.sampler.sample_img2img(
            self,
            self.init_latent,
            noise,
            conditioning,
            unconditional_conditioning,
            image_conditioning=self.image_conditioning,
        )
        if self.mask is None:
            return samples
        blended = samples * self.nmask + self.init_latent * self.mask
        args = scripts.MaskBlendArgs(samples, self.nmask, self.init_latent, self.mask, blended)
        if self.scripts is not None:
            self.scripts.on_mask_blend(self, args)
        return args.blended_latent


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Make the images of a job under its own settings. Settings are put back, but only those that were set before."""
    opts = shared.opts
    if p.scripts is not None:
        p.scripts.before_process(p)
    before = {name: opts.data[name] for name in p.override_settings if name in opts.data}
    try:
        for name, value in p.override_settings.items():
            if name in opts.data_labels:
                opts.set(name, value, is_api=True, run_callbacks=False)
        return process_images_inner(p)
    finally:
        if p.override_settings_restore_afterwards:
            for name, value in before.items():
                opts.set(name, value)
        devices.torch_gc()


def process_images_inner(p: StableDiffusionProcessing) -> Processed:
    """All batches of a job."""
    seed, subseed = (each if isinstance(each, list) else get_fixed_seed(each) for each in (p.seed, p.subseed))
    p.sd_model_name = p.sd_model.sd_checkpoint_info.name_for_extra
    p.sd_model_hash = p.sd_model.sd_model_hash
    apply_circular(p.sd_model, p.tiling)
    p.sd_model.comments, p.sd_model.extra_generation_params = [], {}
    p.setup_prompts()
    count = len(p.all_prompts)
    differ = not p.subseed_strength  # a variation keeps the seed and counts the other one up
    p.all_seeds = seed if isinstance(seed, list) else [seed + n * differ for n in range(count)]
    p.all_subseeds = subseed if isinstance(subseed, list) else [subseed + n for n in range(count)]
    if p.scripts is not None:
        p.scripts.process(p)
    made: list[Image.Image] = []
    infotexts: list[str] = []
    with torch.inference_mode():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        if shared.state.job_count == -1:
            shared.state.job_count = p.n_iter
        for iteration in range(p.n_iter):
            p.iteration = iteration
            shared.state.skipped = False
            if shared.state.interrupted or shared.state.stopping_generation:
                break
            process_batch(p, made, infotexts)
    infotexts = infotexts or [create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds)]
    first = add_grid(p, made, infotexts)
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(
        p,
        made,
        seed=p.all_seeds[0],
        info=infotexts[0],
        subseed=p.all_subseeds[0],
        index_of_first_image=first,
        infotexts=infotexts,
    )
    if p.scripts is not None:
        p.scripts.postprocess(p, processed)
    return processed


def apply_circular(model: Any, tiling: bool) -> None:
    """Let the model's pictures continue at their opposite sides."""
    for network in (model.model.diffusion_model, model.first_stage_model):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.padding_mode = "circular" if tiling else "zeros"


def process_batch(p: StableDiffusionProcessing, made: list[Image.Image], infotexts: list[str]) -> None:
    """Sample, decode and finish one batch; its images and their infotexts are appended."""
    n = p.iteration
    p.begin_batch()
    named = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
    if p.scripts is not None:
        p.scripts.before_process_batch(p, **named)
    if not p.prompts:
        return
    p.parse_extra_network_prompts()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    if p.scripts is not None:
        p.scripts.process_batch(p, **named | {"prompts": p.prompts})
    p.setup_conds()
    p.extra_generation_params.update(p.sd_model.extra_generation_params)
    for text in p.sd_model.comments:
        p.comment(text)
    samples = p.sample(
        conditioning=p.c,
        unconditional_conditioning=p.uc,
        seeds=p.seeds,
        subseeds=p.subseeds,
        subseed_strength=p.subseed_strength,
        prompts=p.prompts,
    )
    if shared.traits.keeps_latents:
        p.latents_after_sampling.extend(samples)
    if p.scripts is not None:
        args = scripts.PostSampleArgs(samples)
        p.scripts.post_sample(p, args)
        samples = args.samples
    decoded = samples if getattr(samples, "already_decoded", False) else decode_latent_batch(p.sd_model, samples)
    pixels: Any = to_unit(decoded)
    shared.state.nextjob()
    p.restore_prompts()
    if p.scripts is not None:
        p.scripts.postprocess_batch(p, pixels, batch_number=n)
        listed = scripts.PostprocessBatchListArgs(list(pixels))
        p.scripts.postprocess_batch_list(p, listed, batch_number=n)
        pixels = listed.images
    for index, image in enumerate(pixels):
        p.batch_index = index
        finish_image(p, index, image, made, infotexts)


def finish_image(
    p: StableDiffusionProcessing, index: int, pixels: Tensor, made: list[Image.Image], infotexts: list[str]
) -> None:
    """Hooks for one image, what inpainting lays over it, infotext, saving."""
    opts = shared.opts
    whole = index + p.iteration * p.batch_size  # its index in the job
    image = to_image(pixels)
    image = run_image_hook(p, "postprocess_image", image, whole)
    overlays = p.overlay_images or []
    overlay = overlays[index] if opts.overlay_inpaint and index < len(overlays) else None
    args = scripts.PostProcessMaskOverlayArgs(index, getattr(p, "mask_for_overlay", None), overlay)
    if p.scripts is not None:
        p.scripts.postprocess_maskoverlay(p, args)
    image = images.apply_overlay(image, p.paste_to, args.overlay_image)
    if shared.traits.keeps_latents:
        p.pixels_after_sampling.append(image)
    image = run_image_hook(p, "postprocess_image_after_composite", image, whole)
    text = batch_infotext(p, index)
    if p.save_samples():
        images.save_image(
            image, p.outpath_samples, "", p.seeds[index], p.prompts[index], opts.samples_format, info=text, p=p
        )
    infotexts.append(text)
    if opts.enable_pnginfo:
        image.info["parameters"] = text
    made.append(image)
    if args.mask_for_overlay is not None and opts.return_mask:
        made.append(args.mask_for_overlay.convert("RGB"))


def run_image_hook(p: StableDiffusionProcessing, hook: str, image: Image.Image, index: int) -> Image.Image:
    """Let scripts replace an image."""
    args = scripts.PostprocessImageArgs(image, index)
    if p.scripts is not None:
        getattr(p.scripts, hook)(p, args)
    return args.image


def batch_infotext(p: StableDiffusionProcessing, index: int = 0, use_main_prompt: bool = False) -> str:
    """Infotext of an image of the current batch. Its `index` counts within the batch, as in WebUIs."""
    return create_infotext(
        p,
        p.prompts,
        p.seeds,
        p.subseeds,
        use_main_prompt=use_main_prompt,
        index=index,
        all_negative_prompts=p.negative_prompts,
    )


def add_grid(p: StableDiffusionProcessing, made: list[Image.Image], infotexts: list[str]) -> int:
    """Put a grid of all images before them, if that is set; returns the index of the first image."""
    opts = shared.opts
    if p.do_not_save_grid or not (opts.return_grid or opts.grid_save) or (len(made) < 2 and opts.grid_only_if_multiple):
        return 0
    grid, text = images.image_grid(made), batch_infotext(p, use_main_prompt=True)
    if opts.grid_save:
        images.save_image(
            grid, p.outpath_grids, "grid", p.all_seeds[0], p.all_prompts[0], opts.grid_format, info=text, p=p, grid=True
        )
    if not opts.return_grid:
        return 0
    grid.info["parameters"] = text
    made.insert(0, grid)
    infotexts.insert(0, text)
    return 1


def to_unit(decoded: Sequence[Tensor]) -> Tensor:
    """Decoded images, about -1..1, to [B, 3, H, W], 0..1."""
    return (torch.stack(list(decoded)).float() / 2 + 0.5).clamp(0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """[C, H, W], 0..1, to an image, by cutting off instead of rounding."""
    return Image.fromarray((255.0 * pixels.cpu().numpy().transpose(1, 2, 0)).astype(np.uint8))


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image to [3, H, W], 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255)


def _spread(texts: Any, count: int) -> list[str]:
    return list(texts) if isinstance(texts, list) else [texts] * count


def _differing(text: str, other: str) -> str | None:
    return None if text == other else text
