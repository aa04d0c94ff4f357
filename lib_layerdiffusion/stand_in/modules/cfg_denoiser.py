"""One step's call of the UNet for all conditions of a batch, and the guidance made of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_layerdiffusion.stand_in.model import TIME_IDS

from . import shared
from .prompt_parser import MulticondLearnedConditioning, ScheduledPromptConditioning
from .script_callbacks import CFGDenoiserParams, call


@dataclass(frozen=True)
class Row:
    """A row of the UNet's batch: one condition of one image."""

    image: int
    cond: Any
    weight: float | None  # None: the negative prompt


class CFGDenoiser:
    """Classifier-free guidance over prompts of one or several parts."""

    def __init__(self, p: Any, model: Any, cfg_scale: float) -> None:
        self.p = p
        self.model = model
        self.cfg_scale = cfg_scale
        self.step = 0
        self.total_steps = 0

    def predict(self, x: Tensor, timestep: Tensor, c: MulticondLearnedConditioning, uc: Any, image_cond: Any) -> Tensor:
        """The UNet's guided answer for latents [B, 4, h, w] that are scaled for it."""
        positive = list(order_parts(c))
        negative = [Row(image, take_step(schedule, self.step), None) for image, schedule in enumerate(uc or [])]
        params = CFGDenoiserParams(
            x, image_cond, timestep, self.step, self.total_steps, stack(positive), stack(negative), self
        )
        call("cfg_denoiser", params)
        x = params.x
        answers = self._ask(x, timestep, positive, negative)
        return torch.stack([self._guide(image, answers) for image in range(len(x))])

    def _ask(self, x: Tensor, t: Tensor, positive: list[Row], negative: list[Row]) -> list[tuple[Row, Tensor]]:
        """Call the UNet once for all rows, or twice where positive and negative prompts differ in length."""
        groups = [negative, positive] if shared.traits.uncond_first else [positive, negative]
        groups = [group for group in groups if group]
        if len({length(row.cond) for group in groups for row in group}) == 1:
            groups = [[row for group in groups for row in group]]
        return [(row, answer) for group in groups for row, answer in zip(group, self._call(x, t, group), strict=True)]

    def _call(self, x: Tensor, timestep: Tensor, rows: Sequence[Row]) -> Tensor:
        unet = self.model.model.diffusion_model
        dtype = unet.dtype
        cond = stack(rows)
        extra: dict[str, Any] = {}
        if isinstance(cond, dict):
            vector = cond["vector"].to(unet.device, dtype)
            sizes = {"text_embeds": vector[:, :-TIME_IDS], "time_ids": vector[:, -TIME_IDS:]}
            cond, extra = cond["crossattn"], {"added_cond_kwargs": sizes}
        latents = x[[row.image for row in rows]].to(unet.device, dtype)
        times = timestep.to(unet.device).expand(len(rows))
        answer = unet(latents, times, encoder_hidden_states=cond.to(unet.device, dtype), **extra).sample
        return answer.to(x.device, x.dtype)

    def _guide(self, image: int, answers: Sequence[tuple[Row, Tensor]]) -> Tensor:
        """uncond + cfg * sum of weight * (part - uncond); without uncond the parts' weighted mean."""
        own = [(row, answer) for row, answer in answers if row.image == image]
        parts = [(row.weight, answer) for row, answer in own if row.weight is not None]
        negative = next((answer for row, answer in own if row.weight is None), None)
        if negative is None:
            total = sum(weight for weight, _ in parts)
            return torch.stack([answer * (weight / total) for weight, answer in parts]).sum(0)
        shifts = [weight * (answer - negative) for weight, answer in parts]
        return negative + self.cfg_scale * torch.stack(shifts).sum(0)


def order_parts(c: MulticondLearnedConditioning) -> Iterator[Row]:
    """Rows of the prompts' parts: image by image, or (Forge) all images' first part, then all images' second."""
    rows = [[Row(image, part.schedules[0].cond, part.weight) for part in parts] for image, parts in enumerate(c.batch)]
    order = zip(*rows, strict=False) if shared.traits.uncond_first else rows
    for group in order:
        yield from group


def take_step(schedule: Sequence[ScheduledPromptConditioning], step: int) -> Any:
    """The condition that holds at a step."""
    return next((each.cond for each in schedule if step <= each.end_at_step), schedule[-1].cond)


def stack(rows: Sequence[Row]) -> Any:
    """Rows' conditions as a batch; shorter ones are continued by their last token."""
    if not rows:
        return None
    if isinstance(rows[0].cond, dict):
        names = rows[0].cond
        return {name: torch.stack(_level([row.cond[name] for row in rows])) for name in names}
    return torch.stack(_level([row.cond for row in rows]))


def length(cond: Any) -> int:
    """Tokens of a condition."""
    return (cond["crossattn"] if isinstance(cond, dict) else cond).shape[0]


def _level(tensors: list[Tensor]) -> list[Tensor]:
    longest = max(tensor.shape[0] for tensor in tensors)
    return [torch.cat([each, *[each[-1:]] * (longest - each.shape[0])]) for each in tensors]
