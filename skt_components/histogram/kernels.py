"""How a value writes into the table of a soft histogram, and how it reads its slope back.

A basis is a handful of functions of the value's place inside its cell of a fixed grid. ``add`` sums them per cell and
``fold`` turns the sums into bins; ``unfold`` and ``slope`` are the transposes, with the exact derivative. Tables are
``(tables, rows, columns)``; ``segment`` columns hold one histogram and begin ``origin`` before its first cell.
A value's cell and place come from the basis's ``line``; values far outside, infinities too, are clamped to its
``limits``, guard columns that no bin sees, and NaN is left to spoil its own histogram.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-7  # kernel values below it are outside the window
_WIDEST_TAPS = 1.0  # in bins; above it moments need fewer additions per value
_RECURRENCE = 0.25  # in bins; below it the factor between neighbouring taps overflows


class Bins(NamedTuple):
    """The centres ``low + width * (i + 0.5)`` and the kernel ``exp(-((x - c) / bandwidth)^2)``."""

    num: int
    low: float
    high: float
    bandwidth: float

    @property
    def width(self) -> float:
        """Distance of two centres."""
        return (self.high - self.low) / self.num

    @property
    def sigma(self) -> float:
        """The bandwidth in bins."""
        return self.bandwidth / self.width

    @property
    def half_window(self) -> int:
        """How many bins to each side of a value see it."""
        return math.ceil(self.sigma * math.sqrt(math.log(1 / TOLERANCE)))

    def line(self, cell: float = 1.0, before: float = 0.0) -> tuple[float, float]:
        """Return factor and shift from values to cells of ``cell`` bins, 0 lying ``before`` bins before a centre."""
        return 1 / (self.width * cell), (-self.low / self.width - 0.5 + before) / cell


class Scratch:
    """Memory for the temporaries of a chunk, used by every chunk: large fresh ones cost as much as what fills them."""

    def __init__(self, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._floats = torch.empty(5, numbers, dtype=dtype, device=device)
        self._cells = torch.empty(numbers, dtype=torch.int64, device=device)
        self._resize(torch.Size([numbers]))

    def _resize(self, shape: torch.Size) -> None:
        self.shape, count = shape, shape.numel()
        self.cell = self._cells[:count]
        self.t, *self.free = (row[:count] for row in self._floats)

    def locate(self, values: Tensor, start: Tensor, basis: Taps | Moments) -> None:
        """Put whole cells plus ``start`` in ``cell``, and the values' places in them, from -0.5 to 0.5, in ``t``.

        Both are flat; so are the temporaries in ``free``.
        """
        if values.shape != self.shape:
            self._resize(values.shape)
        place, part = self.t.view(self.shape), self.free[0].view(self.shape)
        scale, shift = basis.line
        place.copy_(values).mul_(scale).add_(shift).clamp_(*basis.limits)
        whole = 1.5 / torch.finfo(place.dtype).eps  # so large that adding it rounds to whole numbers
        torch.add(place, whole, out=part).sub_(whole).nan_to_num_(0.0)
        place.sub_(part)
        part.add_(start)
        self.cell.copy_(self.free[0])


def _weigh(kernel: Tensor, weight: Tensor | float) -> Tensor:
    return kernel if isinstance(weight, float) and weight == 1.0 else kernel.mul_(weight)


class Taps:
    """Narrow kernels: a value adds its kernel to the window of bins around it, each tap by a product from the last.

    With ``t`` the distance to the middle between two bins, tap k is ``2 ** (-steep * (t + half_window - 0.5 - k)^2)``.
    """

    tables = 1

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        self.guard = 2 * bins.half_window + 1
        self.segment = bins.num + 2 * self.guard
        self.spill = 2 * bins.half_window - 1  # columns that the last tap reaches beyond the last cell
        self.origin = self.guard + 1 - bins.half_window  # column of the first tap of a value in the first bin
        self.line = bins.line(before=-0.5)  # to the middle between a bin and the next
        self.limits = (-bins.half_window - 1.0, bins.num + bins.half_window + 0.0)  # cells of the guards
        self.steep = 1 / bins.sigma**2 / math.log(2)  # of the kernel as a power of two, which torch is faster at
        self.recurrent = bins.sigma >= _RECURRENCE
        # factor of each tap to the one before, but for 2 ** (2 * steep * t)
        taps = range(2 * bins.half_window if self.recurrent else 0)
        self.growth = [2 ** (2 * self.steep * (bins.half_window - tap)) for tap in taps]

    def views(self, table: Tensor) -> list[Tensor]:
        """Return the table as each tap sees it, shifted by a column from tap to tap."""
        columns = table.shape[-1] - self.spill
        return [table[0, ..., tap : tap + columns] for tap in range(self.spill + 1)]

    def _kernel(self, t: Tensor, tap: int, out: Tensor) -> Tensor:
        return torch.add(t, self.bins.half_window - 0.5 - tap, out=out).square_().mul_(-self.steep).exp2_()

    def _kernels(self, t: Tensor, kernel: Tensor, ratio: Tensor, weight: Tensor | float = 1.0) -> Iterator[Tensor]:
        """Yield ``weight`` times the kernel at every tap, in the memory of ``kernel``."""
        yield _weigh(self._kernel(t, 0, kernel), weight)
        if self.recurrent:
            torch.mul(t, 2 * self.steep, out=ratio).exp2_()
            zero = torch.zeros((), dtype=t.dtype, device=t.device)
            for growth in self.growth[1:]:
                yield torch.addcmul(zero, kernel, ratio, value=growth, out=kernel)
        else:
            for tap in range(1, self.spill + 1):
                yield _weigh(self._kernel(t, tap, kernel), weight)

    def add(self, views: list[Tensor], scratch: Scratch, weight: Tensor | float) -> None:
        """Add the kernels of the located values, times ``weight``, to the flat ``views``."""
        kernel, ratio = scratch.free[:2]
        for view, _ in zip(views, self._kernels(scratch.t, kernel, ratio, weight), strict=True):
            view.scatter_add_(0, scratch.cell, kernel)

    def fold(self, table: Tensor) -> Tensor:
        """Return the bins ``(..., N)`` of a table ``(1, ..., segment)``."""
        return table[0, ..., self.guard : self.guard + self.bins.num]

    def unfold(self, upstream: Tensor, table: Tensor) -> None:
        """Fill the ``table`` (1, ..., segment) that :meth:`slope` reads, zero before, from ``upstream`` (..., N)."""
        bins = table[0, ..., self.guard : self.guard + self.bins.num]
        bins.copy_(upstream).mul_(-2 / (self.bins.sigma**2 * self.bins.width))

    def slope(self, views: list[Tensor], scratch: Scratch) -> Tensor:
        """Return the sum over the taps of upstream, in the flat ``views``, times the kernel's slope.

        The taps are a polynomial in ``2 ** (2 * steep * t)``, whose value and derivative Horner's rule gives together.
        """
        cell, t, first = scratch.cell, scratch.t, self.bins.half_window - 0.5
        value, derivative, upstream, ratio = scratch.free
        if not self.recurrent:
            value.zero_()
            for tap, kernel in enumerate(self._kernels(t, upstream, ratio)):
                value += kernel * views[tap].index_select(0, cell) * (t + (first - tap))
            return value
        torch.mul(t, 2 * self.steep, out=ratio).exp2_()
        torch.index_select(views[-1], 0, cell, out=derivative)
        torch.index_select(views[-2], 0, cell, out=upstream)
        torch.addcmul(upstream, derivative, ratio, value=self.growth[-1], out=value)
        for tap in reversed(range(len(views) - 2)):
            torch.addcmul(value, derivative, ratio, value=self.growth[tap + 2], out=derivative)
            torch.index_select(views[tap], 0, cell, out=upstream)
            torch.addcmul(upstream, value, ratio, value=self.growth[tap + 1], out=value)
        kernel = self._kernel(t, 0, upstream)
        value.mul_(t.add_(first)).addcmul_(derivative, ratio, value=-self.growth[1])
        return value.mul_(kernel)


class Moments:
    """Wide kernels: in a cell much narrower than the kernel it is a polynomial, so that sums of powers suffice.

    The polynomials interpolate at Chebyshev points, with the lowest degree whose slope is right to the tolerance.
    Bins go by blocks; ``weights[d, p, r]`` is the share that the p-th moment of a cell has in the r-th bin of the
    block whose window the cell is the d-th of.
    """

    recurrent = True
    spill, origin = 0, 1  # nothing beyond the last cell; a guard before the first

    def __init__(self, bins: Bins, width: float) -> None:
        self.bins = bins
        self.width = width  # of a cell, in bins
        self.reach, self.weights = _fit_moments(bins.sigma, bins.num, width)
        self.window, self.tables, self.block = self.weights.shape
        self.stride = max(1, round(self.block / width))  # cells from block to block
        self.blocks = -(-bins.num // self.block)
        self.cells = (self.blocks - 1) * self.stride + self.window
        self.segment = self.cells + 2
        self.line = bins.line(width, self.reach - width / 2)  # to the middle of the first cell
        self.limits = (-1.0, float(self.cells))  # the guards

    def views(self, table: Tensor) -> list[Tensor]:
        """Return the table of each moment."""
        return list(table)

    def add(self, views: list[Tensor], scratch: Scratch, weight: Tensor | float) -> None:
        """Add the powers of the located values, times ``weight``, to the flat ``views``."""
        power = scratch.free[0]
        views[0].scatter_add_(0, scratch.cell, _weigh(power.fill_(1.0), weight))
        for view in views[1:]:
            view.scatter_add_(0, scratch.cell, power.mul_(scratch.t))

    def fold(self, table: Tensor) -> Tensor:
        """Return the bins ``(..., N)`` of a table ``(tables, ..., segment)``."""
        weights = self.weights.to(table).transpose(0, 1).flatten(0, 1)
        cells = table[..., 1:-1].flatten(1, -2).permute(1, 2, 0)
        folded = [
            rows.unfold(1, self.window, self.stride).flatten(2) @ weights  # (some rows, blocks, bins of a block)
            for rows in cells.split(self._rows())
        ]
        return torch.cat(folded).flatten(1)[:, : self.bins.num].unflatten(0, table.shape[1:-1])

    def unfold(self, upstream: Tensor, table: Tensor) -> None:
        """Fill the ``table`` (tables, ..., segment), zero before, with the slope's coefficients, from ``upstream``."""
        shape = upstream.shape[:-1]
        upstream = upstream.flatten(0, -2)
        powers = torch.arange(1, self.tables, dtype=upstream.dtype, device=upstream.device)
        weights = self.weights[:, 1:].to(upstream) * (powers / (self.width * self.bins.width))[:, None]
        weights = weights.permute(2, 1, 0).flatten(1)
        result = upstream.new_zeros(self.tables - 1, len(upstream), self.segment)
        upstream = torch.nn.functional.pad(upstream, (0, self.blocks * self.block - self.bins.num))
        for first in range(0, len(upstream), self._rows()):
            rows = slice(first, first + self._rows())
            shares = (upstream[rows].unflatten(1, (self.blocks, self.block)) @ weights).unflatten(2, (-1, self.window))
            for block in range(self.blocks):
                start = 1 + block * self.stride
                result[:, rows, start : start + self.window] += shares[:, block].transpose(0, 1)
        table[1:].copy_(result.unflatten(1, shape))

    def _rows(self) -> int:
        """How many histograms to fold at a time, for temporaries of half a megabyte."""
        return max(1, (1 << 16) // (self.blocks * self.window * self.tables))

    def slope(self, views: list[Tensor], scratch: Scratch) -> Tensor:
        """Return the polynomials of the located values, whose coefficients are in the flat ``views``."""
        cell, total, coefficient = scratch.cell, *scratch.free[:2]
        torch.index_select(views[-1], 0, cell, out=total)
        for view in reversed(views[1:-1]):
            torch.index_select(view, 0, cell, out=coefficient)
            torch.addcmul(coefficient, total, scratch.t, out=total)
        return total


@functools.lru_cache(maxsize=16)
def _fit_moments(sigma: float, num_bins: int, width: float) -> tuple[float, Tensor]:
    """Return the distance from the first cell to the first bin, in bins, and the weights of a block of bins.

    Blocks have about 16 bins: their windows of cells are short and do not overlap much.
    """
    half = math.ceil(sigma * math.sqrt(math.log(1 / TOLERANCE)))
    block = min(num_bins, max(16, math.ceil(width)) // max(1, round(width)) * max(1, round(width)))
    reach = math.ceil(half / width) * width
    window = math.ceil((block - 1 + half + reach) / width)
    middle = width * (torch.arange(window, dtype=torch.float64) + 0.5) - reach
    distance = torch.arange(block, dtype=torch.float64) - middle[:, None]
    weights = _interpolate(distance[:, None], width, sigma, num_bins)
    return reach, weights * (distance.abs() < half + width / 2)[:, None]


def _interpolate(distance: Tensor, width: float, sigma: float, num_bins: int) -> Tensor:
    """Return the coefficients (cells, degree, bins) of the kernel's polynomials in a place t from -0.5 to 0.5.

    ``distance`` (cells, 1, bins) is that of a bin's centre to the middle of the cell. The slope's error is compared
    with the steepest slope that values in the range meet, which is little where the kernel is much wider than it.
    """

    def offset(t: Tensor) -> Tensor:
        return distance - t[:, None] * width

    def kernel(t: Tensor) -> Tensor:
        return torch.exp(-((offset(t) / sigma) ** 2))

    check = torch.linspace(-0.5, 0.5, 33, dtype=torch.float64)
    slope = kernel(check) * offset(check) * (2 * width / sigma**2)
    steepest = min(num_bins, sigma / math.sqrt(2))
    allowed = TOLERANCE * math.exp(-((steepest / sigma) ** 2)) * steepest * (2 * width / sigma**2)
    for degree in range(3, 24):
        powers = torch.arange(degree, dtype=torch.float64)
        points = torch.cos(math.pi * (powers + 0.5) / degree) / 2
        weights = torch.linalg.solve(points[:, None] ** powers, kernel(points))
        found = (powers[1:] * check[:, None] ** (powers[1:] - 1)) @ weights[:, 1:]
        if (found - slope).abs().max() <= allowed:
            break
    return weights


def choose_basis(bins: Bins) -> Taps | Moments:
    """Return the basis that needs fewer additions per value."""
    return Taps(bins) if bins.sigma <= _WIDEST_TAPS else Moments(bins, max(1, int(bins.sigma / 4)))


def spread_nan(histograms: Tensor) -> Tensor:
    """Make a histogram ``(..., N)`` NaN where one of its bins is, in place: a NaN value is in no bin and in all."""
    return histograms.add_(histograms.sum(-1, keepdim=True).mul_(0))
