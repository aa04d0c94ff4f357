"""What differs between the WebUIs that the stand-in can act like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """How one WebUI treats scripts where others do otherwise."""

    name: str
    keeps_latents: bool  # `p.latents_after_sampling` and `p.pixels_after_sampling` are filled
    image_index: bool  # hooks for one image get its `index` in the whole job
    init_images_hook: bool  # `before_process_init_images` is called in `p.init`
    hires_sampling_hooks: int  # calls of `process_before_every_sampling` in the second pass of hires fix
    uncond_first: bool  # order of the UNet's rows
    uncond_at_cfg_1: bool  # the negative prompt is computed even where it has no effect
    stealth_infotext: bool  # saving writes the infotext into the alpha channel, which makes the image opaque


FORGE = Traits(
    name="Forge",
    keeps_latents=True,
    image_index=True,
    init_images_hook=True,
    hires_sampling_hooks=2,
    uncond_first=True,
    uncond_at_cfg_1=False,
    stealth_infotext=True,
)
A1111 = Traits(
    name="A1111",
    keeps_latents=False,
    image_index=False,
    init_images_hook=False,
    hires_sampling_hooks=1,
    uncond_first=False,
    uncond_at_cfg_1=True,
    stealth_infotext=False,
)
