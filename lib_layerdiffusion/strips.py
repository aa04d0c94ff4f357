"""Large layers of a network on a processor, in strips of rows that stay in its cache.

A tensor of tens of megabytes is memory that the system hands out anew, and clears page by page, for each operation. In
strips only a layer's result is one: what comes before its convolution is made for a few rows at a time, the image with
its skip is never put together, and neither is an image that was only made larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE: float = 4 * 2**20  # bytes of a layer's input from which strips are faster
STRIP = 4 * 2**20  # bytes of a strip
SUMMED = 2**19  # bytes that are summed up at once


def pay_off(parts: Sequence[Tensor], convolution: nn.Conv2d) -> bool:
    """Whether the layer of an input [B, C, H, W], given in parts of its channels, should be computed in strips."""
    return (
        all(part.device.type == "cpu" and part.is_contiguous(memory_format=torch.channels_last) for part in parts)
        and not torch.is_grad_enabled()
        and convolution.padding_mode == "zeros"
        and sum(part[0].nbytes for part in parts) >= LARGE
    )


def refine(
    parts: Sequence[Tensor],
    norms: tuple[nn.GroupNorm, nn.GroupNorm],
    convolutions: tuple[nn.Conv2d, nn.Conv2d],
    shortcut: nn.Conv2d | None,
) -> Tensor:
    """A resnet: two 3x3 convolutions, each of its activated (SiLU), normalised input, and what was there before.

    parts: [B, C, H, W], the channels of the input one part after the other -> [B, K, H, W].
    shortcut: the 1x1 convolution that the input goes through before it is added.
    """
    result = _make_result(parts[0], convolutions[0].out_channels)
    for i in range(len(result)):
        images, h = [_by_pixel(part[i]) for part in parts], _by_pixel(result[i])
        moments = torch.zeros(2, h.shape[-1], dtype=torch.float64)
        for rows, strip in _convolve(images, [_sum(image) for image in images], norms[0], convolutions[0]):
            h[rows] = strip
            moments += _sum(strip)
        for rows, strip in _convolve([h], [moments], norms[1], convolutions[1]):
            _add([image[rows] for image in images], shortcut, strip)
            h[rows] = strip
    return result


def convolve(x: Tensor, norm: nn.GroupNorm, convolution: nn.Conv2d) -> Tensor:
    """The 3x3 convolution of the activated (SiLU), normalised input: [B, C, H, W] -> [B, K, H, W]."""
    result = _make_result(x, convolution.out_channels)
    for image, out in zip(x, result, strict=True):
        image = _by_pixel(image)
        for rows, strip in _convolve([image], [_sum(image)], norm, convolution):
            _by_pixel(out)[rows] = strip
    return result


def enlarge(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """The 3x3 convolution of the input at twice its size, each pixel four times: [B, C, H, W] -> [B, K, 2H, 2W]."""
    result = _make_result(x, convolution.out_channels, 2)
    height, width = x.shape[-2:]
    for i in range(len(result)):
        for rows in _cut(height, 16 * width * x.shape[1], STRIP):
            above, below = min(1, rows.start), min(1, height - rows.stop)  # rows of the input on either side
            strip = x[i : i + 1, :, rows.start - above : rows.stop + below]
            strip = F.interpolate(strip, scale_factor=2.0, mode="nearest")
            strip = strip[:, :, above : strip.shape[2] - below]  # one row of each is enough
            if not (above and below):
                strip = F.pad(strip, (0, 0, 1 - above, 1 - below))
            result[i : i + 1, :, 2 * rows.start : 2 * rows.stop] = _convolve_rows(strip, convolution)
    return result


def _make_result(x: Tensor, channels: int, scale: int = 1) -> Tensor:
    shape = (len(x), channels, *(scale * side for side in x.shape[-2:]))
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _by_pixel(image: Tensor) -> Tensor:
    """[C, H, W] -> [H, W, C], whose channels lie side by side."""
    return image.movedim(0, -1)


def _cut(height: int, row: int, most: int) -> Iterator[slice]:
    """Strips of about so many bytes, where a row has `row` of them."""
    rows = max(8, most // row)
    return (slice(first, min(first + rows, height)) for first in range(0, height, rows))


def _sum(image: Tensor) -> Tensor:
    """Each channel's sums, of its values and of their squares: [H, W, C] -> [2, C] float64."""
    height, width, channels = image.shape
    total = torch.zeros(2, channels, dtype=torch.float64)
    for rows in _cut(height, 4 * width * channels, SUMMED):
        values = image[rows].flatten(0, 1).float()
        total += torch.stack([values.sum(0), values.square().sum(0)])
    return total


def _fit_norm(norm: nn.GroupNorm, moments: Sequence[Tensor], pixels: int) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel by which the normalisation changes an image with such sums, in float32."""
    groups = (torch.cat(list(moments), dim=1) / pixels).unflatten(1, (norm.num_groups, -1))
    mean, square = groups.mean(2, keepdim=True).expand_as(groups).flatten(1)
    scale = norm.weight / torch.sqrt((square - mean**2).clamp_min(0) + norm.eps)
    return scale.float(), (norm.bias - mean * scale).float()


def _convolve(
    images: Sequence[Tensor], moments: Sequence[Tensor], norm: nn.GroupNorm, convolution: nn.Conv2d
) -> Iterator[tuple[slice, Tensor]]:
    """Each strip's rows and the convolution of the activated, normalised image there: [rows, W, K].

    images: [H, W, C], the channels of one image; its rows may be written over once their strip is there.
    """
    height, width = images[0].shape[:2]
    scale, shift = _fit_norm(norm, moments, height * width)
    strips = list(_cut(height, 4 * width * norm.num_channels, STRIP))
    ready = torch.zeros(strips[0].stop + 2, width, norm.num_channels)  # a strip with the rows above and below it
    for rows in strips:
        known = 2 if rows.start else 1  # rows made ready by the strip before, or zeros above the image
        if rows.start:
            ready[:2] = ready[-2:].clone()
        ready = ready[: rows.stop - rows.start + 2]
        new = slice(rows.start - 1 + known, min(rows.stop + 1, height))
        values = ready[known : known + new.stop - new.start]
        done = 0
        for image in images:
            own = slice(done, done + image.shape[-1])
            torch.addcmul(shift[own], image[new].float(), scale[own], out=values[..., own])
            done = own.stop
        F.silu(values, inplace=True)
        if rows.stop == height:
            ready[-1] = 0
        h = _convolve_rows(ready.to(images[0].dtype).movedim(-1, 0)[None], convolution)
        yield rows, _by_pixel(h[0])


def _convolve_rows(strip: Tensor, convolution: nn.Conv2d) -> Tensor:
    return F.conv2d(strip, convolution.weight, convolution.bias, padding=(0, 1))


def _add(parts: Sequence[Tensor], shortcut: nn.Conv2d | None, h: Tensor) -> None:
    """Add to `h` [H, W, K], in place, what the 1x1 convolution makes of an image in parts; without one, the image."""
    if shortcut is None:
        h.add_(parts[0])
        return
    pixels = h.flatten(0, 1)
    columns = shortcut.weight.flatten(1).split([part.shape[-1] for part in parts], dim=1)
    for part, weight in zip(parts, columns, strict=True):
        pixels.addmm_(part.flatten(0, 1), weight.T)
    if shortcut.bias is not None:
        pixels.add_(shortcut.bias)
