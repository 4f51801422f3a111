"""Two bases of the soft histogram: how a value adds to a table, and how its derivative is read from one.

A basis is a small set of functions of a value's offset in its cell of a fixed grid. ``add`` sums them per cell and
``fold`` turns the sums into bins; ``unfold`` and ``slope`` are the transposes, with the exact derivative. In a table
(tables, rows, columns) ``segment`` columns hold one histogram, the first cell at ``origin``; ``line`` maps values to
cells. Values far outside are clamped to ``limits``: guard columns that no bin reads. NaN stays in the offset.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from skt_components.ops.checks import check_positive

TOLERANCE = 1e-7  # of a kernel and, relative to the steepest, of its slope
_REACH = 4.3  # bandwidths; the slope beyond is below 1e-7 of the steepest
_WIDEST_WINDOW = 1.0  # in bins; above it moments need fewer additions per value
RECURRENCE = 0.25  # in bins; below it the ratio of the kernel at neighboring bins overflows


class Bins(NamedTuple):
    """Centers ``low + width * (i + 0.5)`` (eq. 6) and kernel ``exp(-((x - c) / bandwidth)^2)`` (eq. 7)."""

    num: int
    low: float
    high: float
    bandwidth: float

    @property
    def width(self) -> float:
        """Return the distance of two centers."""
        return (self.high - self.low) / self.num

    @property
    def sigma(self) -> float:
        """Return the bandwidth in bins."""
        return self.bandwidth / self.width

    @property
    def half_window(self) -> int:
        """Return the number of bins on each side of a value where the kernel's slope is above the tolerance."""
        return math.ceil(self.sigma * _REACH)

    def line(self, cell: float = 1.0, before: float = 0.0) -> tuple[float, float]:
        """Return factor and shift from values to cells of ``cell`` bins, 0 lying ``before`` bins before a center."""
        return 1 / (self.width * cell), (-self.low / self.width - 0.5 + before) / cell


def sigmoid_bandwidth(slope: float = 400.0, *, bin_width: float = 1 / 256) -> float:
    """Return the bandwidth of the Gaussian kernel that is as wide as a difference of two sigmoids.

    The histogram loss of SKF counts with ``sigmoid(slope (d + w/2)) - sigmoid(slope (d - w/2))``, where d is the
    distance to the center of a bin of width w. This kernel has the variance
    ``pi^2 / (3 slope^2) + w^2 / 12``. The Gaussian ``exp(-(d / bandwidth)^2)`` has ``bandwidth^2 / 2``.

    Args:
        slope: slope of the sigmoids, in the inverse unit of the values; 400 in SKF's code.
        bin_width: range of the values over the number of bins.

    Raises:
        ValueError: an argument is not above zero.

    Example:
        >>> round(1 / sigmoid_bandwidth(400.0), 1)
        151.3

    Reference:
        Wu et al., Learning Semantic-Aware Knowledge Guidance for Low-Light Image Enhancement, CVPR 2023.
    """
    check_positive("slope", slope)
    check_positive("bin_width", bin_width)
    return math.sqrt(2 * math.pi**2 / (3 * slope**2) + bin_width**2 / 6)


class Scratch:
    """Memory for temporaries, shared by all chunks: allocating it anew costs as much as the arithmetic."""

    def __init__(self, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._floats = torch.empty(5, numbers, dtype=dtype, device=device)
        self._cells = torch.empty(numbers, dtype=torch.int64, device=device)
        self._resize(torch.Size([numbers]))

    def _resize(self, shape: torch.Size) -> None:
        self.shape, count = shape, shape.numel()
        self.cell = self._cells[:count]
        self.t, *self.free = (row[:count] for row in self._floats)

    def locate(self, values: Tensor, start: Tensor, basis: Window | Moments) -> None:
        """Store the values' cells plus ``start`` in ``cell`` and their offsets, -0.5 to 0.5, in ``t``; both flat."""
        if values.shape != self.shape:
            self._resize(values.shape)
        offset, whole = self.t.view(self.shape), self.free[0].view(self.shape)
        scale, shift = basis.line
        offset.copy_(values).mul_(scale).add_(shift).clamp_(*basis.limits)
        large = 1.5 / torch.finfo(offset.dtype).eps  # adding it rounds to whole numbers
        torch.add(offset, large, out=whole).sub_(large).nan_to_num_(0.0)
        offset.sub_(whole)
        whole.add_(start)
        self.cell.copy_(self.free[0])


def _weigh(kernel: Tensor, weight: Tensor | float) -> Tensor:
    return kernel if isinstance(weight, float) and weight == 1.0 else kernel.mul_(weight)


class Window:
    """Basis for narrow kernels: a value adds its kernel to each bin of the window around it.

    With ``t`` the distance to the middle between two bins, the kernel at bin k of the window is
    ``2 ** (-steep * (t + half_window - 0.5 - k)^2)``, the product of the kernel at bin k - 1 and a ratio.
    """

    tables = 1

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        self.guard = 2 * bins.half_window + 1
        self.segment = bins.num + 2 * self.guard
        self.spill = 2 * bins.half_window - 1  # columns of a window after its first
        self.origin = self.guard + 1 - bins.half_window
        self.line = bins.line(before=-0.5)  # to the middle between a bin and the next
        self.limits = (-bins.half_window - 1.0, bins.num + bins.half_window + 0.0)
        self.steep = 1 / bins.sigma**2 / math.log(2)  # exponents of 2: torch is faster with them
        self.recurrent = bins.sigma >= RECURRENCE
        # The kernel at bin k divided by the kernel at bin k - 1 is growth[k] * 2 ** (2 * steep * t).
        window = range(2 * bins.half_window if self.recurrent else 0)
        self.growth = [2 ** (2 * self.steep * (bins.half_window - k)) for k in window]

    def views(self, table: Tensor) -> list[Tensor]:
        """Return the table for each bin of the window, shifted by one column from bin to bin."""
        columns = table.shape[-1] - self.spill
        return [table[0, ..., k : k + columns] for k in range(self.spill + 1)]

    def _kernel(self, t: Tensor, k: int, out: Tensor) -> Tensor:
        return torch.add(t, self.bins.half_window - 0.5 - k, out=out).square_().mul_(-self.steep).exp2_()

    def _kernels(self, t: Tensor, kernel: Tensor, ratio: Tensor, weight: Tensor | float = 1.0) -> Iterator[Tensor]:
        """Yield ``weight`` times the kernel at each bin of the window, in the memory of ``kernel``."""
        yield _weigh(self._kernel(t, 0, kernel), weight)
        if self.recurrent:
            torch.mul(t, 2 * self.steep, out=ratio).exp2_()
            zero = torch.zeros((), dtype=t.dtype, device=t.device)
            for growth in self.growth[1:]:
                yield torch.addcmul(zero, kernel, ratio, value=growth, out=kernel)
        else:
            for k in range(1, self.spill + 1):
                yield _weigh(self._kernel(t, k, kernel), weight)

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
        self.fold(table).copy_(upstream).mul_(-2 / (self.bins.sigma**2 * self.bins.width))

    def slope(self, views: list[Tensor], scratch: Scratch) -> Tensor:
        """Return the sum over the window of upstream, in the flat ``views``, times the kernel's slope.

        The sum is a polynomial in ``2 ** (2 * steep * t)``; Horner's rule gives its value and derivative together.
        """
        cell, t, first = scratch.cell, scratch.t, self.bins.half_window - 0.5
        value, derivative, upstream, ratio = scratch.free
        if not self.recurrent:
            value.zero_()
            for k, kernel in enumerate(self._kernels(t, upstream, ratio)):
                value += kernel * views[k].index_select(0, cell) * (t + (first - k))
            return value
        torch.mul(t, 2 * self.steep, out=ratio).exp2_()
        torch.index_select(views[-1], 0, cell, out=derivative)
        torch.index_select(views[-2], 0, cell, out=upstream)
        torch.addcmul(upstream, derivative, ratio, value=self.growth[-1], out=value)
        for k in reversed(range(len(views) - 2)):
            torch.addcmul(value, derivative, ratio, value=self.growth[k + 2], out=derivative)
            torch.index_select(views[k], 0, cell, out=upstream)
            torch.addcmul(upstream, value, ratio, value=self.growth[k + 1], out=value)
        kernel = self._kernel(t, 0, upstream)
        value.mul_(t.add_(first)).addcmul_(derivative, ratio, value=-self.growth[1])
        return value.mul_(kernel)


class Moments:
    """Basis for wide kernels: in a cell much narrower than the kernel it is a polynomial, so sums of powers suffice.

    ``weights[d, p, r]`` is the contribution of the p-th moment of the d-th cell in the window of a block of bins to
    the r-th bin of the block.
    """

    spill, origin = 0, 1  # nothing after the last cell, one guard before the first

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
        self.limits = (-1.0, float(self.cells))

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
            rows.unfold(1, self.window, self.stride).flatten(2) @ weights  # (rows, blocks, bins of a block)
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
        """Return how many histograms to fold at a time, for temporaries of half a megabyte."""
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
    """Return the distance from the first cell to the first bin, in bins, and the weights of a block of bins."""
    half = math.ceil(sigma * _REACH)
    # About 16 bins: windows of cells are then short and overlap little.
    block = min(num_bins, max(16, math.ceil(width)) // max(1, round(width)) * max(1, round(width)))
    reach = math.ceil(half / width) * width
    window = math.ceil((block - 1 + half + reach) / width)
    middle = width * (torch.arange(window, dtype=torch.float64) + 0.5) - reach
    distance = torch.arange(block, dtype=torch.float64) - middle[:, None]
    weights = _interpolate(distance[:, None], width, sigma, num_bins)
    return reach, weights * (distance.abs() < half + width / 2)[:, None]


def _interpolate(distance: Tensor, width: float, sigma: float, num_bins: int) -> Tensor:
    """Return the coefficients (cells, degree, bins) of the kernel's polynomials in an offset t from -0.5 to 0.5.

    They interpolate at Chebyshev points; ``distance`` (cells, 1, bins) is from the middle of a cell to a bin's center.
    The error allowed is relative to the steepest slope inside the value range.
    """

    def kernel(t: Tensor) -> Tensor:
        return torch.exp(-(((distance - t[:, None] * width) / sigma) ** 2))

    check = torch.linspace(-0.5, 0.5, 33, dtype=torch.float64)
    slope = kernel(check) * (distance - check[:, None] * width) * (2 * width / sigma**2)
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


def choose_basis(bins: Bins) -> Window | Moments:
    """Return the basis that needs fewer additions per value."""
    return Window(bins) if bins.sigma <= _WIDEST_WINDOW else Moments(bins, max(1, int(bins.sigma / 4)))


def spread_nan(histograms: Tensor) -> Tensor:
    """Set all bins of a histogram ``(..., N)`` to NaN where one of them is NaN, in place."""
    return histograms.add_(histograms.sum(-1, keepdim=True).mul_(0))
