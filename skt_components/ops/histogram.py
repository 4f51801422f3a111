"""Soft (kernel density) histograms, per region, with an exact gradient and no (pixels x bins) temporary.

A Gaussian kernel narrower than a few bins is zero, to 1e-7, outside a small window of bins. Each pixel therefore
touches only that window (6 bins at the default bandwidth) of a small table, whatever ``num_bins`` and however many
disjoint regions there are. Student and teacher go into one signed float64 table, because the loss needs the small
difference of two large sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skt_components.ops._checks import check_choice, check_count, check_range, check_tensor, float_dtype
from skt_components.ops._histogram_checks import check_bandwidth, check_values, count_regions, full_precision

BACKENDS = ("auto", "torch")
_TOLERANCE = 1e-7  # kernel values below it are outside the window
_CHUNK = 1 << 14  # pixels at a time: the temporaries stay small enough to be reused, and in the cache


def soft_histogram(
    values: Float[Tensor, "b c h w"],
    *,
    masks: Float[Tensor, "b r h w"] | Bool[Tensor, "b r h w"] | None = None,
    labels: Int[Tensor, "b h w"] | None = None,
    num_regions: int | None = None,
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    backend: str = "auto",
) -> Float[Tensor, "b r c n"]:
    """Histogram with a Gaussian kernel, ``H_{r,c,i} = sum_j m_{r,j} exp(-((x_{c,j} - c_i) / bandwidth)^2)``.

    Equations 6 to 8, per region. Values outside ``value_range`` contribute only the tail that reaches into it;
    plus and minus infinity contribute nothing and have no gradient; NaN makes its histogram NaN. The gradient
    reaches ``values`` only; a second derivative is refused by torch.

    Args:
        values: pictures, any floating dtype; half precision is computed in float32, with a warning.
        masks: regions, bool, or floating weights; they may overlap. Not differentiable. Their pixels are listed,
            which waits for the device; labels do not.
        labels: regions as a map of integers in [0, num_regions), -1 where a pixel belongs to none. Cheaper than
            masks: any number of regions costs as much as one.
        num_regions: number of regions in ``labels``. When None it is read off ``labels``, which waits for the
            device and breaks ``torch.compile(fullgraph=True)``.
        num_bins: number of bins N.
        value_range: outer edges of the first and last bin.
        bandwidth: kernel width in the unit of ``values``, sigma of eq. 7; see the conventions page.
        backend: "auto" or "torch".

    Returns:
        ``(B, R, C, num_bins)`` in float32, or float64 for float64 values; R = 1 without regions.

    Raises:
        TypeError: ``values``, ``masks`` or ``labels`` has the wrong dtype.
        ValueError: shapes do not fit, masks require a gradient, both kinds of region are given, or an option is
            out of range.

    Example:
        >>> import torch
        >>> h = soft_histogram(torch.rand(1, 3, 16, 16), num_bins=64, bandwidth=1 / 64)
        >>> h.shape
        torch.Size([1, 1, 3, 64])

    Reference:
        Eqs. 6-8 of the paper.
    """
    table = histogram_difference(
        values,
        None,
        masks=masks,
        labels=labels,
        num_regions=num_regions,
        num_bins=num_bins,
        value_range=value_range,
        bandwidth=bandwidth,
        backend=backend,
    )
    return table.to(float_dtype(values))


def histogram_difference(
    student: Tensor,
    teacher: Tensor | None,
    *,
    masks: Tensor | None = None,
    labels: Tensor | None = None,
    num_regions: int | None = None,
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    backend: str = "auto",
) -> Tensor:
    """Soft histogram of ``student`` minus that of ``teacher`` in one float64 table ``(B, R, C, num_bins)``.

    Arguments and errors as in :func:`soft_histogram`; ``teacher`` may be None and has the student's shape.
    """
    check_choice("backend", backend, BACKENDS)
    check_tensor("values" if teacher is None else "student", student, ndim=4, layout="(B, C, H, W)")
    num_bins = check_count("num_bins", num_bins, 1)
    low, high = check_range("value_range", value_range)
    check_bandwidth(bandwidth, num_bins, (low, high))
    regions = count_regions(student, masks, labels, num_regions)
    check_values(student, low, high)
    with torch.autocast(student.device.type, enabled=False):
        return torch.ops.skt_components.soft_histogram(
            full_precision(student).flatten(2),
            None if teacher is None else full_precision(teacher).flatten(2),
            None if labels is None else labels.flatten(1),
            None if masks is None else masks.flatten(2),
            regions,
            num_bins,
            low,
            high,
            float(bandwidth),
        )


class _Chunk(NamedTuple):
    """A bounded share of the pixels: ``x`` has the channels on axis 1, ``row`` broadcasts to it."""

    x: Tensor
    row: Tensor  # index into the table's (region, channel) rows
    weight: Tensor | None
    place: tuple  # where x came from in (B, C, P)


class _Bins(NamedTuple):
    num: int
    low: float
    high: float
    bandwidth: float

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.num

    @property
    def half_window(self) -> int:
        return math.ceil(self.bandwidth / self.width * math.sqrt(math.log(1 / _TOLERANCE)))

    @property
    def dense(self) -> bool:
        """Whether the window would cover most bins anyway."""
        return 2 * self.half_window >= self.num


def _chunks(values: Tensor, labels: Tensor | None, masks: Tensor | None, regions: int) -> Iterator[_Chunk]:
    batch, channels, pixels = values.shape
    if not values.numel() or not regions:
        return
    chunk = _CHUNK if masks is None else max(_CHUNK // regions, 1 << 13)
    pictures = max(1, chunk // pixels)
    channel = torch.arange(channels, device=values.device)
    trash = batch * regions  # one more region, for pixels that belong to none
    for first in range(0, batch, pictures):
        for start in range(0, pixels, chunk):
            window = (slice(first, first + pictures), slice(start, start + chunk))
            place = (window[0], slice(None), window[1])
            x = values[place]
            picture = torch.arange(first, first + x.shape[0], device=values.device)
            if masks is not None:
                b, r, p = masks[place].nonzero(as_tuple=True)
                weight = None if masks.dtype == torch.bool else masks[place][b, r, p].to(x.dtype)[:, None]
                row = ((picture[b] * regions + r) * channels)[:, None] + channel
                yield _Chunk(x[b, :, p], row, weight, (b + first, slice(None), p + start))
                continue
            if labels is None:
                region = picture[:, None, None]
            else:
                label = labels[window].long()
                inside = (label >= 0) & (label < regions)
                region = torch.where(inside, picture[:, None] * regions + label, trash)[:, None]
            yield _Chunk(x, region * channels + channel[:, None], None, place)


def _taps(x: Tensor, bins: _Bins) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, bin by bin of each value's window, the padded bin index and the distance to its centre in bandwidths."""
    half = bins.half_window
    # Clamped far outside every window: infinities then count nothing instead of inf - inf; NaN stays NaN.
    u = ((x - bins.low) / bins.width - 0.5).clamp(-half - 2.0, bins.num + half + 1.0)
    base = u.floor()
    frac = u - base
    index = base.nan_to_num(0.0).long() + 1  # padded by one guard bin on each side
    scale = bins.width / bins.bandwidth
    for offset in range(1 - half, half + 1):
        yield (index + offset).clamp(0, bins.num + 1), (frac - offset) * scale


def _dense(x: Tensor, bins: _Bins) -> Tensor:
    """Distance of every value to every centre in bandwidths, ``(*x.shape, num_bins)``."""
    centers = bins.low + bins.width * (torch.arange(bins.num, dtype=x.dtype, device=x.device) + 0.5)
    far = 12 * bins.bandwidth  # exp(-144) is 0 in float32 and keeps infinities out of the products
    return (x.clamp(bins.low - far, bins.high + far)[..., None] - centers) / bins.bandwidth


def _split(chunk: _Chunk, bins: _Bins) -> Iterator[_Chunk]:
    """Cut a chunk further for the dense form, whose temporaries are num_bins times as large."""
    if not bins.dense:
        yield chunk
        return
    x, row = chunk.x.movedim(1, -1), chunk.row.broadcast_to(chunk.x.shape).movedim(1, -1)
    x, row = x.reshape(-1), row.reshape(-1)
    weight = None if chunk.weight is None else chunk.weight.expand(-1, chunk.x.shape[1]).reshape(-1)
    step = max(1, (1 << 20) // bins.num)
    for start in range(0, max(x.numel(), 1), step):  # at least one part, be it empty
        part = slice(start, start + step)
        yield _Chunk(x[part], row[part], None if weight is None else weight[part], (part,))


def _accumulate(table: Tensor, values: Tensor, sign: float, chunks: Iterator[_Chunk], bins: _Bins) -> None:
    for whole in chunks:
        for x, row, weight, _ in _split(whole, bins):
            if bins.dense:
                kernel = torch.exp(-_dense(x, bins).square()) * sign
                kernel = kernel if weight is None else kernel * weight[:, None]
                table[:, 1:-1].index_add_(0, row, kernel.to(table.dtype))
                continue
            for index, distance in _taps(x, bins):
                kernel = torch.exp(-distance.square()) * sign
                kernel = kernel if weight is None else kernel * weight
                flat = row * (bins.num + 2) + index
                table.view(-1).scatter_add_(0, flat.flatten(), kernel.flatten().to(table.dtype))


@torch.library.custom_op(
    "skt_components::soft_histogram",
    mutates_args=(),
    schema="(Tensor student, Tensor? teacher, Tensor? labels, Tensor? masks, int num_regions, int num_bins, "
    "float low, float high, float bandwidth) -> Tensor",
)
def _soft_histogram(student, teacher, labels, masks, num_regions, num_bins, low, high, bandwidth):  # type: ignore[no-untyped-def]
    bins = _Bins(num_bins, low, high, bandwidth)
    batch, channels, _ = student.shape
    rows = (batch * num_regions + 1) * channels
    table = torch.zeros(rows, num_bins + 2, dtype=_table_dtype(student), device=student.device)
    for values, sign in ((student, 1.0), (teacher, -1.0)):
        if values is not None:
            _accumulate(table, values, sign, _chunks(values, labels, masks, num_regions), bins)
    kept = table[: batch * num_regions * channels, 1:-1]
    return kept.reshape(batch, num_regions, channels, num_bins).contiguous()


def _table_dtype(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64  # Metal has no float64


@_soft_histogram.register_fake
def _(student, teacher, labels, masks, num_regions, num_bins, low, high, bandwidth):  # type: ignore[no-untyped-def]
    shape = (student.shape[0], num_regions, student.shape[1], num_bins)
    return student.new_empty(shape, dtype=_table_dtype(student))


@torch.library.custom_op(
    "skt_components::soft_histogram_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor values, Tensor? labels, Tensor? masks, int num_regions, int num_bins, "
    "float low, float high, float bandwidth) -> Tensor",
)
def _soft_histogram_backward(grad, values, labels, masks, num_regions, num_bins, low, high, bandwidth):  # type: ignore[no-untyped-def]
    bins = _Bins(num_bins, low, high, bandwidth)
    batch, channels, _ = values.shape
    table = grad.new_zeros((batch * num_regions + 1) * channels, num_bins + 2, dtype=values.dtype)
    table[: batch * num_regions * channels, 1:-1] = grad.reshape(-1, num_bins)
    result = torch.zeros(values.shape, dtype=values.dtype, device=values.device)
    for whole in _chunks(values, labels, masks, num_regions):
        parts = [_kernel_gradient(table, part, bins) for part in _split(whole, bins)]
        slope = parts[0]
        if bins.dense:
            moved = whole.x.movedim(1, -1)
            slope = torch.cat(parts).reshape(moved.shape).movedim(-1, 1)
        if masks is None:
            result[whole.place] = slope
        else:
            result.index_put_(_pixel_index(whole, channels), slope, accumulate=True)
    return result


def _kernel_gradient(table: Tensor, chunk: _Chunk, bins: _Bins) -> Tensor:
    """Sum over the bins of upstream gradient times d/dx exp(-d^2) = -2 d exp(-d^2) / bandwidth."""
    x, row, weight, _ = chunk
    if bins.dense:
        distance = _dense(x, bins)
        total = (table[row, 1:-1] * distance * torch.exp(-distance.square())).sum(-1)
    else:
        total = torch.zeros_like(x)
        for index, distance in _taps(x, bins):
            upstream = table.view(-1)[row * (bins.num + 2) + index]
            total += upstream * distance * torch.exp(-distance.square())
    total = total * (-2 / bins.bandwidth)
    return total if weight is None else total * weight


def _pixel_index(chunk: _Chunk, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    picture, _, pixel = chunk.place
    return picture[:, None], torch.arange(channels, device=chunk.x.device)[None], pixel[:, None]


@_soft_histogram_backward.register_fake
def _(grad, values, labels, masks, num_regions, num_bins, low, high, bandwidth):  # type: ignore[no-untyped-def]
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    student, teacher, labels, masks, *ctx.options = inputs
    ctx.save_for_backward(student, teacher, labels, masks)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    student, teacher, labels, masks = ctx.saved_tensors
    gradient = torch.ops.skt_components.soft_histogram_backward
    for_student = gradient(grad, student, labels, masks, *ctx.options) if ctx.needs_input_grad[0] else None
    for_teacher = gradient(-grad, teacher, labels, masks, *ctx.options) if ctx.needs_input_grad[1] else None
    return for_student, for_teacher, *([None] * (2 + len(ctx.options)))


_soft_histogram.register_autograd(_backward, setup_context=_setup_context)
