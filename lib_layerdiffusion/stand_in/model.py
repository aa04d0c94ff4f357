"""A diffusers pipeline with the attributes that WebUIs show to scripts as `p.sd_model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lib_layerdiffusion.embedded import EMBEDDED, EMBEDDED_FOLDER
from lib_layerdiffusion.embedded.gallery import find_unknown_words, read_words, tell_unknown_words
from lib_layerdiffusion.hosts.prompts import encode_prompts
from lib_layerdiffusion.refusal import Refusal

TIME_IDS = 6  # numbers for sizes and crop that an SDXL UNet gets together with the pooled text


@dataclass(frozen=True)
class CheckpointInfo:
    """Name of a checkpoint in lists, answers and infotexts."""

    filename: str
    name_for_extra: str
    shorthash: str = ""
    sha256: str = ""

    @property
    def title(self) -> str:
        return self.name_for_extra

    @property
    def model_name(self) -> str:
        return self.name_for_extra


class LoadedModel:
    """A loaded checkpoint. Latents are in sampler space: VAE space times the scaling factor."""

    def __init__(self, pipe: Any, path: Path | str = "embedded") -> None:
        self.pipe = pipe
        self.sd_checkpoint_info = CheckpointInfo(str(path), Path(path).stem)
        self.sd_model_hash = ""
        self.is_sdxl = getattr(pipe, "text_encoder_2", None) is not None
        self.is_sd1 = not self.is_sdxl
        self.is_inpaint = pipe.unet.config.in_channels == 9
        self.model = SimpleNamespace(diffusion_model=pipe.unet)
        self.first_stage_model = pipe.vae
        self.scale_factor = float(pipe.vae.config.scaling_factor)
        self.comments: list[str] = []
        self.extra_generation_params: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.device

    def encode_first_stage(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W], -1..1 to latents, drawn from the posterior by torch's global random numbers."""
        vae = self.pipe.vae
        return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample().float() * self.scale_factor

    def get_first_stage_encoding(self, encoding: Tensor) -> Tensor:
        """Some WebUIs scale only here, so that callers always call both."""
        return encoding

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        """Latents to [B, 3, H, W], about -1..1."""
        vae = self.pipe.vae
        return vae.decode((latents / self.scale_factor).to(vae.device, vae.dtype)).sample.float()

    def get_learned_conditioning(self, texts: Sequence[str], clip_skip: int = 1) -> Tensor | dict[str, Tensor]:
        """Encode prompts to [B, tokens, C]; for SDXL to that as `crossattn`, and `vector` (pooled text, sizes).

        Long prompts take several windows of the text encoder; all get as many as the longest needs. `clip_skip`: the
        text encoder's layer from the end, as WebUIs count; without effect on SDXL, as there.
        """
        layers = self.pipe.text_encoder.config.num_hidden_layers
        if not self.is_sdxl and not 1 <= clip_skip <= layers:
            raise Refusal(f"Clip skip must be from 1 to {layers}, as many layers as this text encoder has.")
        if not getattr(texts, "is_negative_prompt", False):
            self._note_unknown_words(texts)
        encoded = encode_prompts(self.pipe, texts, clip_skip=0 if self.is_sdxl else clip_skip - 1)
        if encoded.pooled is None:
            return encoded.states.float()
        width, height = getattr(texts, "width", None) or 1024, getattr(texts, "height", None) or 1024
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device).expand(len(texts), TIME_IDS)
        return {
            "crossattn": encoded.states.float(),
            "vector": torch.cat([encoded.pooled.float(), sizes.float()], dim=1),
        }

    def _note_unknown_words(self, texts: Sequence[str]) -> None:
        """Say which words of the prompts the embedded model doesn't know: below the pictures and in their infotexts."""
        if self.sd_checkpoint_info.filename != EMBEDDED:
            return
        unknown = find_unknown_words(texts, words := read_words(EMBEDDED_FOLDER))
        if unknown:
            self.comments.append(tell_unknown_words(unknown, words))
            self.extra_generation_params["Unknown words"] = ", ".join(unknown)
