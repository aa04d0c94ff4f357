"""The diffusers host: any SD1.5 or SDXL pipeline makes layers inside `with layer_diffusion(pipe, mode=...)`."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from lib_layerdiffusion import infotext
from lib_layerdiffusion.hosts.ldm_names import name_modules, translate
from lib_layerdiffusion.hosts.pipelines import GUIDANCE
from lib_layerdiffusion.hosts.prompts import encode_prompts, needs_encoding
from lib_layerdiffusion.hosts.samplers import describe
from lib_layerdiffusion.image_file import has_transparency, read_image
from lib_layerdiffusion.layers import Layer, LayerStack, fit, paint
from lib_layerdiffusion.modes import ROLES, Family, Mode, Role, find_mode
from lib_layerdiffusion.options import LayerOptions, check_text
from lib_layerdiffusion.outputs import name_layer
from lib_layerdiffusion.planning import LARGEST_SEED, STEPS, Facts, Plan
from lib_layerdiffusion.planning import plan as make_plan
from lib_layerdiffusion.refusal import Refusal, list_choices, using_path
from lib_layerdiffusion.session import Image, Progress, Session, extend, to_image
from lib_layerdiffusion.views import Cancelled, count_views
from lib_layerdiffusion.weights import WeightStore, cache_folder

OWN_SETTINGS = {
    "prompt": "the prompts",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg",
    "generator": "seed or seeds",
    "num_images_per_prompt": "one prompt for each image in ld.batch",
    "output_type": "ld.decode for latents of your own",
    "return_dict": "the layers that are returned",
}
EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
CURE = "load a Stable Diffusion 1.5 or SDXL checkpoint"
CROSS = "CrossAttnDownBlock2D"
PAINTING_ORDER: tuple[Role, ...] = ("blend", "background", "foreground")  # of the layers of a stack
STRUCTURES: dict[tuple[str, ...], Family] = {
    (CROSS, CROSS, CROSS, "DownBlock2D"): "sd15",
    ("DownBlock2D", CROSS, CROSS): "sdxl",
}


class DiffusersHost:
    """Host of one pipeline; nothing in the pipeline is changed by making one.

    Refuses pipelines whose base model has no layer models (Flux, SD3, SD2, refiner, inpainting) or can't be hooked.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.name = type(pipe).__name__
        self.family: Family = read_family(pipe)
        self.unet: nn.Module = pipe.unet
        self.unet_channels = int(pipe.unet.config.in_channels)
        self.vae: nn.Module = pipe.vae
        self.scaling_factor = float(pipe.vae.config.scaling_factor)
        self._names = name_modules(pipe.unet.config)

    @property
    def size_unit(self) -> int:
        """Pixels per latent cell."""
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)

    @property
    def native_size(self) -> int:
        """Side in pixels that the checkpoint was trained for."""
        return int(self.pipe.unet.config.sample_size) * self.size_unit

    def parameter_name(self, ldm_name: str) -> str | None:
        return translate(ldm_name, self._names)

    def percent_to_timestep(self, fraction: float) -> float:
        config = self.pipe.scheduler.config
        if not hasattr(self.pipe.scheduler, "alphas_cumprod") or config.get("timestep_type", "discrete") != "discrete":
            raise Refusal(
                f"{type(self.pipe.scheduler).__name__} has no timesteps from 0 to 999, so 'start at' and 'stop at' "
                "can't be placed; leave them at 0 and 1 or choose another scheduler."
            )
        return (1.0 - fraction) * (config.num_train_timesteps - 1)

    def encode(self, pixels: Tensor) -> Tensor:
        with self._safe_vae() as vae, torch.no_grad():
            return vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        with self._safe_vae() as vae, torch.no_grad():
            images = [vae.decode(z.to(self.device, vae.dtype)).sample.float() for z in latents.split(1)]
        return (torch.cat(images) * 0.5 + 0.5).clamp(0, 1)

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    @property
    def precision(self) -> torch.dtype:
        return self.pipe.unet.dtype

    @contextmanager
    def on_device(self, network: nn.Module, room: int = 0) -> Iterator[torch.device]:
        """Hold `network` on the pipeline's device, back where it was afterwards."""
        before = next(network.parameters()).device
        network.to(self.device)
        try:
            yield self.device
        finally:
            network.to(before)

    @contextmanager
    def _safe_vae(self) -> Iterator[Any]:
        """Run the SDXL VAE in float32 where float16 overflows (its config says so); float16 -> 32 -> 16 is exact."""
        vae, dtype = self.pipe.vae, self.pipe.vae.dtype
        upcast = dtype == torch.float16 and bool(vae.config.get("force_upcast", False))
        if upcast:
            vae.to(torch.float32)
        try:
            yield vae
        finally:
            if upcast:
                vae.to(dtype)


def read_family(pipe: Any) -> Family:
    """Read the base-model family from the UNet's structure, or refuse with what the pipeline is instead."""
    name, unet, vae = type(pipe).__name__, getattr(pipe, "unet", None), getattr(pipe, "vae", None)
    if unet is None or vae is None:
        raise Refusal(f"{name} has no UNet with a VAE, and layer models exist only for such models; {CURE}.")
    if hasattr(unet, "_orig_mod"):
        raise Refusal("The UNet is compiled, so layer models can't be hooked into it; pass the pipeline uncompiled.")
    config: Mapping[str, Any] = unet.config
    channels = config.get("in_channels")
    if channels != 4:
        raise Refusal(
            f"The UNet of {name} takes {channels} channels, as inpainting and edit checkpoints do; {CURE} with 4."
        )
    family = STRUCTURES.get(tuple(config.get("down_block_types", ())))
    extra = config.get("addition_embed_type")
    if family == "sd15" and config.get("use_linear_projection"):
        raise Refusal(f"{name} holds a Stable Diffusion 2 checkpoint, for which no layer models exist; {CURE}.")
    if family is None or extra != {"sd15": None, "sdxl": "text_time"}[family]:
        raise Refusal(f"The UNet of {name} has neither the SD1.5 nor the SDXL structure; {CURE}.")
    if not hasattr(vae, "quant_conv") or vae.quant_conv is None or vae.config.get("latents_mean") is not None:
        raise Refusal(
            f"{type(vae).__name__} is not the VAE that {name} was trained with; load the checkpoint's own VAE."
        )
    return family


class LayerDiffusion:
    """A pipeline with a layer mode switched on, inside the `with` block of `layer_diffusion`."""

    def __init__(self, host: DiffusersHost, options: LayerOptions, store: WeightStore) -> None:
        self.host = host
        self.options = options
        self.mode = find_mode(options.mode, host.family)
        _check_options(options, self.mode)
        self.session = Session(host, store)
        self._parameters = inspect.signature(host.pipe.__call__).parameters

    def __call__(self, prompt: str, negative_prompt: str = "", seed: int = 0, **settings: Any) -> LayerStack:
        """Generate one set of layers; `settings` are those of `batch`."""
        return self.batch([prompt], [seed], negative_prompt=negative_prompt, **settings)[0]

    def batch(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int = STEPS,
        cfg: float = GUIDANCE,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[LayerStack]:
        """Generate one set of layers per prompt, sampled together; a stack has the layers among the options' `outputs`.

        width, height: pixels, the checkpoint's own size by default. seeds: 0, 1, ... by default; what a set shows
        depends on its prompt and seed, not on its place in the batch. cfg: guidance, 1 is none.
        progress(done, total): called after every step and every decoding pass; cancels when it returns False or raises.
        Prompts are read as WebUIs do: (word:1.3), [word], BREAK, any length.
        settings: go to the pipeline as they are (`image=` and so on), `prompt_embeds` instead of what the prompts say.
        Image to image starts from the transparency of an RGBA `image`, too: a Pillow image, a path, an array [H, W, 4]
        or [B, H, W, 4] of uint8 or of 0..1, or a list of them with one for each prompt. Inpainting, with `mask_image`
        of the same kinds, paints the layer into it by the mask: what is black keeps its bytes, colour and alpha.
        """
        seeds = list(range(len(prompts))) if seeds is None else list(seeds)
        check_request(prompts, seeds, negative_prompt, cfg)
        self.check_settings(settings, steps)
        starts = self._take_starts(settings, len(prompts))
        masks = self._take_masks(settings, len(prompts)) if starts else []
        width, height = self._size(width, height, starts, settings)
        transparent = any(start[..., 3].min() < 255 for start in starts)
        facts = Facts(self.host.family, width, height, len(prompts), steps=steps, transparent_input=transparent)
        plan = make_plan(self.options, facts)
        self.session.open(plan, {role: self._read(self.options.image(role), plan.size) for role in plan.mode.inputs})
        starts, masks = ([self._read(image, plan.size) for image in images] for images in (starts, masks))
        if transparent:
            latents = torch.cat([self._encode(start) for start in starts])
            settings["image"] = latents.repeat(plan.images // len(starts), 1, 1, 1) * self.host.scaling_factor
            if masks:  # which the pipeline would make of pixels
                settings["masked_image_latents"] = settings["image"]
        elif starts:
            settings["image"] = _prepare(starts, plan)
        if masks:
            settings["mask_image"] = _prepare(masks, plan)
        views = count_views(plan.views) if plan.mode.decoder else 0
        with self.session.sampling():
            latents = self._sample(plan, prompts, seeds, negative_prompt, steps, cfg, progress, views, settings)
        self.session.collect(latents)
        sets = self.session.decode(progress=_after(progress, self.host.pipe.num_timesteps, views))
        finished: list[LayerStack] = []
        for index, (images, prompt, seed) in enumerate(zip(sets, prompts, seeds, strict=True)):
            if masks:
                start, mask = (given[index % len(given)] for given in (starts, masks))
                share = np.asarray(np.asarray(PIL.Image.fromarray(mask).convert("L"))[..., None] / 255, np.float32)
                images = {role: paint(start, image, share) for role, image in images.items()}
            written = describe_sampling(self.host.pipe, steps, cfg, seed, plan.size) | infotext.describe(self.options)
            layers = tuple(
                Layer(role, images[role], role)
                for role in PAINTING_ORDER
                if role in images and name_layer(role) in self.options.outputs
            )
            finished.append(LayerStack(layers, plan.size, infotext.compose(prompt, negative_prompt, written)))
        return finished

    def plain(
        self,
        prompt: str,
        negative_prompt: str = "",
        seed: int = 0,
        *,
        width: int,
        height: int,
        steps: int = STEPS,
        cfg: float = GUIDANCE,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Image:
        """A picture of the pipeline as it is without layers, opaque RGBA uint8; `settings` are those of `batch`."""
        check_request([prompt], [seed], negative_prompt, cfg)
        self.check_settings(settings, steps)
        plan = make_plan(LayerOptions(), Facts(self.host.family, width, height, steps=steps))
        latents = self._sample(plan, [prompt], [seed], negative_prompt, steps, cfg, progress, 0, settings)
        return to_image(self.host.decode(latents.float() / self.host.scaling_factor)[0].cpu(), plan.size)

    def encode(self, rgba: Any) -> Tensor:
        """Encode an RGBA image (uint8 array, Pillow image or path) with its transparency.

        Returns [1, 4, H/8, W/8] in sampler space, what an image-to-image pipeline takes as `image`; sides that aren't
        multiples of 8 are continued to the next one.
        """
        return self.to_latent(rgba) * self.host.scaling_factor

    def decode(self, latents: Tensor) -> Image:
        """Decode latents [1, 4, h, w] in sampler space, as pipelines return them, to RGBA uint8 [8h, 8w, 4]."""
        return self.from_latent(latents / self.host.scaling_factor)

    def to_latent(self, rgba: Any) -> Tensor:
        """As `encode`, in VAE space, which is what latent files hold."""
        image = read_image(rgba)
        self.session.open(self._plan_one(image.shape[1], image.shape[0]))
        return self._encode(image)

    def from_latent(self, latent: Tensor) -> Image:
        """As `decode`, of a latent in VAE space."""
        self.session.open(self._plan_one(8 * latent.shape[3], 8 * latent.shape[2]))
        (image,) = self.session.decode_transparent(latent)
        return image

    def _plan_one(self, width: int, height: int) -> Plan:
        return make_plan(self.options, Facts(self.host.family, width, height, transparent_input=True))

    def _encode(self, rgba: Image) -> Tensor:
        """An image of the plan's size as its latent in VAE space."""
        with self.session.encoding(rgba) as pixels:
            return self.host.encode(pixels)

    def _sample(
        self,
        plan: Plan,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompt: str,
        steps: int,
        cfg: float,
        progress: Progress | None,
        views: int,
        settings: dict[str, Any],
    ) -> Tensor:
        """Let the pipeline sample the images of a plan: latents in sampler space."""
        settings |= self._read_prompts(prompts, negative_prompt, plan, settings)
        if "width" in self._parameters:
            settings |= {"width": plan.width, "height": plan.height}
        follow = _follow(progress, views, settings.pop("callback_on_step_end", None))
        frames = len(plan.frames)
        return self.host.pipe(
            num_inference_steps=steps,
            guidance_scale=cfg,
            generator=[torch.Generator("cpu").manual_seed(seed + n) for seed in seeds for n in range(frames)],
            output_type="latent",
            callback_on_step_end=follow,
            **settings,
        ).images

    def _read(self, image: Any, size: tuple[int, int]) -> Image:
        return fit(read_image(image), size, self.options.resize_mode)

    def check_settings(self, settings: Mapping[str, Any], steps: Any) -> None:
        """Refuse what is set otherwise, what the pipeline doesn't take, and a strength of which no step is left."""
        strength = settings.get("strength", 1)
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise Refusal(f"strength must be a number from 0 to 1, not {strength!r}.")
        scheduler = self.host.pipe.scheduler.config
        most = scheduler.get("num_train_timesteps", 1000) - scheduler.get("steps_offset", 0)
        if isinstance(steps, int) and steps > most:
            raise Refusal(f"The scheduler takes at most {most} steps: ask for fewer.")
        if settings.get("mask_image") is not None and settings.get("image") is None:
            raise Refusal("mask_image needs an image that it is laid on: give that as image.")
        if isinstance(steps, int) and steps > 0 and int(steps * strength) < 1:
            raise Refusal(f"{steps} steps at strength {strength:g} are none: raise the strength or the steps.")
        for name in settings:
            if name in OWN_SETTINGS:
                raise Refusal(f"{name!r} is set by LayerDiffusion: use {OWN_SETTINGS[name]} instead.")
            if name not in self._parameters:
                raise Refusal(f"{self.host.name} takes no {name!r}: {list_choices(name, sorted(self._parameters))}.")

    def _read_prompts(
        self, prompts: Sequence[str], negative_prompt: str, plan: Plan, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """What the pipeline is given for the prompts: the texts, or embeddings where it would read those wrongly."""
        pipe = self.host.pipe
        given = {name: settings.pop(name) for name in EMBEDDINGS if settings.get(name) is not None}
        if given:
            return self._complete(given, len(prompts), negative_prompt, plan)
        texts = [_join(extra, prompt) for prompt in prompts for extra in plan.prompts]
        if not needs_encoding(pipe, [*texts, negative_prompt]):
            return {"prompt": texts, "negative_prompt": [negative_prompt] * plan.images}
        for name in ("prompt_2", "negative_prompt_2"):
            if settings.get(name) is not None:
                raise Refusal(
                    f"{name} can't be used with weights in brackets or a prompt of more than one window of the text "
                    "encoder: leave it out, or use short prompts without brackets."
                )
        encoded = encode_prompts(pipe, [*texts, negative_prompt], clip_skip=settings.get("clip_skip"))
        rows = [*range(len(texts))], [len(texts)] * len(texts)
        made = {name: encoded.states[row] for name, row in zip(EMBEDDINGS[:2], rows, strict=True)}
        if encoded.pooled is not None:
            made |= {name: encoded.pooled[row] for name, row in zip(EMBEDDINGS[2:], rows, strict=True)}
        return made

    def _complete(self, given: dict[str, Any], sets: int, negative_prompt: str, plan: Plan) -> dict[str, Any]:
        """The caller's embeddings with one row for each image, and those of the negative prompt if they are missing."""
        pipe, needed = self.host.pipe, EMBEDDINGS if self.host.family == "sdxl" else EMBEDDINGS[:2]
        if any(plan.prompts):
            raise Refusal("An additional prompt can't be put before prompt_embeds: encode it with the prompt instead.")
        missing = [name for name in needed[::2] if name not in given]
        if missing:
            raise Refusal(f"{', '.join(given)} can't be used without {' and '.join(missing)}: give that, too.")
        for name, value in given.items():
            if not isinstance(value, Tensor) or value.ndim != (2 if "pooled" in name else 3):
                raise Refusal(f"{name} must be a tensor {'[B, C]' if 'pooled' in name else '[B, tokens, C]'}.")
            if len(value) not in (sets, plan.images):
                raise Refusal(f"{name} has {len(value)} rows for {sets} prompts: give one row for each.")
        states = given["prompt_embeds"]
        windows, rest = divmod(states.shape[1], getattr(pipe.tokenizer, "model_max_length", 77))
        if any(name not in given for name in needed[1::2]):
            encoded = None if rest else encode_prompts(pipe, [negative_prompt], windows)
            if encoded is None or encoded.states.shape[1] != states.shape[1]:
                raise Refusal("The negative prompt has another length than prompt_embeds: give negative_prompt_embeds.")
            made = zip(needed[1::2], (encoded.states, encoded.pooled), strict=False)
            given |= {name: tensor.repeat_interleave(len(states), dim=0) for name, tensor in made if tensor is not None}
        return {name: value.repeat_interleave(plan.images // len(value), dim=0) for name, value in given.items()}

    def _take_starts(self, settings: dict[str, Any], sets: int) -> list[Image]:
        """Take the images that image to image starts from out of `settings`; none if none has transparency.

        With a mask all are taken. Paths and arrays of bytes without transparency are left there as what pipelines take.
        """
        if "strength" not in self._parameters or settings.get("image") is None:
            return []
        images = [*_flatten(settings["image"])]
        if settings.get("mask_image") is None and not any(map(_has_alpha, images)):
            if any(map(_is_bytes, images)):
                settings["image"] = [
                    PIL.Image.fromarray(read_image(each)[..., :3]) if _is_bytes(each) else each for each in images
                ]
            return []
        starts = _read_images(images, sets, "images to start from")
        transparent = any(start[..., 3].min() < 255 for start in starts)
        if transparent and "mask_image" in self._parameters and "masked_image_latents" not in self._parameters:
            raise Refusal(
                f"{self.host.name} can't start from a transparent image: use an ordinary pipeline for inpainting, or "
                "put the image over a background with layers.composite first."
            )
        if transparent and (len(self.mode.frames) > 1 or self.mode.encoder is None):
            raise Refusal(
                f"Layer mode {self.mode.name!r} can't start from a transparent image: "
                "use mode 'foreground', or an image without alpha."
            )
        del settings["image"]
        return starts

    def _take_masks(self, settings: dict[str, Any], sets: int) -> list[Image]:
        """Take the masks of inpainting out of `settings`; none if it isn't that."""
        if (given := settings.pop("mask_image", None)) is None:
            return []
        if settings.get("padding_mask_crop") is not None:
            raise Refusal("padding_mask_crop can't be used with layers: crop the image and the mask yourself.")
        return _read_images([*_flatten(given)], sets, "masks")

    def _size(
        self, width: int | None, height: int | None, starts: Sequence[Image], settings: Mapping[str, Any]
    ) -> tuple[int, int]:
        """Size to generate: as asked for, else that of the image to start from, else the checkpoint's own."""
        own = (self.host.native_size,) * 2
        if starts:
            own = (starts[0].shape[1], starts[0].shape[0])
        elif "strength" in self._parameters and settings.get("image") is not None:
            own = _measure(settings["image"], self.host.size_unit) or own
        return (own[0] if width is None else width), (own[1] if height is None else height)


@contextmanager
def layer_diffusion(
    pipe: Any, mode: str = "foreground", weights: WeightStore | Path | str | None = None, **options: Any
) -> Iterator[LayerDiffusion]:
    """Switch a layer mode on: `with layer_diffusion(pipe) as ld: stack = ld("a glass bottle", seed=1)`.

    pipe: any diffusers pipeline of an SD1.5 or SDXL checkpoint; it is unchanged after every call.
    weights: a store, or the folder of the layer files. By default the `layer_model` folder inside the pipeline's own,
    else the user's cache folder, into which missing files are downloaded.
    options: fields of LayerOptions. `outputs` says which layers a stack has ("rgba" is the transparent one); previews
    and files are what `layers.composite` and `export` make of a stack. Refusal when a request can't be served.
    """
    host = DiffusersHost(pipe)
    ld = LayerDiffusion(host, LayerOptions.from_dict({"mode": mode, **options}), open_store(pipe, weights))
    try:
        yield ld
    finally:
        ld.session.close()


def describe_sampling(pipe: Any, steps: int, cfg: float, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """The settings that an infotext begins with."""
    sampler = describe(pipe.scheduler)
    return {"Steps": steps, **sampler, "CFG scale": f"{cfg:g}", "Seed": seed, "Size": "{}x{}".format(*size)}


def open_store(pipe: Any, weights: WeightStore | Path | str | None) -> WeightStore:
    """The layer files for a pipeline: a store as it is, a folder's, or by default the pipeline's own or the cache's."""
    if isinstance(weights, WeightStore):
        return weights
    if weights is not None:
        with using_path(weights):
            folder = Path(weights).expanduser()
            if not folder.is_dir():
                raise Refusal(f"There is no folder {weights}: name the one that holds the layer files.")
            return WeightStore([folder])
    inside = Path(pipe.config.get("_name_or_path") or "") / "layer_model"
    return WeightStore([inside] if inside.is_dir() else [], download_to=cache_folder())


def _follow(progress: Progress | None, views: int, callback: Any) -> Any:
    """Make a pipeline's step callback that reports progress and then calls the caller's own."""

    def after_step(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if progress is not None and progress(step + 1, pipe.num_timesteps + views) is False:
            raise Cancelled
        return kwargs if callback is None else callback(pipe, step, timestep, kwargs)

    return after_step


def _after(progress: Progress | None, steps: int, views: int) -> Progress | None:
    """Report decoding as `views` more steps after the sampling's."""
    if progress is None:
        return None
    return lambda done, total: progress(steps + views * done // total, steps + views)


def _join(extra: str, prompt: str) -> str:
    return ", ".join(filter(None, (extra, prompt)))


def _check_options(options: LayerOptions, mode: Mode) -> None:
    """Refuse what a call from Python can't honour."""
    if not options.enabled:
        raise Refusal("layer_diffusion always makes layers: leave enabled out, and call the pipeline for plain images.")
    if options.batch_counts != "sets":
        raise Refusal("A prompt makes a set of layers here, so batch_counts has to be 'sets': leave it out.")
    if options.preview_image is not None:
        raise Refusal(
            "A stack holds layers only, so preview_image has no effect: leave it out, and put the stack that comes "
            "back over an image with layers.composite."
        )
    for name in ("atlas", "animation"):
        if getattr(options, name):
            raise Refusal(
                f"A call returns stacks of layers, so {name} can't be made of all pictures: leave it out, and give the "
                f"images to export.{name}."
            )
    layers = [name_layer(role) for role in ROLES]
    for output in options.outputs:
        if output not in layers:
            raise Refusal(
                f"A stack holds layers only, so outputs can't have {output!r}: choose among {', '.join(layers)}, and "
                "make previews with layers.composite and files with export of the stack that comes back."
            )
    there = [name_layer(role) for role in mode.frames]
    if not set(there) & set(options.outputs):
        raise Refusal(
            f"Layer mode {mode.name!r} makes none of the outputs {', '.join(options.outputs)}: "
            f"choose among {', '.join(there)}."
        )


def check_request(prompts: Any, seeds: Sequence[Any], negative_prompt: Any, cfg: Any) -> None:
    """Refuse prompts, seeds or a guidance that can't be honoured."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refusal("The prompts must be a list of one or more texts; give a single one to ld(prompt).")
    for prompt in prompts:
        check_text("The prompt", prompt)
    check_text("The negative prompt", negative_prompt)
    if len(seeds) != len(prompts):
        raise Refusal(f"There are {len(prompts)} prompts and {len(seeds)} seeds; give one seed for each prompt.")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
            raise Refusal(f"A seed must be a whole number from 0 to {LARGEST_SEED}, not {seed!r}.")
    if isinstance(cfg, bool) or not isinstance(cfg, int | float) or not math.isfinite(cfg) or cfg < 0:
        raise Refusal(f"cfg must be a number of 0 or more, not {cfg!r}; 1 turns guidance off, {GUIDANCE:g} is usual.")


def _flatten(image: Any) -> Iterator[Any]:
    """The single images in what is given as `image`; files are read, without alpha where they are opaque."""
    match image:
        case list() | tuple():
            for each in image:
                yield from _flatten(each)
        case np.ndarray() if image.ndim == 4:
            yield from image
        case str() | os.PathLike():
            rgba = read_image(image)
            yield rgba if (rgba[..., 3] < 255).any() else rgba[..., :3]
        case _:
            yield image


def _has_alpha(image: Any) -> bool:
    if isinstance(image, PIL.Image.Image):
        return has_transparency(image)
    return isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 4


def _is_bytes(image: Any) -> bool:
    """Whether it is an array of bytes, which pipelines would take for one of 0..1."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8


def _read_images(images: Sequence[Any], sets: int, what: str) -> list[Image]:
    known = [_to_bytes(image) for image in images]
    if len(known) not in (1, sets):
        raise Refusal(f"There are {len(known)} {what} and {sets} prompts: give one, or one for each.")
    return [read_image(image) for image in known]


def _prepare(images: Sequence[Image], plan: Plan) -> list[PIL.Image.Image]:
    """Opaque images of the plan's `size` as pipelines take them: one for each that is sampled."""
    made = [PIL.Image.fromarray(extend(image, plan)[..., :3]) for image in images]
    return [made[index % len(made)] for index in range(plan.sets) for _ in plan.frames]


def _to_bytes(image: Any) -> Any:
    """A Pillow image as it is, and an array of 0..1 or of truth values in bytes."""
    if not isinstance(image, np.ndarray | PIL.Image.Image):
        raise Refusal(
            f"A {type(image).__name__} can't be used with a mask or among images with transparency: give Pillow "
            "images, arrays or paths."
        )
    if isinstance(image, np.ndarray) and image.dtype == np.bool_:
        return image.astype(np.uint8) * 255
    if isinstance(image, PIL.Image.Image) or image.dtype.kind != "f":
        return image
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise Refusal("An image array of floats must be in 0..1: scale it, or give bytes (uint8).")
    return np.rint(image * 255).astype(np.uint8)


def _measure(image: Any, unit: int) -> tuple[int, int] | None:
    """Width and height in whole latent cells of an image that a pipeline takes; None when that can't be told."""
    match image:
        case PIL.Image.Image():
            width, height = image.size
        case Tensor() if image.shape[-3] == 4:
            return image.shape[-1] * unit, image.shape[-2] * unit
        case Tensor():
            width, height = image.shape[-1], image.shape[-2]
        case np.ndarray():
            height, width = image.shape[-3:-1]
        case list() if image:
            return _measure(image[0], unit)
        case _:
            return None
    return width // unit * unit, height // unit * unit
