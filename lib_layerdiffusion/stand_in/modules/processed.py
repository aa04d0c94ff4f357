"""What a job ends with: the images and their infotexts, in the form that WebUIs write."""

from __future__ import annotations

import json
from typing import Any

from . import errors, launch_utils, shared
from .infotext_utils import quote

ANSWERED = (
    "seed",
    "subseed",
    "subseed_strength",
    "seed_resize_from_w",
    "seed_resize_from_h",
    "width",
    "height",
    "sampler_name",
    "cfg_scale",
    "steps",
    "batch_size",
    "sd_model_name",
    "sd_model_hash",
    "denoising_strength",
    "extra_generation_params",
    "index_of_first_image",
    "infotexts",
    "styles",
    "job_timestamp",
    "all_prompts",
    "all_negative_prompts",
    "all_seeds",
    "all_subseeds",
)


class Processed:
    """The result of a job. `images` may begin with a grid."""

    def __init__(
        self,
        p: Any,
        images_list: list[Any],
        seed: int = -1,
        info: str = "",
        subseed: int | None = None,
        all_prompts: list[str] | None = None,
        all_negative_prompts: list[str] | None = None,
        all_seeds: list[int] | None = None,
        all_subseeds: list[int] | None = None,
        index_of_first_image: int = 0,
        infotexts: list[str] | None = None,
        comments: str = "",
    ) -> None:
        self.images = images_list
        self.info = info
        self.infotexts = infotexts or [info] * len(images_list)
        self.index_of_first_image = index_of_first_image
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.job_timestamp = shared.state.job_timestamp
        self.all_prompts = all_prompts or p.all_prompts
        self.all_negative_prompts = all_negative_prompts or p.all_negative_prompts
        self.all_seeds = all_seeds or p.all_seeds
        self.all_subseeds = all_subseeds or p.all_subseeds
        for name in ANSWERED:
            if not hasattr(self, name):
                setattr(self, name, getattr(p, name, None))
        self.prompt, self.negative_prompt = self.all_prompts[0], self.all_negative_prompts[0]
        self.seed, self.subseed = int(seed), -1 if subseed is None else int(subseed)

    def js(self) -> str:
        """What the API answers as `info`."""
        names = ("prompt", "negative_prompt", *ANSWERED)
        return json.dumps({name: getattr(self, name) for name in names}, default=lambda _: None)


def create_infotext(
    p: Any,
    all_prompts: list[str],
    all_seeds: list[int],
    all_subseeds: list[int],
    comments: Any = None,
    iteration: int = 0,
    position_in_batch: int = 0,
    use_main_prompt: bool = False,
    index: int | None = None,
    all_negative_prompts: list[str] | None = None,
) -> str:
    """Prompt, negative prompt and parameters of an image.

    A value in `p.extra_generation_params` is a text, a list with one for each image, or a function of this one's
    variables by name.
    """
    if index is None:
        index = position_in_batch + iteration * p.batch_size
    index = 0 if use_main_prompt else index
    negatives = p.all_negative_prompts if all_negative_prompts is None else all_negative_prompts
    prompt_text = p.main_prompt if use_main_prompt else all_prompts[index]
    negative_prompt = p.main_negative_prompt if use_main_prompt else negatives[index]
    params: dict[str, Any] = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        "Schedule type": p.scheduler,
        "CFG scale": p.cfg_scale,
        "Seed": all_seeds[0] if use_main_prompt else all_seeds[index],
        "Variation seed": (all_subseeds[0 if use_main_prompt else index]) if p.subseed_strength else None,
        "Variation seed strength": p.subseed_strength or None,
        "Seed resize from": f"{p.seed_resize_from_w}x{p.seed_resize_from_h}" if p.seed_resize_from_w > 0 else None,
        "Size": f"{p.width}x{p.height}",
        "Model": p.sd_model_name,
        "Clip skip": shared.opts.CLIP_stop_at_last_layers if shared.opts.CLIP_stop_at_last_layers > 1 else None,
        "Tiling": "True" if p.tiling else None,
        "Denoising strength": None,
        **p.extra_generation_params,
        "Version": launch_utils.git_tag() if shared.opts.add_version_to_infotext else None,
    }
    known = {"p": p, "index": index, "prompt_text": prompt_text, "negative_prompt": negative_prompt}
    known |= {"all_prompts": all_prompts, "all_seeds": all_seeds, "all_subseeds": all_subseeds}
    known |= {"use_main_prompt": use_main_prompt}
    for name, value in params.items():
        params[name] = errors.attempt(f'creating infotext for key "{name}"', resolve, value, index, known)
    line = ", ".join(f"{name}: {quote(value)}" for name, value in params.items() if value is not None)
    negative_line = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt_text}{negative_line}\n{line}".strip()


def resolve(value: Any, index: int, known: dict[str, Any]) -> Any:
    """The value of a parameter for one image."""
    if isinstance(value, list):
        return value[index]
    return value(**known) if callable(value) else value
