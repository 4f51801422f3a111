"""Where the CUDA kernels of the soft histogram evaluate the Gaussian, and how they cut their tables; no triton here."""

from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

_TOLERANCE = 1e-7  # kernel values below it are outside the window
_CLOSE = 0.25  # bandwidths between student and teacher up to which the kernels evaluate their difference as one
_WIDE = 3.0  # bandwidth in bins from which a coarse grid is cheaper
_NARROW_SHARE = 1.54  # of its spacing: bandwidth of the first Gaussian on a coarse grid, which has 3 in all


class Grid(NamedTuple):
    """Equally spaced points at which values are counted, and the way from them to the bins."""

    num: int
    scale: float  # a value x is at u = x * scale + shift
    shift: float
    bandwidth: float  # in grid spacings
    to_bins: tuple[float, float, float] | None  # first point, spacing and second bandwidth, in bins; None: these are

    @property
    def half(self) -> int:
        """Points on each side of a value that its kernel reaches, be it evaluated at a close value instead."""
        return math.ceil(self.bandwidth * (math.sqrt(math.log(1 / _TOLERANCE)) + _CLOSE))

    @property
    def sharpness(self) -> float:
        """Factor from distances on the grid to the square root of minus the exponent of 2."""
        return math.sqrt(math.log2(math.e)) / self.bandwidth

    @property
    def constants(self) -> tuple[float, float, float, float, float]:
        """Scale and shift as the kernels take them, each a sum of two float32, and the sharpness."""
        return *_two_floats(self.scale), *_two_floats(self.shift), self.sharpness

    @property
    def near(self) -> float:
        """Distance up to which two values count as close; needs no precision where kernels are next to points."""
        return _CLOSE * self.bandwidth if self.bandwidth > 1e-3 else -1.0

    @property
    def slope(self) -> float:
        """d/dx exp(-d^2) divided by (sharpness * distance on the grid) * exp(-d^2)."""
        return -2 * self.scale * self.sharpness * math.log(2)


def _two_floats(value: float) -> tuple[float, float]:
    high = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high


def make_grid(num_bins: int, low: float, high: float, bandwidth: float) -> Grid:
    """Return the bins themselves, or for wide kernels a coarser grid.

    A Gaussian of variance s^2 is one of s1^2 folded with one of s^2 - s1^2. On a grid of spacing d the sum that
    replaces the folding integral has a relative error of 2 exp(-(pi s1 s2 / (s d))^2), 1e-7 with s = 3 d and
    s1 = 1.54 d (s2 = 2.57 d), whatever s is: a wide kernel needs a small window and a small table, and one
    product with a constant matrix.
    """
    width = (high - low) / num_bins
    bandwidth = bandwidth / width
    if bandwidth < _WIDE:
        return Grid(num_bins, 1 / width, -low / width - 0.5, bandwidth, None)
    spacing = bandwidth / 3
    second = math.sqrt(9 - _NARROW_SHARE**2) * spacing
    first = -math.sqrt(math.log(1e8)) * second  # beyond it the second Gaussian reaches no bin
    num = math.ceil((num_bins - 1 - 2 * first) / spacing) + 1
    scale = 1 / (width * spacing)
    shift = (-low / width - 0.5 - first) / spacing
    return Grid(num, scale, shift, _NARROW_SHARE, (first, spacing, second))


@functools.lru_cache(maxsize=32)
def projection(grid: Grid, num_bins: int, device: torch.device) -> Tensor:
    """Matrix ``(grid.num, num_bins)`` in float64 from a coarse grid's counts to those of the bins."""
    assert grid.to_bins is not None
    first, spacing, second = grid.to_bins
    points = first + spacing * torch.arange(grid.num, dtype=torch.float64, device=device)
    distance = (points[:, None] - torch.arange(num_bins, dtype=torch.float64, device=device)) / second
    joint = _NARROW_SHARE * second / 3  # s1 s2 / s
    return torch.exp(-distance.square()) * (spacing / (math.sqrt(math.pi) * joint))


class Cells(NamedTuple):
    """How a table of grid points is cut for the matrix unit: rows of cells, columns of the points a cell reaches."""

    low: int  # points in a cell
    rows: int  # cells that one program holds
    cols: int
    parts: int  # programs for all cells


@functools.lru_cache(maxsize=32)
def make_cells(grid: Grid) -> Cells:
    """Return the cheapest cut: per value and row one comparison, per value and column one kernel."""

    def cut(cols: int) -> Cells:
        low = cols - 2 * grid.half + 1
        needed = -(-grid.num // low)
        rows = min(max(16, 1 << (needed - 1).bit_length()), 1024 // cols)  # 2 x 32 registers a thread at most
        return Cells(low, rows, cols, -(-needed // rows))

    cuts = [cut(cols) for cols in (16, 32, 64) if cols >= 2 * grid.half]
    return min(cuts, key=lambda it: it.parts * (5 * it.rows + 27 * it.cols))


def tile_size(pixels: int) -> int:
    """Pixels a program of the forward pass handles: many, but few enough that a device has work everywhere."""
    return 256 if pixels <= 1 << 18 else 1024 if pixels <= 1 << 22 else 4096


def tile_shape(size: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a tile of ``size`` pixels, powers of 2: a square unless the picture is narrower."""
    tile_w = min(math.isqrt(size), 1 << (width - 1).bit_length())
    tile_h = min(size // tile_w, 1 << (height - 1).bit_length())
    return tile_h, size // tile_h


def count_tiles(tile: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Tiles side by side, and in all."""
    tiles_x = -(-width // tile[1])
    return tiles_x, -(-height // tile[0]) * tiles_x
