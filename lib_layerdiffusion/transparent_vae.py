"""The transparent autoencoder: from transparency to a latent offset, and from a latent to alpha and colour.

LayerDiffusion, arXiv 2402.17113, section 3.1. Parameter names and shapes are those of the published files
`vae_transparent_encoder`, `vae_transparent_decoder` and their `layer_sd15_` counterparts, which load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import strips
from .refusal import Refusal
from .views import AROUND, LATENT_STRIDE, STRIDE, Cancelled, Progress, continue_around, count_views, decode

__all__ = ["Cancelled", "Progress", "TransparentDecoder", "TransparentEncoder"]

LEVELS = 7  # so that the sides of what forward() takes are multiples of 2 ** 6 = STRIDE
LATENT_LEVEL = 3  # the level whose resolution is that of the latent
ATTENTION_LEVELS = 3  # the deepest levels have attention
GROUPS = 4  # of the normalisation; widths are multiples of it
PASS_BYTES = 80  # for each pixel of a pass, beside its activations: the view that goes in, and what kernels need
VIEW_BYTES = 24  # for each pixel of a view: four channels in float32, and what their median takes

_Network = TypeVar("_Network", bound=nn.Module)


class _Resnet(nn.Module):
    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-5)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-5)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, *parts: Tensor) -> Tensor:
        """The input [B, C, H, W], in the parts that `_Level.join` makes of it -> [B, width, H, W]."""
        if strips.pay_off(parts, self.conv1):
            return strips.refine(parts, (self.norm1, self.norm2), (self.conv1, self.conv2), self.conv_shortcut)
        (x,) = parts
        h = self.conv1(_activate(self.norm1(x)))
        h = self.conv2(_activate(self.norm2(h)))
        return _add(h, x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    def __init__(self, width: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.group_norm = nn.GroupNorm(groups, width, eps=1e-5)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, H*W, C]
        q, k, v = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return _add(self.to_out[0](h).transpose(1, 2).unflatten(-1, x.shape[-2:]), x)


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if strips.pay_off([x], self.conv):
            return strips.enlarge(x, self.conv)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """One level of the U-Net: its resnets, each followed by attention where the level has any, and the resampling."""

    def __init__(self, resnets: Sequence[_Resnet], attentions: Sequence[_Attention]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def join(self, i: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """The input of resnet `i`, of which each part has a share of the channels; whole but where it needn't be."""
        resnet = cast("_Resnet", self.resnets[i])
        return parts if strips.pay_off(parts, resnet.conv1) else (torch.cat(parts, dim=1),)

    def refine(self, i: int, *parts: Tensor) -> Tensor:
        """Resnet `i` and its attention."""
        x = self.resnets[i](*parts)
        return x if self.attentions is None else self.attentions[i](x)


class _Middle(nn.Module):
    def __init__(self, width: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([_Attention(width, head_dim, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class TransparentDecoder(nn.Module):
    """From the decoded image and its latent to alpha and straight foreground colour (arXiv 2402.17113, section 3.1).

    The latent is in VAE space: what the sampler ends with, divided by the model's scaling factor.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 32, 64, 128, 256, 512, 512),
        head_dim: int = 8,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        if len(widths) != LEVELS:
            raise ValueError(
                f"the transparent decoder has {LEVELS} levels, so it takes that many widths, not {len(widths)}"
            )

        def attentions(level: int, count: int) -> list[_Attention]:
            has_attention = level >= LEVELS - ATTENTION_LEVELS
            return [_Attention(widths[level], head_dim, groups) for _ in range(count if has_attention else 0)]

        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.latent_conv_in = nn.Conv2d(4, widths[LATENT_LEVEL - 1], 1)
        nn.init.zeros_(self.latent_conv_in.weight)
        nn.init.zeros_(self.latent_conv_in.bias)  # pyright: ignore[reportArgumentType]  (typed as optional in torch)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            resnets = [_Resnet(skips[-1], width, groups), _Resnet(width, width, groups)]
            block = _Level(resnets, attentions(level, 2))
            skips += [width] * 2
            if level < LEVELS - 1:
                block.downsamplers = nn.ModuleList([_Downsample(width)])
                skips.append(width)
            self.down_blocks.append(block)

        self.mid_block = _Middle(widths[-1], head_dim, groups)

        self.up_blocks = nn.ModuleList()
        current = widths[-1]
        for level in reversed(range(LEVELS)):
            resnets: list[_Resnet] = []
            for _ in range(3):
                resnets.append(_Resnet(current + skips.pop(), widths[level], groups))
                current = widths[level]
            block = _Level(resnets, attentions(level, 3))
            if level > 0:
                block.upsamplers = nn.ModuleList([_Upsample(current)])
            self.up_blocks.append(block)

        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> TransparentDecoder:
        """Build the network that the tensors belong to, in `dtype`; Refusal when they aren't those of a decoder."""
        names = [f"down_blocks.{level}.resnets.0.conv1.weight" for level in range(LEVELS)]
        widths = _read_widths(state, names, "transparent decoder", GROUPS)
        with torch.device("meta"):
            decoder = cls(widths)
        return _load(decoder, state, "transparent decoder", dtype)

    def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
        """One pass: pixel [B, 3, H, W] 0..1 and latent [B, 4, H/8, W/8] in VAE space -> [B, 4, H, W], unclipped.

        Channel 0 is alpha, 1 to 3 are straight colour. H and W are multiples of 64, else Refusal; `decode` takes any
        size.
        """
        _check_shapes(pixel, latent)
        if pixel.shape[-2] % STRIDE or pixel.shape[-1] % STRIDE:
            raise Refusal(
                f"One pass of the transparent decoder takes sides that are multiples of {STRIDE}, not "
                f"{pixel.shape[-1]}x{pixel.shape[-2]}: call decode(), which takes any size."
            )
        h = self.conv_in(pixel)
        skips = [h]
        for level, block in enumerate(cast("Iterable[_Level]", self.down_blocks)):
            if level == LATENT_LEVEL:
                h = h + self.latent_conv_in(latent)
            for i in range(len(block.resnets)):
                h = block.refine(i, h)
                skips.append(h)
            if block.downsamplers is not None:
                h = block.downsamplers[0](h)
                skips.append(h)
        h = self.mid_block(h)
        for block in cast("Iterable[_Level]", self.up_blocks):
            for i in range(len(block.resnets)):
                parts = block.join(i, h, skips.pop())
                del h  # which may be a copy's original
                h = block.refine(i, *parts)
                del parts
            if block.upsamplers is not None:
                h = block.upsamplers[0](h)
        if strips.pay_off([h], self.conv_out):
            return strips.convolve(h, self.conv_norm_out, self.conv_out)
        return self.conv_out(_activate(self.conv_norm_out(h)))

    @torch.no_grad()
    def decode(
        self,
        pixel: Tensor,
        latent: Tensor,
        views: int = 8,
        view_batch: int | None = None,
        max_pixels: int | None = None,
        progress: Progress | None = None,
        seamless: bool = False,
    ) -> Tensor:
        """Decode an image of any size as the per-element median over mirrored and turned views, clipped to 0..1.

        pixel: [B, 3, H, W] 0..1, the image that the VAE decoded. latent: [B, 4, ceil(H/8), ceil(W/8)] in VAE space.
        Returns [B, 4, H, W] float32 on pixel's device: alpha, then straight colour.

        views: 1, 2, 4 or 8, the first so many of `VIEWS`; fewer are faster and rougher. 0 takes 2, and all 8 for those
            images, or tiles of them, where two don't agree. See `views.decode`.
        view_batch: how many views go through the network at once; more need more memory.
        max_pixels: an image with more pixels is decoded in overlapping tiles that are blended into each other. The
            network's normalisation and attention then see one tile at a time, so the result differs a little.
        progress: see `Progress`; Cancelled when it returns False.
        seamless: each side continues at the opposite one, as in a texture that is to be repeated. Exact where the
            whole image is decoded at once and its sides are multiples of 64.
        Refusal when shapes or values can't be decoded.
        """
        _check_shapes(pixel, latent)
        if not pixel.is_floating_point():
            raise Refusal(
                f"The image to decode has values 0..1, not {pixel.dtype}: convert it to float and divide by 255."
            )
        for name, values in (("image", pixel), ("latent", latent)):
            if not bool(torch.isfinite(values).all()):
                raise Refusal(
                    f"The {name} to decode contains NaN or infinite values: run the model or its VAE in float32 or "
                    "bfloat16 (for example with --no-half-vae) and generate again."
                )
        weight = self.conv_in.weight
        if weight.device.type == "cpu":  # its convolutions are faster when a pixel's channels lie side by side
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        given = pixel.to(weight.device, weight.dtype).clamp(0, 1), latent.to(weight.device, weight.dtype)
        if not seamless:
            return decode(self, *given, views, view_batch, max_pixels, progress).to(pixel.device)
        height, width = pixel.shape[-2:]
        if height % STRIDE or width % STRIDE or (max_pixels is not None and height * width > max_pixels):
            continued = continue_around(*given)
            decoded = decode(self, *continued, views, view_batch, max_pixels, progress)
            return decoded[..., AROUND : AROUND + height, AROUND : AROUND + width].to(pixel.device)
        with wrapping(self):
            return decode(self, *given, views, view_batch, max_pixels, progress).to(pixel.device)

    def estimate_memory(self, width: int, height: int, views: int = 8, view_batch: int = 1) -> int:
        """Bytes that `decode` takes at its peak, beside the weights, for one image that isn't cut into tiles.

        The peak is in the last level's first resnet: its input (of both levels' widths), that normalised, its result,
        and two waiting skips. The deeper levels take less, and so does attention where torch computes it in parts, as
        it does on CUDA, ROCm and the processor.
        """
        pixels = math.prod(-(-side // STRIDE) * STRIDE for side in (width, height))
        own, below = (len(self.get_parameter(f"down_blocks.{level}.resnets.0.conv1.weight")) for level in (0, 1))
        activations = (5 * own + 2 * below) * self.conv_in.weight.element_size()
        return pixels * (view_batch * (activations + PASS_BYTES) + count_views(views) * VIEW_BYTES)


class TransparentEncoder(nn.Module):
    """From alpha and padded colour to a raw latent offset (arXiv 2402.17113, section 3.1).

    The adjusted latent, in VAE space, is mean + std * (factor * forward(x)), where mean and std are the VAE's posterior
    of the image composited on mid-grey.
    """

    factor: float = 300.0

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(4, widths[0], 3, padding=1), nn.SiLU()]
        for width, wider in pairwise(widths):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(width, wider, 3, padding=1, stride=2), nn.SiLU()]
        last = nn.Conv2d(widths[-1], 4, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]  (typed as optional in torch)
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.SiLU(), last]
        self.blocks = nn.Sequential(*layers)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> TransparentEncoder:
        """Build the network that the tensors belong to, in float32; Refusal when they aren't those of an encoder."""
        widths = _read_widths(state, [f"blocks.{i}.weight" for i in (0, 4, 8, 12)], "transparent encoder")
        with torch.device("meta"):
            encoder = cls(widths)
        return _load(encoder, state, "transparent encoder")

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 4, H, W], alpha then padded RGB, 0..1, H and W multiples of 8 -> raw offset [B, 4, H/8, W/8]."""
        if x.ndim != 4 or x.shape[1] != 4 or x.shape[2] % LATENT_STRIDE or x.shape[3] % LATENT_STRIDE:
            raise Refusal(
                f"The transparent encoder takes [B, 4, H, W] (alpha, then padded RGB) with sides that are multiples of "
                f"{LATENT_STRIDE}, not {list(x.shape)}: fit the image to such a size."
            )
        return self.blocks(x)


@contextmanager
def wrapping(network: nn.Module) -> Iterator[None]:
    """Let a network's convolutions continue at the opposite side of the image, instead of with zeros."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        convolution.padding_mode = "circular"
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.padding_mode = "zeros"


def is_seamless(network: nn.Module) -> bool:
    """Whether a network continues at the opposite side of the image, as the WebUIs' "Tiling" makes it."""
    return any(isinstance(module, nn.Conv2d) and module.padding_mode == "circular" for module in network.modules())


def _activate(x: Tensor) -> Tensor:
    """SiLU, in place where no gradient needs the input."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _add(x: Tensor, residual: Tensor) -> Tensor:
    """The sum, in place of `x` where no gradient needs it."""
    return x + residual if torch.is_grad_enabled() else x.add_(residual)


def _read_widths(state: Mapping[str, Tensor], names: Sequence[str], network: str, groups: int = 1) -> list[int]:
    """Output widths of the convolutions `names`, multiples of `groups`; Refusal when the tensors can't be such."""
    missing = [name for name in names if name not in state]
    if missing:
        raise Refusal(
            f"These weights aren't a {network}'s, since {missing[0]} isn't among their {len(state)} tensors: "
            f"give the file that the layer mode names as its {network}."
        )
    for name in names:
        shape = list(state[name].shape)
        if len(shape) != 4 or 0 in shape or shape[0] % groups:
            raise Refusal(
                f"These weights aren't a {network}'s, since {name} is {shape}: "
                f"download the file again, or give the one that the layer mode names as its {network}."
            )
    return [state[name].shape[0] for name in names]


def _load(network: _Network, state: Mapping[str, Tensor], name: str, dtype: torch.dtype = torch.float32) -> _Network:
    """Copy the tensors into `network`, which was built on the meta device; strict about names and shapes."""
    expected = network.state_dict()
    for key in [*expected, *state]:
        found = list(state[key].shape) if key in state else "absent"
        wanted = list(expected[key].shape) if key in expected else "absent"
        if found != wanted:
            raise Refusal(
                f"These weights aren't a {name}'s, since {key} is {found} and should be {wanted}: "
                f"download the file again, or give the one that the layer mode names as its {name}."
            )
    network.to(dtype).to_empty(device="cpu")
    network.load_state_dict(dict(state))
    return network.eval()


def _check_shapes(pixel: Tensor, latent: Tensor) -> None:
    expected = None
    if pixel.ndim == 4 and pixel.shape[1] == 3 and pixel.numel():
        sides = [-(-side // LATENT_STRIDE) for side in pixel.shape[-2:]]
        expected = [pixel.shape[0], 4, *sides]
    if expected is None or list(latent.shape) != expected:
        raise Refusal(
            f"The transparent decoder takes an image [B, 3, H, W] and its latent [B, 4, H/8, W/8], not "
            f"{list(pixel.shape)} and {list(latent.shape)}: give the latent that this very image was decoded from."
        )
