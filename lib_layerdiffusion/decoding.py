"""Decodes transparency in a host: in its precision and sized to its free memory, and elsewhere where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lib_layerdiffusion.host import Host, Measuring
from lib_layerdiffusion.refusal import Refusal, lacks_memory
from lib_layerdiffusion.transparent_vae import VIEW_BYTES, Progress, TransparentDecoder, is_seamless
from lib_layerdiffusion.views import AROUND, NotFiniteError, count_views

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)
SHARE = 0.8  # of what is free: kernels need room of their own, and free memory lies in pieces
AMPLE = 0.25  # of what is free: what more views at once may take
TILE = 512 * 512  # pixels that are decoded at once when nothing is known, or more didn't fit
LARGEST_BATCH = 8  # views

Load: TypeAlias = "Callable[[torch.dtype], TransparentDecoder]"


@dataclass(frozen=True)
class Way:
    """How an image is decoded: the last two arguments are those of `TransparentDecoder.decode`."""

    view_batch: int = 1
    max_pixels: int | None = None  # None: the whole image at once


WHOLE = Way()
TILES = Way(max_pixels=TILE)


@dataclass(frozen=True)
class _Job:
    pixels: Tensor  # [B, 3, H, W], 0..1
    latents: Tensor  # [B, 4, H/8, W/8], VAE space
    views: int
    progress: Progress | None
    seamless: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that are decoded, with what a seamless image is continued by at most."""
        around = 2 * AROUND if self.seamless else 0
        return self.pixels.shape[3] + around, self.pixels.shape[2] + around

    def decode(self, decoder: TransparentDecoder, device: torch.device, way: Way) -> Tensor:
        images: list[Tensor] = []
        for index, (pixel, latent) in enumerate(zip(self.pixels.split(1), self.latents.split(1), strict=True)):
            decoded = decoder.decode(
                pixel.to(device),
                latent.to(device),
                self.views,
                view_batch=way.view_batch,
                max_pixels=way.max_pixels,
                progress=_part(self.progress, index, len(self.latents)),
                seamless=self.seamless,
            )
            images.append(decoded.cpu())
        return torch.cat(images)


def pick_half(host: Host) -> torch.dtype | None:
    """What a host keeps weights in that take part in each step: its own precision where that is half, else None."""
    return host.precision if host.precision in HALF else None


def pick_precision(host: Host) -> torch.dtype:
    """What the transparent decoder computes in: float16 on a GPU where the host computes in half precision.

    With bfloat16, which has 8 bits, alpha and colour of single pixels differ from float32's by several 255ths; with
    float16 by less than one (docs/benchmarks.md). Both take the same memory.
    """
    return torch.float16 if pick_half(host) and host.device.type != "cpu" else torch.float32


def find_free(host: Host) -> int | None:
    """Bytes of the host's GPU that are free, with those that torch keeps for later; None where nobody knows."""
    device = host.device
    if device.type == "cpu":
        return None
    if isinstance(host, Measuring):
        return host.free_memory()
    backend: Any = getattr(torch, device.type, None)
    if not hasattr(backend, "mem_get_info"):
        return None
    try:
        kept = backend.memory_reserved(device) - backend.memory_allocated(device)
        return backend.mem_get_info(device)[0] + kept
    except RuntimeError:  # of some devices' drivers
        return None


def choose_way(decoder: TransparentDecoder, size: tuple[int, int], views: int, free: int | None) -> Way:
    """How an image of `size` (width, height) is decoded in `free` bytes, beside the decoder's weights.

    Whole where it fits, in half precision with as many views at once as take little of what is free; otherwise in the
    largest tiles that fit. In float32 views are computed one by one, so that a picture has the same bytes everywhere.
    """
    if free is None:
        return WHOLE
    whole = decoder.estimate_memory(*size, views)
    if whole <= SHARE * free:
        batches = (LARGEST_BATCH, 4, 2) if decoder.conv_in.weight.dtype in HALF else ()
        fitting = (
            n for n in batches if n <= count_views(views) and decoder.estimate_memory(*size, views, n) <= AMPLE * free
        )
        return Way(view_batch=next(fitting, 1))
    pixels = size[0] * size[1]
    tile = int((SHARE * free - VIEW_BYTES * pixels) * pixels / whole)  # beside what becomes the whole
    logger.info("%.1f GB are free, so the transparency is decoded in tiles.", free / 1e9)
    return Way(max_pixels=max(TILE, tile))


def decode_as_fits(
    host: Host, load: Load, pixels: Tensor, latents: Tensor, views: int, progress: Progress | None = None
) -> Tensor:
    """Decode pixels [B, 3, H, W], 0..1, and VAE-space latents [B, 4, H/8, W/8] to [B, 4, H, W], 0..1, alpha first.

    `load` gives the decoder in a precision. On the host's device, again in float32 where half precision doesn't
    suffice, in small tiles where memory doesn't, and then on the processor. Refusal when that has too little, too.
    """
    job = _Job(pixels, latents, views, progress, is_seamless(host.vae))
    precision = pick_precision(host)
    try:
        try:
            return _decode_on_device(host, load(precision), job)
        except NotFiniteError:
            if precision == torch.float32:
                raise
            logger.warning("Half precision doesn't suffice to decode the transparency, so it is done in float32.")
        return _decode_on_device(host, load(torch.float32), job)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        logger.warning("Memory doesn't suffice to decode in tiles either, so the processor does it.")
    try:
        return job.decode(load(torch.float32).cpu(), torch.device("cpu"), TILES)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise Refusal(
            "There isn't enough memory to decode the transparency, neither on the GPU nor in main memory: make the "
            "image smaller or the batch, or close other programs."
        ) from None


def _decode_on_device(host: Host, decoder: TransparentDecoder, job: _Job) -> Tensor:
    room = int(decoder.estimate_memory(*job.size, job.views) / SHARE)
    with host.on_device(decoder, room) as device:
        try:
            return job.decode(decoder, device, choose_way(decoder, job.size, job.views, find_free(host)))
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            logger.warning("Memory doesn't suffice to decode the whole image at once, so it is done in tiles.")
        return job.decode(decoder, device, TILES)


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    """Report one of `count` equal jobs as a part of all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, count * total)
