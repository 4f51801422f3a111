"""The soft histogram in plain torch: chunks of pixels of a fixed size add to one table.

The loss needs the small difference of two large sums, so student and teacher go into one signed float64 table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from skt_components.histogram.kernels import Bins, Scratch, choose_basis, spread_nan

# Values at a time. Their temporaries stay in the cache, and torch keeps fewer than 2^15 on one thread: hundreds of
# short parallel sections can take seconds on a busy machine.
_CHUNK = (1 << 15) - 1
_TABLE = 1 << 19  # largest table, in numbers, for pictures that are processed together
_LISTED = 1 << 18  # pixels times regions searched for nonzero weights at a time
_LANES = 8  # copies of a small table, so that sums of equal neighbors do not wait for each other


def table_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype of the sums: float64, except on Metal, which has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def histogram_difference(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    regions: int,
    bins: Bins,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the histograms of ``student`` minus the histograms of ``teacher`` (B, C, H, W), ``(B, R, C, N)``.

    Without ``labels`` (B, H, W) there is one region, or ``weights`` (B, R, H, W), bool or floating, has all of them.
    """
    batch, channels = student.shape[:2]
    dtype = table_dtype(student)
    result = torch.zeros(batch, regions, channels, bins.num, dtype=dtype, device=student.device)
    if not student.numel() or not regions:
        return result
    plan = _Plan(student, labels, weights, regions, bins, _LANES)
    basis = plan.basis
    signed = [(x.flatten(2), sign) for x, sign in ((student, 1.0), (teacher, -1.0)) if x is not None]
    for pictures in plan.batches(batch):
        rows = len(range(batch)[pictures]) * channels
        columns = plan.lanes * plan.regions * basis.segment
        table = result.new_zeros(basis.tables, rows * columns + basis.spill)
        views = basis.views(table)
        row = torch.arange(rows, dtype=dtype, device=student.device).mul_(columns).view(-1, channels, 1)
        for chunk in plan.chunks(pictures):
            for values, sign in signed:
                plan.scratch.locate(values[pictures][:, :, chunk.pixels], chunk.start + row, basis)
                basis.add(views, plan.scratch, sign if chunk.weight is None else chunk.weight * sign)
        table = table[:, : rows * columns].unflatten(1, (rows, plan.lanes, plan.regions, -1))
        table = table[:, :, :, plan.outside : plan.outside + regions]
        table = table.sum(2) if plan.lanes > 1 else table[:, :, 0]
        result[pictures] = spread_nan(basis.fold(table)).unflatten(0, (-1, channels)).transpose(1, 2)
    return result


def histogram_gradient(
    upstream: Tensor, values: Tensor, labels: Tensor | None, bins: Bins, weights: Tensor | None = None
) -> Tensor:
    """Return the gradient for ``values`` (B, C, H, W), given the gradient for their histograms (B, R, C, N)."""
    batch, channels = values.shape[:2]
    regions, dtype = upstream.shape[1], table_dtype(values)
    make = torch.empty if weights is None and regions else torch.zeros
    result = make(values.shape, dtype=values.dtype, device=values.device)
    if not values.numel() or not regions:
        return result
    plan = _Plan(values, labels, weights, regions, bins, 1)
    basis = plan.basis
    columns = plan.regions * basis.segment
    values, targets = values.flatten(2), result.flatten(2)
    for pictures in plan.batches(batch):
        rows = len(range(batch)[pictures]) * channels
        table = torch.zeros(basis.tables, rows * columns + basis.spill, dtype=dtype, device=values.device)
        inner = table[:, : rows * columns].unflatten(1, (-1, channels, plan.regions, basis.segment))
        inner = inner[:, :, :, plan.outside : plan.outside + regions]
        basis.unfold(upstream[pictures].to(dtype).transpose(1, 2), inner)
        views = basis.views(table)
        row = torch.arange(rows, dtype=dtype, device=values.device).mul_(columns).view(-1, channels, 1)
        picked, target = values[pictures], targets[pictures]
        for chunk in plan.chunks(pictures):
            plan.scratch.locate(picked[:, :, chunk.pixels], chunk.start + row, basis)
            slope = basis.slope(views, plan.scratch)
            if chunk.weight is not None:
                slope.mul_(chunk.weight)
            slope = slope.view(plan.scratch.shape)
            if isinstance(chunk.pixels, slice):
                target[:, :, chunk.pixels] = slope
            else:
                target.scatter_add_(2, chunk.pixels.expand_as(slope), slope.to(result.dtype))
    return result


def clear_stray_nan(
    gradient: Tensor, upstream: Tensor, values: Tensor, labels: Tensor | None, weights: Tensor | None = None
) -> Tensor:
    """Return ``gradient`` with 0 where a value is NaN but in no region whose ``upstream`` gradient is nonzero."""
    # Only on the CPU: elsewhere the search for NaN needs a device synchronization.
    if gradient.device.type != "cpu" or not gradient.sum().isnan():  # one pass, without a temporary
        return gradient
    used = (upstream != 0).any(-1).transpose(1, 2)  # (B, C, R)
    if weights is not None:
        used = (used.float() @ (weights.flatten(2) != 0).float() > 0).view(values.shape)
    elif labels is not None:
        inside = (labels >= 0) & (labels < used.shape[2])
        index = torch.where(inside, labels, 0).long().flatten(1)[:, None].expand(*values.shape[:2], -1)
        used = used.gather(2, index).view(values.shape) & inside[:, None]
    else:
        used = used[..., None]
    return gradient.masked_fill(values.isnan() & ~used, 0)


class _Chunk(NamedTuple):
    pixels: slice | Tensor
    start: Tensor  # the column where their region's histogram starts, as float; broadcasts to (pictures, 1, pixels)
    weight: Tensor | None  # of each value


class _Plan:
    """Division of a batch into chunks whose temporaries have a bounded size."""

    def __init__(
        self, values: Tensor, labels: Tensor | None, weights: Tensor | None, regions: int, bins: Bins, lanes: int
    ) -> None:
        self.channels, self.num_pixels = values.shape[1], values.shape[2] * values.shape[3]
        self.labels, self.weights = (None if x is None else x.flatten(-2) for x in (labels, weights))
        self.basis, self.dtype = choose_basis(bins), table_dtype(values)
        room = max(1, (_CHUNK if values.device.type == "cpu" else _CHUNK << 6) // self.channels)
        self.outside = int(labels is not None)  # rows before and after the regions, for pixels of no region
        self.regions = regions + 2 * self.outside
        self.pictures, self.pixels, self.lanes = 1, min(self.num_pixels, room), 1  # at a time
        if weights is None:
            size = self.channels * self.regions * self.basis.segment * self.basis.tables
            self.pictures = max(1, min(room // self.num_pixels, _TABLE // size))
            self.lanes = lanes if self.pictures * size * lanes <= _TABLE // 4 else 1
            self.pixels = -(-self.num_pixels // -(-self.num_pixels // room))  # chunks of equal size
        self.scratch = Scratch(self.pictures * self.channels * self.pixels, self.dtype, values.device)

    def batches(self, batch: int) -> Iterator[slice]:
        return (slice(first, min(first + self.pictures, batch)) for first in range(0, batch, self.pictures))

    def chunks(self, pictures: slice) -> Iterator[_Chunk]:
        if self.weights is not None:
            yield from self._listed(self.weights[pictures][0])
            return
        segment, device = self.basis.segment, self.scratch.cell.device
        lane = torch.arange(self.pixels, device=device).remainder_(self.lanes).mul_(self.regions * segment)
        lane = lane.add_(self.basis.origin).to(self.dtype)
        for first in range(0, self.num_pixels, self.pixels):
            part = slice(first, min(first + self.pixels, self.num_pixels))
            start = lane[: part.stop - first]
            if self.labels is not None:
                label = self.labels[pictures, None, part].to(self.dtype).clamp_(-1, self.regions - 2)
                start = label.add_(1).mul_(segment).add_(start)
            yield _Chunk(part, start, None)

    def _listed(self, weights: Tensor) -> Iterator[_Chunk]:
        """Yield the pixels of one picture's regions (R, P), a pixel once for each of its regions."""
        step = max(1, _LISTED // self.regions)
        for first in range(0, weights.shape[1], step):
            found = weights[:, first : first + step].nonzero()
            for region, pixel in (part.unbind(1) for part in found.split(self.pixels)):
                pixel = pixel + first
                binary = weights.dtype == torch.bool
                weight = None if binary else weights[region, pixel].to(self.dtype).repeat(self.channels)
                yield _Chunk(pixel, (region * self.basis.segment + self.basis.origin).to(self.dtype), weight)
