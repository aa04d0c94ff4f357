"""Decoding of an image of any size: the median over mirrored and turned views, in tiles where memory is short.

LayerDiffusion, arXiv 2402.17113, section 3.1, and the published decoder's own use. Nothing here knows the network that
decodes one view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .options import AS_NEEDED, VIEW_COUNTS
from .refusal import Refusal

STRIDE = 64  # the sides of what the network takes are multiples of this
LATENT_STRIDE = 8  # pixels for each side of a latent's element
AROUND = 64  # pixels by which a seamless image is continued on each side
TILE_OVERLAP = 64  # pixels that neighbouring tiles share
SETTLED = 1 / 255  # mean difference of two views' alpha, up to which all eight change it by about a third as much

Network: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""One pass: pixel [B, 3, H, W] 0..1 and latent [B, 4, H/8, W/8] -> [B, 4, H, W], H and W multiples of STRIDE."""

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


class Cancelled(Exception):
    """Decoding stopped because the progress callback returned False; nothing is wrong with the request."""


class NotFiniteError(Refusal):
    """The network produced NaN or infinite values: its weights are damaged, or its precision doesn't suffice."""


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


def decode(
    network: Network,
    pixel: Tensor,
    latent: Tensor,
    views: int = 8,
    view_batch: int | None = None,
    max_pixels: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The per-element median over the first `views` of VIEWS, clipped to 0..1: [B, 4, H, W] float32.

    Of 4 and 8 it is the lower of the two middle values, as the published decoder's; of 2 their mean. With AS_NEEDED
    it is that of 2, or of all 8 for those images and tiles where the alpha of two isn't the same yet.

    pixel [B, 3, H, W] 0..1 and latent [B, 4, ceil(H/8), ceil(W/8)] are on the network's device and of its dtype. The
    other arguments are those of `TransparentDecoder.decode`. Refusal when views, view_batch or max_pixels aren't
    allowed, NotFiniteError when the network yields no numbers; Cancelled when `progress` returns False.
    """
    if isinstance(views, bool) or views not in VIEW_COUNTS:
        raise Refusal(f"The transparent decoder takes one of the numbers 0, 1, 2, 4 and 8 as views, not {views!r}.")
    if view_batch is not None and view_batch < 1:
        raise Refusal(f"view_batch is how many views run at once, so {view_batch} can't be served: use 1 or more.")
    if max_pixels is not None and max_pixels < 1:
        raise Refusal(f"max_pixels is the size of a tile, so {max_pixels} can't be served: use {STRIDE**2} or more.")
    height, width = pixel.shape[-2:]
    rows, columns = (-(-side // STRIDE) * STRIDE for side in (height, width))
    pixel = _mirror_to(pixel, LATENT_STRIDE * latent.shape[-2], LATENT_STRIDE * latent.shape[-1])
    pixel = _mirror_to(pixel, rows, columns)
    latent = _mirror_to(latent, rows // LATENT_STRIDE, columns // LATENT_STRIDE)
    tiles = _split(rows, columns, max_pixels)
    report = _Report(progress, count_views(views) * len(tiles))
    if len(tiles) == 1:
        decoded = _decode_tile(network, pixel, latent, views, view_batch or 1, report)
    else:
        decoded = _decode_tiles(network, pixel, latent, tiles, views, view_batch or 1, report)
    return decoded[..., :height, :width]


def count_views(views: int) -> int:
    """How many views are decoded at most."""
    return len(VIEWS) if views == AS_NEEDED else views


def continue_around(pixel: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Continue a seamless image [B, 3, H, W] and its latent by AROUND pixels on each side, from the opposite ones."""
    pixel = _mirror_to(pixel, LATENT_STRIDE * latent.shape[-2], LATENT_STRIDE * latent.shape[-1])
    return _repeat(pixel, AROUND), _repeat(latent, AROUND // LATENT_STRIDE)


def _repeat(x: Tensor, around: int) -> Tensor:
    """[..., H, W] repeated at its sides: [..., H + 2 * around, W + 2 * around]."""
    for dim in (-2, -1):
        index = torch.arange(-around, x.shape[dim] + around, device=x.device) % x.shape[dim]
        x = x.index_select(dim, index)
    return x


def _decode_tiles(
    network: Network,
    pixel: Tensor,
    latent: Tensor,
    tiles: Sequence[_Tile],
    views: int,
    view_batch: int,
    report: _Report,
) -> Tensor:
    total = torch.zeros_like(pixel[:, :1], dtype=torch.float32).repeat(1, 4, 1, 1)
    weights = torch.zeros_like(total[:1, :1])
    for tile in tiles:
        decoded = _decode_tile(network, tile.cut(pixel), tile.cut(latent, LATENT_STRIDE), views, view_batch, report)
        weight = tile.weigh().to(total)
        tile.cut(total).add_(decoded * weight)
        tile.cut(weights).add_(weight)
    return total / weights


def _decode_tile(
    network: Network, pixel: Tensor, latent: Tensor, views: int, view_batch: int, report: _Report
) -> Tensor:
    if views != AS_NEEDED:
        return _median(_decode_views(network, pixel, latent, VIEWS[:views], view_batch, report))
    two = _decode_views(network, pixel, latent, VIEWS[:2], view_batch, report)
    result, restless = _median(two), ~_are_settled(*two)
    if bool(restless.any()):
        more = _decode_views(network, pixel[restless], latent[restless], VIEWS[2:], view_batch, report)
        result[restless] = _median([*(view[restless] for view in two), *more])
    else:
        report.advance(len(VIEWS) - 2)
    return result


def _are_settled(a: Tensor, b: Tensor) -> Tensor:
    """For each image of two views [B, 4, H, W], whether their alpha is so much the same that two are enough."""
    return (a[:, 0] - b[:, 0]).abs().mean((1, 2)) <= SETTLED


def _decode_views(
    network: Network, pixel: Tensor, latent: Tensor, views: Sequence[View], view_batch: int, report: _Report
) -> list[Tensor]:
    decoded: list[Tensor] = []
    for batch in _batch_views(views, pixel, view_batch):
        turned = (
            torch.cat([_turn(pixel, view) for view in batch]),
            torch.cat([_turn(latent, view) for view in batch]),
        )
        output = network(*turned).float()
        if not bool(torch.isfinite(output).all()):
            raise NotFiniteError(
                "The transparent decoder produced NaN or infinite values: download its weight file again, or run it "
                "in float32."
            )
        output = output.clamp_(0, 1)
        decoded += [_turn_back(part, view) for part, view in zip(output.chunk(len(batch)), batch, strict=True)]
        report.advance(len(batch))
    return decoded


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


def _batch_views(views: Sequence[View], pixel: Tensor, size: int) -> Iterator[list[View]]:
    """Views that can run together: at most `size` at once, and of the same shape."""
    batch: list[View] = []
    for view in views:
        turns_shape = pixel.shape[-1] != pixel.shape[-2] and batch and (view[1] - batch[-1][1]) % 2
        if len(batch) == size or turns_shape:
            yield batch
            batch = []
        batch.append(view)
    yield batch


def _median(values: Sequence[Tensor]) -> Tensor:
    """Per element, the lower of the two middle values of 4 or 8 tensors, as torch.median has it; the mean of fewer.

    Of two, the lower one would be the minimum, which shrinks every edge. By minimum and maximum only: faster than a
    median along a stacked dimension, and the same on every device.
    """
    if len(values) <= 2:
        return values[0] if len(values) == 1 else (values[0] + values[1]) / 2
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
