"""Samplers: diffusers' schedulers behind the two calls that WebUIs make, `sample` and `sample_img2img`."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import shared
from .cfg_denoiser import CFGDenoiser


@dataclass(frozen=True)
class SamplerData:
    """A sampler in the list; `scheduler` is the name of a class of diffusers."""

    name: str
    scheduler: str
    settings: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def total_steps(self, steps: int) -> int:
        return steps


all_samplers = [
    SamplerData("Euler", "EulerDiscreteScheduler", aliases=("k_euler",)),
    SamplerData("Euler a", "EulerAncestralDiscreteScheduler", aliases=("k_euler_a", "k_euler_ancestral")),
    SamplerData(
        "DPM++ 2M Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ("DPM++ 2M", "k_dpmpp_2m_ka")
    ),
    SamplerData("DDIM", "DDIMScheduler"),
]
all_samplers_map = {name: sampler for sampler in all_samplers for name in (sampler.name, *sampler.aliases)}
samplers_map = {name.lower(): sampler.name for name, sampler in all_samplers_map.items()}
samplers = samplers_for_img2img = all_samplers


def find_sampler_config(name: str | None) -> SamplerData:
    """The sampler of that name; the first for None."""
    return all_samplers_map[samplers_map[name.lower()]] if name else all_samplers[0]


def create_sampler(name: str | None, model: Any) -> Sampler:
    """A new sampler for one pass."""
    return Sampler(find_sampler_config(name), model)


class Sampler:
    """One pass of sampling."""

    def __init__(self, config: SamplerData, model: Any) -> None:
        import diffusers

        self.config = config
        self.model = model
        self.eta: float | None = None
        kind = getattr(diffusers, config.scheduler)
        self.scheduler: Any = kind.from_config(model.pipe.scheduler.config, **config.settings)

    def sample(
        self,
        p: Any,
        x: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """Latents from noise [B, 4, h, w]; both in sampler space."""
        self.scheduler.set_timesteps(steps or p.steps)
        start = x * self.scheduler.init_noise_sigma
        return self._run(p, start, 0, conditioning, unconditional_conditioning, image_conditioning)

    def sample_img2img(
        self,
        p: Any,
        x: Tensor,
        noise: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """Latents from latents x and noise. With `steps` given that many are made, else a part of `p.steps`."""
        strength = min(p.denoising_strength, 0.999)
        total = p.steps if steps is None else max(int(steps / max(strength, 1e-3)), 1)
        made = int(strength * total) if steps is None else steps - 1
        first = max(total - made - 1, 0)
        self.scheduler.set_timesteps(total)
        first = min(first, len(self.scheduler.timesteps) - 1)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        start = self._add_noise(x, noise, first)
        return self._run(p, start, first, conditioning, unconditional_conditioning, image_conditioning, (x, noise))

    def _run(
        self,
        p: Any,
        x: Tensor,
        first: int,
        c: Any,
        uc: Any,
        image_cond: Any,
        origin: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Walk down the timesteps; on interrupt and skip return the image as it is predicted by then."""
        state, scheduler = shared.state, self.scheduler
        timesteps = scheduler.timesteps[first:]
        scale = p.hr_cfg if p.is_hr_pass else p.cfg_scale
        denoiser = CFGDenoiser(p, self.model, scale)
        denoiser.total_steps = state.sampling_steps = len(timesteps)
        extra = self._step_settings(p)
        foreseen = x
        for step, timestep in enumerate(timesteps):
            if state.interrupted or state.skipped:
                return foreseen
            denoiser.step = state.sampling_step = step
            scaled = scheduler.scale_model_input(x, timestep)
            answer = denoiser.predict(scaled, timestep, c, uc, image_cond)
            result = scheduler.step(answer, timestep, x, **extra)
            x = result.prev_sample
            if origin is not None and p.mask is not None:
                x = self._keep_unmasked(p, x, first + step + 1, origin, denoiser, timestep)
            foreseen = getattr(result, "pred_original_sample", None)
            foreseen = x if foreseen is None else foreseen
            state.current_latent = foreseen
        state.sampling_step = len(timesteps)
        return x

    def _step_settings(self, p: Any) -> dict[str, Any]:
        """Noise that a sampler adds at each step comes from each image's own generator."""
        takes = inspect.signature(self.scheduler.step).parameters
        return {"generator": p.rng.generators} if "generator" in takes else {}

    def _add_noise(self, x: Tensor, noise: Tensor, index: int) -> Tensor:
        timestep = self.scheduler.timesteps[index]
        return self.scheduler.add_noise(x, noise, timestep.repeat(len(x)))

    def _keep_unmasked(
        self, p: Any, x: Tensor, following: int, origin: tuple[Tensor, Tensor], denoiser: Any, sigma: Any
    ) -> Tensor:
        """Put the noised original back where the mask is black."""
        from .scripts import MaskBlendArgs

        latent, noise = origin
        done = following >= len(self.scheduler.timesteps)
        kept = latent if done else self._add_noise_at(latent, noise, following)
        blended = x * p.nmask + kept * p.mask
        args = MaskBlendArgs(x, p.nmask, latent, p.mask, blended, denoiser=denoiser, sigma=sigma)
        if p.scripts is not None:
            p.scripts.on_mask_blend(p, args)
        return args.blended_latent

    def _add_noise_at(self, x: Tensor, noise: Tensor, index: int) -> Tensor:
        """As `_add_noise`, for a scheduler that is under way: it takes its own index for the timestep's."""
        fresh = copy.copy(self.scheduler)
        for name in ("_begin_index", "_step_index"):
            if hasattr(fresh, name):
                setattr(fresh, name, None)
        return fresh.add_noise(x, noise, self.scheduler.timesteps[index].repeat(len(x)))


def visible_sampler_names() -> list[str]:
    return [sampler.name for sampler in all_samplers]
