"""The transparent autoencoder: from transparency to a latent offset, and from a latent to alpha and colour.

LayerDiffusion, arXiv 2402.17113, section 3.1. Parameter names and shapes are those of the published files
`vae_transparent_encoder`, `vae_transparent_decoder` and their `layer_sd15_` counterparts, which load strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .refusal import Refusal

LEVELS = 7
STRIDE = 2 ** (LEVELS - 1)  # a side of the image that forward() takes is a multiple of this
LATENT_STRIDE = 8
LATENT_LEVEL = 3  # the level whose resolution is that of the latent
ATTENTION_LEVELS = 3  # the deepest levels have attention
GROUPS = 4  # of the normalisation; widths are multiples of it
TILE_OVERLAP = 64  # pixels that neighbouring tiles share

Progress = Callable[[int, int], bool | None]
"""Called with (views done, views in all) after each batch of views; False cancels, and so does raising."""

View = tuple[bool, int]  # (mirrored left to right, then turned by so many quarters)

# Any prefix of 1, 2, 4 or 8 views is a balanced choice: the first two cover both ends of the stride-2 convolutions'
# sampling grid, the first four all four corners of it, and those keep the shape of a non-square image.
VIEWS: tuple[View, ...] = (
    (False, 0),
    (False, 2),
    (True, 0),
    (True, 2),
    (False, 1),
    (False, 3),
    (True, 1),
    (True, 3),
)


_Network = TypeVar("_Network", bound=nn.Module)


class Cancelled(Exception):
    """Decoding stopped because the progress callback returned False; nothing is wrong with the request."""


@dataclass
class _Report:
    """Counts the views that are done and asks the callback whether to go on."""

    progress: Progress | None
    total: int
    done: int = 0

    def advance(self, views: int) -> None:
        self.done += views
        if self.progress is not None and self.progress(self.done, self.total) is False:
            raise Cancelled(f"Decoding was cancelled after {self.done} of {self.total} views.")


@dataclass(frozen=True)
class _Span:
    """A tile's extent along one axis, in pixels, and whether neighbours overlap its ends."""

    start: int
    stop: int
    fades_in: bool
    fades_out: bool

    def weigh(self) -> Tensor:
        """Weights [stop - start] that rise and fall linearly over the overlaps."""
        weights = torch.ones(self.stop - self.start)
        ramp = torch.arange(1, TILE_OVERLAP + 1) / (TILE_OVERLAP + 1)
        if self.fades_in:
            weights[:TILE_OVERLAP] *= ramp
        if self.fades_out:
            weights[-TILE_OVERLAP:] *= ramp.flip(0)
        return weights


@dataclass(frozen=True)
class _Tile:
    rows: _Span
    columns: _Span

    def cut(self, x: Tensor, scale: int = 1) -> Tensor:
        """A view of this tile in x [..., H/scale, W/scale]."""
        rows, columns = (slice(span.start // scale, span.stop // scale) for span in (self.rows, self.columns))
        return x[..., rows, columns]

    def weigh(self) -> Tensor:
        """Blending weights [H, W]."""
        return self.rows.weigh()[:, None] * self.columns.weigh()


class _Resnet(nn.Module):
    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-5)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-5)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
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
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """One level of the U-Net: its resnets, each followed by attention where the level has any, and the resampling."""

    def __init__(self, resnets: Sequence[_Resnet], attentions: Sequence[_Attention]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def refine(self, x: Tensor, i: int) -> Tensor:
        """Resnet `i` and its attention."""
        x = self.resnets[i](x)
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
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> TransparentDecoder:
        """Build the network that the tensors belong to, in float32; Refusal when they aren't those of a decoder."""
        names = [f"down_blocks.{level}.resnets.0.conv1.weight" for level in range(LEVELS)]
        widths = _read_widths(state, names, "transparent decoder", GROUPS)
        with torch.device("meta"):
            decoder = cls(widths)
        return _load(decoder, state, "transparent decoder")

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
                h = block.refine(h, i)
                skips.append(h)
            if block.downsamplers is not None:
                h = block.downsamplers[0](h)
                skips.append(h)
        h = self.mid_block(h)
        for block in cast("Iterable[_Level]", self.up_blocks):
            for i in range(len(block.resnets)):
                h = block.refine(torch.cat([h, skips.pop()], dim=1), i)
            if block.upsamplers is not None:
                h = block.upsamplers[0](h)
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
    ) -> Tensor:
        """Decode an image of any size as the per-element lower median over mirrored and turned views, clipped to 0..1.

        pixel: [B, 3, H, W] 0..1, the image that the VAE decoded. latent: [B, 4, ceil(H/8), ceil(W/8)] in VAE space.
        Returns [B, 4, H, W] float32 on pixel's device: alpha, then straight colour.

        views: 1, 2, 4 or 8, the first so many of `VIEWS`; fewer are faster and rougher.
        view_batch: how many views go through the network at once; more need more memory.
        max_pixels: an image with more pixels is decoded in overlapping tiles that are blended into each other. The
            network's normalisation and attention then see one tile at a time, so the result differs a little.
        progress: see `Progress`; Cancelled when it returns False.
        Refusal when shapes or values can't be decoded.
        """
        if views not in (1, 2, 4, 8):
            raise Refusal(f"The transparent decoder takes 1, 2, 4 or 8 views, not {views}: choose one of these.")
        if view_batch is not None and view_batch < 1:
            raise Refusal(f"view_batch is how many views run at once, so {view_batch} can't be served: use 1 or more.")
        if max_pixels is not None and max_pixels < 1:
            raise Refusal(
                f"max_pixels is the size of a tile, so {max_pixels} can't be served: use {STRIDE**2} or more."
            )
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
        device, (height, width) = pixel.device, pixel.shape[-2:]
        weight = self.conv_in.weight
        rows, columns = (-(-side // STRIDE) * STRIDE for side in (height, width))
        pixel = pixel.to(weight.device, weight.dtype).clamp(0, 1)
        latent = latent.to(weight.device, weight.dtype)
        pixel = _mirror_to(pixel, LATENT_STRIDE * latent.shape[-2], LATENT_STRIDE * latent.shape[-1])
        pixel = _mirror_to(pixel, rows, columns)
        latent = _mirror_to(latent, rows // LATENT_STRIDE, columns // LATENT_STRIDE)

        if weight.device.type == "cpu":  # its convolutions are faster when a pixel's channels lie side by side
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        tiles = _split(rows, columns, max_pixels)
        report = _Report(progress, views * len(tiles))
        if len(tiles) == 1:
            decoded = self._decode_tile(pixel, latent, views, view_batch, report)
        else:
            decoded = self._decode_tiles(pixel, latent, tiles, views, view_batch, report)
        return decoded[..., :height, :width].to(device)

    def _decode_tiles(
        self, pixel: Tensor, latent: Tensor, tiles: Sequence[_Tile], views: int, view_batch: int | None, report: _Report
    ) -> Tensor:
        total = torch.zeros_like(pixel[:, :1], dtype=torch.float32).repeat(1, 4, 1, 1)
        weights = torch.zeros_like(total[:1, :1])
        for tile in tiles:
            decoded = self._decode_tile(tile.cut(pixel), tile.cut(latent, LATENT_STRIDE), views, view_batch, report)
            weight = tile.weigh().to(total)
            tile.cut(total).add_(decoded * weight)
            tile.cut(weights).add_(weight)
        return total / weights

    def _decode_tile(
        self, pixel: Tensor, latent: Tensor, views: int, view_batch: int | None, report: _Report
    ) -> Tensor:
        decoded: list[Tensor] = []
        for batch in _batch_views(VIEWS[:views], pixel, view_batch):
            turned = (
                torch.cat([_turn(pixel, view) for view in batch]),
                torch.cat([_turn(latent, view) for view in batch]),
            )
            output = self(*turned).float().clamp_(0, 1)
            decoded += [_turn_back(part, view) for part, view in zip(output.chunk(len(batch)), batch, strict=True)]
            report.advance(len(batch))
        return _lower_median(decoded)


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


def _load(network: _Network, state: Mapping[str, Tensor], name: str) -> _Network:
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
    network.to_empty(device="cpu").float()
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


def _mirror_to(x: Tensor, rows: int, columns: int) -> Tensor:
    """Extend [..., H, W] to the bottom and right by its mirror image, edge included, as often as it takes."""
    for dim, size in ((-2, rows), (-1, columns)):
        side = x.shape[dim]
        if size > side:
            index = torch.arange(size, device=x.device) % (2 * side)
            x = x.index_select(dim, torch.minimum(index, 2 * side - 1 - index))
    return x


def _split(rows: int, columns: int, max_pixels: int | None) -> list[_Tile]:
    """Tiles that cover an image whose sides are multiples of 64, none larger than max_pixels unless it is 128 x 128."""
    sides, counts = [rows, columns], [1, 1]
    smallest = 2 * TILE_OVERLAP
    while max_pixels is not None and sides[0] * sides[1] > max_pixels and max(sides) > smallest:
        axis = int(sides[1] > sides[0])
        counts[axis] += 1
        length = (rows, columns)[axis] + (counts[axis] - 1) * TILE_OVERLAP
        sides[axis] = max(smallest, -(-length // counts[axis] // STRIDE) * STRIDE)
    spans = [_spread(size, side) for size, side in zip((rows, columns), sides, strict=True)]
    return [_Tile(row, column) for row in spans[0] for column in spans[1]]


def _spread(size: int, side: int) -> list[_Span]:
    """As few spans of length `side` as overlap by TILE_OVERLAP or more, evenly over 0..size, on the latent's grid."""
    last = size - side
    count = 1 + -(-last // (side - TILE_OVERLAP)) if last else 1
    starts = [last * i // max(1, count - 1) // LATENT_STRIDE * LATENT_STRIDE for i in range(count)]
    return [_Span(start, start + side, start > 0, start < last) for start in starts]


def _turn(x: Tensor, view: View) -> Tensor:
    mirrored, quarters = view
    return torch.rot90(x.flip(-1) if mirrored else x, quarters, (-2, -1))


def _turn_back(x: Tensor, view: View) -> Tensor:
    mirrored, quarters = view
    x = torch.rot90(x, -quarters, (-2, -1))
    return x.flip(-1) if mirrored else x


def _batch_views(views: Sequence[View], pixel: Tensor, size: int | None) -> Iterator[list[View]]:
    """Views that can run together: at most `size` at once, and of the same shape."""
    if size is None:
        size = 1
    batch: list[View] = []
    for view in views:
        turns_shape = pixel.shape[-1] != pixel.shape[-2] and batch and (view[1] - batch[-1][1]) % 2
        if len(batch) == size or turns_shape:
            yield batch
            batch = []
        batch.append(view)
    yield batch


def _lower_median(values: Sequence[Tensor]) -> Tensor:
    """Per element, the lower of the two middle values of 2, 4 or 8 tensors, as torch.median has it; of 1, itself.

    By minimum and maximum only: faster than a median along a stacked dimension, and the same on every device.
    """
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    ascending, descending = _sort(values[:middle]), _sort(values[middle:])[::-1]
    # pairing the halves in opposite order, the smaller ones of all pairs are the lower half of all values
    result = torch.minimum(ascending[0], descending[0])
    for a, b in zip(ascending[1:], descending[1:], strict=True):
        result = torch.maximum(result, torch.minimum(a, b))
    return result


def _sort(values: Sequence[Tensor]) -> list[Tensor]:
    """Per element, the values in ascending order."""
    ordered = list(values)
    for end in range(len(ordered) - 1, 0, -1):
        for i in range(end):
            a, b = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = torch.minimum(a, b), torch.maximum(a, b)
    return ordered
