"""Grid of points on which the CUDA kernels evaluate the Gaussian, and division of its table; needs no triton."""

from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from skt_components.histogram.kernels import TOLERANCE, Bins

_CLOSE = 0.25  # bandwidths between student and teacher up to which their difference is evaluated
_WIDE = 3.0  # bandwidth in bins from which a coarse grid is cheaper
_NARROW = 1.54  # bandwidth of the first Gaussian in spacings of the coarse grid; 3 is the bandwidth of both


class Grid(NamedTuple):
    """Equally spaced points at which values are counted, and the map from them to the bins."""

    num: int
    scale: float  # a value x is at u = x * scale + shift
    shift: float
    bandwidth: float  # in grid spacings
    to_bins: tuple[float, float, float] | None  # first point, spacing and second bandwidth, in bins; None: the bins

    @property
    def half(self) -> int:
        """Return how many points a kernel reaches on each side of its value, or of a value close to it."""
        return math.ceil(self.bandwidth * (math.sqrt(math.log(1 / TOLERANCE)) + _CLOSE))

    @property
    def sharpness(self) -> float:
        """Return the factor from distances on the grid to the square root of minus the exponent of 2."""
        return math.sqrt(math.log2(math.e)) / self.bandwidth

    @property
    def constants(self) -> tuple[float, float, float, float, float]:
        """Return scale and shift, each as a sum of two float32, and the sharpness."""
        return *_two_floats(self.scale), *_two_floats(self.shift), self.sharpness

    @property
    def near(self) -> float:
        """Return the distance up to which values count as close; none where kernels are narrow."""
        return _CLOSE * self.bandwidth if self.bandwidth > 1e-3 else -1.0

    @property
    def slope(self) -> float:
        """Return d/dx exp(-d^2) divided by (sharpness * distance on the grid) * exp(-d^2)."""
        return -2 * self.scale * self.sharpness * math.log(2)


def _two_floats(value: float) -> tuple[float, float]:
    high = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high


def make_grid(bins: Bins) -> Grid:
    """Return the bins as a grid, or a coarser one for wide kernels.

    A Gaussian of variance s^2 is the convolution of two with s1^2 and s^2 - s1^2. On a grid of spacing d the sum that
    replaces it has a relative error of 2 exp(-(pi s1 s2 / (s d))^2): 1e-7 with s = 3 d, s1 = 1.54 d, s2 = 2.57 d.
    """
    if bins.sigma < _WIDE:
        return Grid(bins.num, *bins.line(), bins.sigma, None)
    spacing = bins.sigma / 3
    second = math.sqrt(9 - _NARROW**2) * spacing
    first = -math.sqrt(math.log(1e8)) * second  # the second Gaussian of a point before it reaches no bin
    num = math.ceil((bins.num - 1 - 2 * first) / spacing) + 1
    scale = 1 / (bins.width * spacing)
    shift = (-bins.low / bins.width - 0.5 - first) / spacing
    return Grid(num, scale, shift, _NARROW, (first, spacing, second))


@functools.lru_cache(maxsize=32)
def projection(grid: Grid, num_bins: int, device: torch.device) -> Tensor:
    """Return the matrix ``(grid.num, num_bins)`` in float64 from a coarse grid's counts to the bins' counts."""
    assert grid.to_bins is not None
    first, spacing, second = grid.to_bins
    points = first + spacing * torch.arange(grid.num, dtype=torch.float64, device=device)
    distance = (points[:, None] - torch.arange(num_bins, dtype=torch.float64, device=device)) / second
    joint = _NARROW * second / 3  # s1 s2 / s
    return torch.exp(-distance.square()) * (spacing / (math.sqrt(math.pi) * joint))


class Cells(NamedTuple):
    """Division of a table for the matrix unit: rows of cells, columns of the points that a cell's kernels reach."""

    low: int  # points in a cell
    rows: int  # cells that one program holds
    cols: int
    parts: int  # programs for all cells


@functools.lru_cache(maxsize=32)
def make_cells(grid: Grid) -> Cells:
    """Return the cheapest division: one comparison per value and row, one kernel per value and column."""

    def cut(cols: int) -> Cells:
        low = cols - 2 * grid.half + 1
        needed = -(-grid.num // low)
        rows = min(max(16, 1 << (needed - 1).bit_length()), 1024 // cols)  # 2 x 32 registers a thread at most
        return Cells(low, rows, cols, -(-needed // rows))

    cuts = [cut(cols) for cols in (16, 32, 64) if cols >= 2 * grid.half]
    return min(cuts, key=lambda it: it.parts * (5 * it.rows + 27 * it.cols))


def tile_size(pixels: int) -> int:
    """Return the pixels for one program of the forward pass: many, but enough programs to occupy the device."""
    return 256 if pixels <= 1 << 18 else 1024 if pixels <= 1 << 22 else 4096


def tile_shape(size: int, height: int, width: int) -> tuple[int, int]:
    """Return height and width of a tile of ``size`` pixels, powers of 2: a square unless the picture is narrower."""
    tile_w = min(math.isqrt(size), 1 << (width - 1).bit_length())
    tile_h = min(size // tile_w, 1 << (height - 1).bit_length())
    return tile_h, size // tile_h


def count_tiles(tile: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the number of tiles in a row, and in a picture."""
    tiles_x = -(-width // tile[1])
    return tiles_x, -(-height // tile[0]) * tiles_x
