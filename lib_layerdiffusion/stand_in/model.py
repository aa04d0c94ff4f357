"""A diffusers pipeline with the attributes that WebUIs show to scripts as `p.sd_model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

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

    def get_learned_conditioning(self, texts: Sequence[str]) -> Tensor | dict[str, Tensor]:
        """Encode prompts to [B, tokens, C]; for SDXL to that as `crossattn`, and `vector` (pooled text, sizes).

        Long prompts take several windows of the text encoder; all get as many as the longest needs.
        """
        pipe = self.pipe
        if not self.is_sdxl:
            windows = encode_windows(pipe.tokenizer, pipe.text_encoder, texts)
            return torch.cat([output.last_hidden_state for output in windows], dim=1).float()
        both = [
            encode_windows(pipe.tokenizer, pipe.text_encoder, texts),
            encode_windows(pipe.tokenizer_2, pipe.text_encoder_2, texts),
        ]
        states = [torch.cat([output.hidden_states[-2] for output in windows], dim=1) for windows in both]
        width, height = getattr(texts, "width", None) or 1024, getattr(texts, "height", None) or 1024
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device).expand(len(texts), TIME_IDS)
        shortest = min(state.shape[1] for state in states)
        return {
            "crossattn": torch.cat([state[:, :shortest] for state in states], dim=-1).float(),
            "vector": torch.cat([both[1][0].text_embeds.float(), sizes.float()], dim=1),
        }


def encode_windows(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> list[Any]:
    """The text encoder's outputs for each window of the prompts' tokens, all prompts at once."""
    length: int = tokenizer.model_max_length
    inside = length - 2  # without the tokens for begin and end
    tokens = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    count = max([1, *(-(-len(each) // inside) for each in tokens)])
    windows: list[Any] = []
    for first in range(0, count * inside, inside):
        rows = [each[first : first + inside] for each in tokens]
        rows = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
        padded = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]
        windows.append(encoder(torch.tensor(padded, device=encoder.device), output_hidden_states=True))
    return windows
