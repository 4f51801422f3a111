"""The soft histogram in plain torch: pixels by chunks of a fixed size, one signed table, no (pixels x bins) temporary.

The loss needs the small difference of two large sums, so student and teacher go into one float64 table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from skt_components.histogram.kernels import Bins, Moments, Scratch, Taps, choose_basis, spread_nan

# Values at a time. Their temporaries stay in the cache, and torch does not share out fewer than 2^15 among threads:
# hundreds of short parallel sections take seconds as soon as something else runs on the machine.
_CHUNK = (1 << 15) - 1
_TABLE = 1 << 19  # numbers in the table of pictures that are treated together, at most
_LISTED = 1 << 18  # pixels times regions to look at together
_LANES = 8  # copies of a small table, so that equal neighbors do not wait for each other's sum


def table_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype of the sums: float64, but for Metal, which has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def torch_difference(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, weights: Tensor | None, regions: int, bins: Bins
) -> Tensor:
    """Return the histograms of ``student`` minus those of ``teacher``, ``(B, R, C, N)``.

    Args:
        student: values ``(B, C, P)``.
        teacher: the same, or None for zero.
        labels: regions ``(B, P)``, or None.
        weights: instead of labels, the share of every pixel in every region, ``(B, R, P)``, bool or floating.
        regions: R.
        bins: centres and kernel.
    """
    batch, channels, _ = student.shape
    dtype = table_dtype(student)
    result = torch.zeros(batch, regions, channels, bins.num, dtype=dtype, device=student.device)
    if not student.numel() or not regions:
        return result
    plan = _plan(student, labels, weights, regions, bins)
    scratch = Scratch(plan.pictures * channels * plan.pixels, dtype, student.device)
    for pictures in plan.batches(batch):
        rows = len(range(batch)[pictures]) * channels
        columns = plan.lanes * plan.regions * plan.basis.segment
        table = result.new_zeros(plan.basis.tables, rows * columns + plan.basis.spill)
        views = plan.basis.views(table)
        row = torch.arange(rows, dtype=dtype, device=student.device).mul_(columns).view(-1, channels, 1)
        signed = [(x[pictures], sign) for x, sign in ((student, 1.0), (teacher, -1.0)) if x is not None]
        for chunk in _chunks(plan, pictures, labels, weights, student, dtype):
            start = chunk.start + row
            for values, sign in signed:
                scratch.locate(values[:, :, chunk.pixels], start, plan.basis)
                plan.basis.add(views, scratch, sign if chunk.weight is None else chunk.weight * sign)
        table = table[:, : rows * columns].unflatten(1, (rows, plan.lanes, plan.regions, -1))
        table = table[:, :, :, plan.none : plan.none + regions]
        table = table.sum(2) if plan.lanes > 1 else table[:, :, 0]
        result[pictures] = spread_nan(plan.basis.fold(table)).unflatten(0, (-1, channels)).transpose(1, 2)
    return result


def torch_gradient(
    upstream: Tensor, values: Tensor, labels: Tensor | None, weights: Tensor | None, bins: Bins
) -> Tensor:
    """Return the gradient for ``values`` (B, C, P), given that for their histograms, ``upstream`` (B, R, C, N)."""
    batch, channels, _ = values.shape
    regions, dtype = upstream.shape[1], table_dtype(values)
    make = torch.empty if weights is None and regions else torch.zeros
    result = make(values.shape, dtype=values.dtype, device=values.device)
    if not values.numel() or not regions:
        return result
    plan = _plan(values, labels, weights, regions, bins)._replace(lanes=1)
    scratch = Scratch(plan.pictures * channels * plan.pixels, dtype, values.device)
    columns = plan.regions * plan.basis.segment
    for pictures in plan.batches(batch):
        rows = len(range(batch)[pictures]) * channels
        table = torch.zeros(plan.basis.tables, rows * columns + plan.basis.spill, dtype=dtype, device=values.device)
        inner = table[:, : rows * columns].unflatten(1, (-1, channels, plan.regions, plan.basis.segment))
        inner = inner[:, :, :, plan.none : plan.none + regions]
        plan.basis.unfold(upstream[pictures].to(dtype).transpose(1, 2), inner)
        views = plan.basis.views(table)
        row = torch.arange(rows, dtype=dtype, device=values.device).mul_(columns).view(-1, channels, 1)
        picked, target = values[pictures], result[pictures]
        for chunk in _chunks(plan, pictures, labels, weights, values, dtype):
            scratch.locate(picked[:, :, chunk.pixels], chunk.start + row, plan.basis)
            slope = plan.basis.slope(views, scratch)
            if chunk.weight is not None:
                slope.mul_(chunk.weight)
            slope = slope.view(scratch.shape)
            if isinstance(chunk.pixels, slice):
                target[:, :, chunk.pixels] = slope
            else:
                target.scatter_add_(2, chunk.pixels.expand_as(slope), slope.to(result.dtype))
    return result


def without_stray_nan(
    result: Tensor, upstream: Tensor, values: Tensor, labels: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Return a gradient with 0 for those NaN of ``values`` that lie in no region of which one is asked.

    Arguments as of :func:`torch_gradient`. On the CPU alone: elsewhere a look for NaN waits for the device.
    """
    if result.device.type != "cpu" or not result.sum().isnan():  # one pass, without a temporary
        return result
    asked = (upstream != 0).any(-1).transpose(1, 2)  # (B, C, R)
    if weights is not None:
        heard = asked.float() @ (weights != 0).float() > 0
    elif labels is not None:
        inside = (labels >= 0) & (labels < asked.shape[2])
        heard = asked.gather(2, torch.where(inside, labels, 0).long()[:, None].expand_as(values))
        heard = heard & inside[:, None]
    else:
        heard = asked
    return result.masked_fill(values.isnan() & ~heard, 0)


class _Plan(NamedTuple):
    basis: Taps | Moments
    pictures: int  # at a time
    pixels: int  # at a time
    regions: int  # with those of none
    none: int  # regions before and after for pixels of none: 1 where there are labels, else 0
    lanes: int

    def batches(self, batch: int) -> Iterator[slice]:
        return (slice(first, min(first + self.pictures, batch)) for first in range(0, batch, self.pictures))


def _plan(values: Tensor, labels: Tensor | None, weights: Tensor | None, regions: int, bins: Bins) -> _Plan:
    channels, pixels = values.shape[1:]
    room = max(1, (_CHUNK if values.device.type == "cpu" else _CHUNK << 6) // channels)
    basis = choose_basis(bins)
    if weights is not None:
        return _Plan(basis, 1, min(pixels, room), regions, 0, 1)
    none = int(labels is not None)
    regions += 2 * none
    size = channels * regions * basis.segment * basis.tables
    pictures = max(1, min(room // pixels, _TABLE // size))
    lanes = _LANES if pictures * size * _LANES <= _TABLE // 4 else 1
    even = -(-pixels // -(-pixels // room))  # shares of equal size
    return _Plan(basis, pictures, even, regions, none, lanes)


class _Chunk(NamedTuple):
    pixels: slice | Tensor  # which ones
    start: Tensor  # the column where their region's histogram starts, as float; broadcasts to (pictures, 1, pixels)
    weight: Tensor | None  # of every value


def _chunks(
    plan: _Plan, pictures: slice, labels: Tensor | None, weights: Tensor | None, values: Tensor, dtype: torch.dtype
) -> Iterator[_Chunk]:
    if weights is not None:
        yield from _listed(plan, weights[pictures][0], values.shape[1], dtype)
        return
    pixels, segment = values.shape[2], plan.basis.segment
    lane = torch.arange(plan.pixels, device=values.device).remainder_(plan.lanes).mul_(plan.regions * segment)
    lane = lane.add_(plan.basis.origin).to(dtype)
    for first in range(0, pixels, plan.pixels):
        part = slice(first, min(first + plan.pixels, pixels))
        if labels is None:
            yield _Chunk(part, lane[: part.stop - first], None)
        else:
            start = labels[pictures, None, part].to(dtype).clamp_(-1, plan.regions - 2).add_(1).mul_(segment)
            yield _Chunk(part, start.add_(lane[: part.stop - first]), None)


def _listed(plan: _Plan, weights: Tensor, channels: int, dtype: torch.dtype) -> Iterator[_Chunk]:
    """Yield the pixels of one picture's regions (R, P), a pixel as often as it has regions."""
    step = max(1, _LISTED // plan.regions)
    for first in range(0, weights.shape[1], step):
        found = weights[:, first : first + step].nonzero()
        for region, pixel in (part.unbind(1) for part in found.split(plan.pixels)):
            pixel = pixel + first
            weight = None if weights.dtype == torch.bool else weights[region, pixel].to(dtype).repeat(channels)
            yield _Chunk(pixel, (region * plan.basis.segment + plan.basis.origin).to(dtype), weight)
