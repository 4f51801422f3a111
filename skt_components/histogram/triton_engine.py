"""Soft histograms on CUDA: one launch forward that does the work, one backward, and two small ones around them.

Atomic additions of floats depend on their order and are slow for equal values, so the matrix unit sums the table:

- Grid point i is column ``i - LOW * cell`` of row ``cell``; a value's kernel reaches only the columns of its cell.
  ``one_hot(cell)^T @ kernel`` over a block of pixels is their histogram, at the same cost for all values.
- Kernels are split in two half-precision numbers (22 bits) and summed in float32 over one tile of pixels; tiles are
  added to the table in memory as 64-bit integers, by atomic additions whose order does not matter.
- Student and teacher are read together and, where close, the *difference* of their kernels is evaluated (``_pair``).
- Regions: ``plan_kernel`` lists the pixels of each square tile region by region; a program goes through the runs. In
  the worst case, as many regions as pixels, 32 table entries are written for each pixel: slower, but correct.

The backward pass reads the table's gradient at the points of each value's window. Nothing waits for the device and no
allocation depends on data, so all of it can be captured in a CUDA graph.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from skt_components.histogram.kernels import TOLERANCE, Bins

_CLOSE = 0.25  # bandwidths between student and teacher up to which their difference is evaluated
_WIDE = 3.0  # bandwidth in bins from which a coarse grid is cheaper
_NARROW = 1.54  # bandwidth of the first Gaussian in spacings of the coarse grid; 3 is the bandwidth of both
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds a float32 to an integer
_NONE = tl.constexpr(0x7FFFFFFF)  # label of pixels in no region


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


@triton.jit
def _locate(x, scale_high, scale_low, shift_high, shift_low, NUM: tl.constexpr, HALF: tl.constexpr):
    """Return the place of values on the grid, clamped, its floor and the rest; NaN is in the rest only."""
    scale = tl.full((), scale_high, tl.float64) + scale_low
    shift = tl.full((), shift_high, tl.float64) + shift_low
    nan = x != x
    # In float64: rounding to 1e-5 near 256 would decide where student and teacher are close.
    place = tl.where(nan, 0.0, x.to(tl.float64) * scale + shift)
    place = tl.minimum(tl.maximum(place, -2.0 * HALF - 2.0), NUM + 2.0 * HALF + 1.0)
    base = tl.floor(place)
    return place, base.to(tl.int32), tl.where(nan, x, (place - base).to(tl.float32))


@triton.jit
def _tile(tile, tiles_x, height, width, local, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Return row and column (int64, for more than 2^31 elements) of a tile's pixels, and a mask of existing ones."""
    y = (tile // tiles_x).to(tl.int64) * TILE_H + local // TILE_W
    x = (tile % tiles_x).to(tl.int64) * TILE_W + local % TILE_W
    return y, x, (y < height) & (x < width)


@triton.jit
def plan_kernel(
    labels, plan, table, table_size, tiles, tiles_x, height, width, regions, stride_b, stride_y, stride_x,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """List the pixels of one tile region by region: local index, and the length of each run at its first entry.

    Each program also sets its part of ``table`` to zero.
    """
    TILE: tl.constexpr = TILE_H * TILE_W
    program = tl.program_id(0)
    local = tl.arange(0, TILE)
    share = tl.cdiv(table_size, tl.num_programs(0))
    zeros = program.to(tl.int64) * share
    last = tl.minimum(zeros + share, table_size)
    for start in range(zeros, last, TILE):
        tl.store(table + start + local, tl.zeros((TILE,), tl.int64), mask=start + local < last)

    picture = (program // tiles).to(tl.int64)
    y, x, exists = _tile(program % tiles, tiles_x, height, width, local, TILE_H, TILE_W)
    label = tl.load(labels + picture * stride_b + y * stride_y + x * stride_x, mask=exists, other=-1)
    label = tl.where(exists & (label >= 0) & (label < regions), label.to(tl.int32), _NONE)
    plan += program.to(tl.int64) * TILE
    count = 0
    current = tl.min(label, axis=0)
    while current < _NONE:
        chosen = label == current
        ones = chosen.to(tl.int32)
        position = count + tl.cumsum(ones, axis=0) - 1
        length = tl.sum(ones, axis=0)
        tl.store(plan + position, local + tl.where(position == count, length << 16, 0), mask=chosen)
        label = tl.where(chosen, _NONE, label)
        count += length
        current = tl.min(label, axis=0)
    tl.store(plan + local, tl.zeros((TILE,), tl.int32), mask=local >= count)


@triton.jit
def _cell(base, LOW: tl.constexpr, CELLS: tl.constexpr):
    """Return the cell of LOW grid points that a value falls in, and its place there."""
    cell = tl.minimum(tl.maximum(base, 0) // LOW, CELLS - 1)
    return cell, (base - cell * LOW).to(tl.float32)


@triton.jit
def _distance(column, rest, offset, sharpness):
    """Return scaled distances ``(COLS, BLOCK)`` to the grid points of a value's cell; the integer part is exact."""
    return (rest * sharpness)[None, :] + (offset[None, :] - column[:, None]) * sharpness


@triton.jit
def _half(x, BLOCK: tl.constexpr):
    """Return ``x`` (rows, BLOCK) in half precision, its columns ordered so that a thread stores two at a time."""
    parts = tl.reshape(x.to(tl.float16), (x.shape[0], BLOCK // 32, 32))
    return tl.reshape(tl.trans(parts, 0, 2, 1), (x.shape[0], BLOCK))


@triton.jit
def _accumulate(high, low, cell, value, kernel, WHOLE: tl.constexpr):
    """Add ``value * kernel`` (COLS, BLOCK) to the rows ``cell``, in two half-precision parts that hold 22 bits."""
    BLOCK: tl.constexpr = cell.shape[0]
    # Sums of integers are exact; differences of close pictures need their small digits instead.
    part = (kernel + _ROUND) - _ROUND if WHOLE else kernel.to(tl.float16).to(tl.float32)
    one_hot = _half(tl.where(tl.arange(0, high.shape[0])[:, None] == cell[None, :], value, 0.0), BLOCK)
    high = tl.dot(one_hot, tl.trans(_half(part, BLOCK)), high)
    low = tl.dot(one_hot, tl.trans(_half(kernel - part, BLOCK)), low)
    return high, low


@triton.jit
def _pair(column, place, place_t, rest, offset, sharpness, near, BITS: tl.constexpr):
    """Return K(s) - K(t) where student and teacher are close, else K(s); and the mask of close values.

    With p the mean of the two distances and d their difference it is -2 exp(-p^2 - d^2 / 4) sinh(p d).
    """
    apart = (place - place_t).to(tl.float32)
    close = tl.abs(apart) <= near
    rest = tl.where(close, rest - 0.5 * apart, rest)
    apart = tl.where(close, apart * sharpness, 0.0)
    scaled = _distance(column, rest, offset, sharpness)
    kernel = tl.exp2((BITS - 0.25 * apart * apart)[None, :] - scaled * scaled)
    z = scaled * (apart * 0.6931471805599453)[None, :]
    sinh = z * (-2.0 - z * z * (1.0 / 3 + z * z * (1.0 / 60)))  # |z| < 0.6 where the kernel is not zero
    return kernel * (sinh + tl.where(close, 0.0, 1.0)[None, :]), close


@triton.jit
def _flush(row, bins, high, low, NUM: tl.constexpr, UNIT: tl.constexpr):
    """Add a tile's sums to a row of the table as integers, whose sum does not depend on the order."""
    nan = high != high  # 0 * NaN spread through the sum; integers have no NaN, so the last column counts it
    fixed = (tl.where(nan, 0.0, high) * UNIT).to(tl.int64) + (tl.where(nan, 0.0, low) * UNIT).to(tl.int64)
    tl.atomic_add(row + bins, fixed, mask=(bins >= 0) & (bins < NUM) & (fixed != 0), sem="relaxed")
    count = tl.sum(tl.sum(nan.to(tl.int32), axis=1), axis=0).to(tl.int64)
    tl.atomic_add(row + NUM, count, mask=count > 0, sem="relaxed")


@triton.jit
def difference_kernel(
    student, teacher, labels, plan, table, tiles, tiles_x, channels, height, width, regions,
    s_b, s_c, s_y, s_x, t_b, t_c, t_y, t_x, l_b, l_y, l_x,
    scale_high, scale_low, shift_high, shift_low, sharpness, near,
    NUM: tl.constexpr, HALF: tl.constexpr, LOW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK: tl.constexpr, FRACTION_BITS: tl.constexpr,
    PAIR: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """Add one tile of one channel to the integer table, region by region."""
    TILE: tl.constexpr = TILE_H * TILE_W
    CELLS: tl.constexpr = (NUM + LOW - 1) // LOW
    BITS: tl.constexpr = 15 if PAIR else 11  # kernels are scaled by 2^BITS to use the range of half precision
    UNIT: tl.constexpr = 2.0 ** (FRACTION_BITS - BITS)
    tile = tl.program_id(0) % tiles
    channel = (tl.program_id(0) // tiles % channels).to(tl.int64)
    picture = (tl.program_id(0) // tiles // channels).to(tl.int64)
    first_row = tl.program_id(1) * ROWS
    student += picture * s_b + channel * s_c
    if PAIR:
        teacher += picture * t_b + channel * t_c
    column = tl.arange(0, COLS) - (HALF - 1)
    bins = (first_row + tl.arange(0, ROWS))[:, None] * LOW + column[None, :]
    column = column.to(tl.float32)
    start = 0
    region = picture * 0
    length = TILE
    if LABELS:
        plan += (picture * tiles + tile) * TILE
        length = tl.load(plan) >> 16
    while length > 0:
        high = tl.zeros((ROWS, COLS), tl.float32)
        low = tl.zeros((ROWS, COLS), tl.float32)
        for block in range(0, length, BLOCK):
            local = block + tl.arange(0, BLOCK)
            inside = local < length
            if LABELS:
                local = tl.load(plan + start + local, mask=inside, other=0) & 0xFFFF
            y, x, exists = _tile(tile, tiles_x, height, width, local, TILE_H, TILE_W)
            inside = inside & exists
            value = tl.load(student + y * s_y + x * s_x, mask=inside, other=0.0).to(tl.float32)
            place, base, rest = _locate(value, scale_high, scale_low, shift_high, shift_low, NUM, HALF)
            cell, offset = _cell(base, LOW, CELLS)
            cell = tl.where(inside, cell - first_row, -1)
            if PAIR:
                value = tl.load(teacher + y * t_y + x * t_x, mask=inside, other=0.0).to(tl.float32)
                place_t, base, rest_t = _locate(value, scale_high, scale_low, shift_high, shift_low, NUM, HALF)
                kernel, close = _pair(column, place, place_t, rest, offset, sharpness, near, BITS)
                high, low = _accumulate(high, low, cell, 1.0, kernel, False)
                cell, offset = _cell(base, LOW, CELLS)  # in no row where close, but NaN spreads from here
                cell = tl.where(inside & ~close, cell - first_row, -1)
                scaled = _distance(column, rest_t, offset, sharpness)
                high, low = _accumulate(high, low, cell, -1.0, tl.exp2(BITS - scaled * scaled), False)
            else:
                scaled = _distance(column, rest, offset, sharpness)
                high, low = _accumulate(high, low, cell, 1.0, tl.exp2(BITS - scaled * scaled), True)
        if LABELS:
            first = tl.load(plan + start) & 0xFFFF
            first_y, first_x, _ = _tile(tile, tiles_x, height, width, first, TILE_H, TILE_W)
            region = tl.load(labels + picture * l_b + first_y * l_y + first_x * l_x).to(tl.int64)
        _flush(table + ((picture * regions + region) * channels + channel) * (NUM + 1), bins, high, low, NUM, UNIT)
        start += length
        length = 0
        if LABELS:
            length = tl.load(plan + start, mask=start < TILE, other=0) >> 16


@triton.jit
def finish_kernel(table, out, NUM: tl.constexpr, FRACTION_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Turn a row of the integer table into float64."""
    row = tl.program_id(0).to(tl.int64)
    table += row * (NUM + 1)
    nan = tl.where(tl.load(table + NUM) > 0, float("nan"), 0.0)
    unit: tl.constexpr = 0.5**FRACTION_BITS
    for start in range(0, NUM, BLOCK):
        index = start + tl.arange(0, BLOCK)
        fixed = tl.load(table + index, mask=index < NUM, other=0)
        tl.store(out + row * NUM + index, fixed.to(tl.float64) * unit + nan, mask=index < NUM)


@triton.jit
def gradient_kernel(
    upstream, values, labels, out, tiles, tiles_x, channels, height, width, regions,
    v_b, v_c, v_y, v_x, l_b, l_y, l_x, scale_high, scale_low, shift_high, shift_low, sharpness, factor,
    NUM: tl.constexpr, HALF: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """Sum over each value's window of upstream gradient times the slope of the kernel."""
    tile = tl.program_id(0) % tiles
    channel = (tl.program_id(0) // tiles % channels).to(tl.int64)
    picture = (tl.program_id(0) // tiles // channels).to(tl.int64)
    y, x, exists = _tile(tile, tiles_x, height, width, tl.arange(0, TILE_H * TILE_W), TILE_H, TILE_W)
    inside = exists
    region = tl.zeros((TILE_H * TILE_W,), tl.int64)
    if LABELS:
        label = tl.load(labels + picture * l_b + y * l_y + x * l_x, mask=exists, other=-1)
        inside = inside & (label >= 0) & (label < regions)
        region = tl.where(inside, label.to(tl.int64), 0)
    value = tl.load(values + picture * v_b + channel * v_c + y * v_y + x * v_x, mask=inside, other=0.0)
    _, base, rest = _locate(value.to(tl.float32), scale_high, scale_low, shift_high, shift_low, NUM, HALF)
    row = upstream + ((picture * regions + region) * channels + channel) * NUM
    total = tl.zeros((TILE_H * TILE_W,), tl.float32)
    for point in tl.static_range(1 - HALF, HALF + 1):
        at = base + point
        weight = tl.load(row + at, mask=inside & (at >= 0) & (at < NUM), other=0.0).to(tl.float32)
        scaled = (rest - point) * sharpness
        total += weight * scaled * tl.exp2(-scaled * scaled)
    place = ((picture * channels + channel) * height + y) * width + x
    tl.store(out + place, total * factor, mask=exists)


def histogram_difference(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, regions: int, bins: Bins
) -> Tensor:
    """Return the histograms of ``student`` minus the histograms of ``teacher``, a float64 table ``(B, R, C, N)``.

    Arguments as in the torch engine, on a CUDA device, with any strides; pictures have at most 32 bits.
    """
    batch, channels, height, width = student.shape
    shape = (batch, regions, channels, bins.num)
    if not student.numel() or not regions:
        return student.new_zeros(shape, dtype=torch.float64)
    grid = make_grid(bins)
    cells = make_cells(grid)
    rows = batch * regions * channels
    tile = tile_shape(tile_size(batch * height * width), height, width)
    tiles_x, tiles = count_tiles(tile, height, width)
    bits = min(36, 62 - (height * width).bit_length())
    make_table = torch.zeros if labels is None else torch.empty  # plan_kernel sets it to zero
    table = make_table(rows, grid.num + 1, dtype=torch.int64, device=student.device)
    out = torch.empty(rows, grid.num, dtype=torch.float64, device=student.device)
    with torch.cuda.device_of(student):
        plan = None if labels is None else _plan(labels, regions, tile, table)
        difference_kernel[(tiles * batch * channels, cells.parts)](
            student, teacher, labels, plan, table, tiles, tiles_x, channels, height, width, regions,
            *student.stride(), *(student if teacher is None else teacher).stride(), *_strides(labels),
            *grid.constants, grid.near,
            NUM=grid.num, HALF=grid.half, LOW=cells.low, ROWS=cells.rows, COLS=cells.cols,
            TILE_H=tile[0], TILE_W=tile[1], BLOCK=64, FRACTION_BITS=bits,
            PAIR=teacher is not None, LABELS=labels is not None, num_warps=1, num_stages=1,
        )  # fmt: skip
        finish_kernel[(rows,)](table, out, NUM=grid.num, FRACTION_BITS=bits, BLOCK=256, num_warps=4)
    if grid.to_bins is not None:
        out = out @ projection(grid, bins.num, out.device)
    return out.reshape(shape)


def histogram_gradient(upstream: Tensor, values: Tensor, labels: Tensor | None, bins: Bins) -> Tensor:
    """Return the gradient (B, C, H, W), in float32, given the gradient for the histograms (B, R, C, N)."""
    batch, channels, height, width = values.shape
    regions = upstream.shape[1]
    if not values.numel() or not regions:
        return values.new_zeros(values.shape, dtype=torch.float32)
    grid = make_grid(bins)
    if grid.to_bins is not None:
        upstream = upstream.to(torch.float64) @ projection(grid, bins.num, upstream.device).T
    out = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    tile = tile_shape(1024, height, width)
    tiles_x, tiles = count_tiles(tile, height, width)
    with torch.cuda.device_of(values):
        gradient_kernel[(tiles * batch * channels,)](
            upstream.contiguous(), values, labels, out, tiles, tiles_x, channels, height, width, regions,
            *values.stride(), *_strides(labels), *grid.constants, grid.slope,
            NUM=grid.num, HALF=grid.half, TILE_H=tile[0], TILE_W=tile[1], LABELS=labels is not None, num_warps=8,
        )  # fmt: skip
    return out


def _strides(labels: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if labels is None else labels.stride()


def _plan(labels: Tensor, regions: int, tile: tuple[int, int], table: Tensor) -> Tensor:
    """Return each tile's pixels region by region, ``(B, tiles, tile)`` int32, and set ``table`` to zero."""
    batch, height, width = labels.shape
    tiles_x, tiles = count_tiles(tile, height, width)
    plan = torch.empty(batch, tiles, tile[0] * tile[1], dtype=torch.int32, device=labels.device)
    plan_kernel[(tiles * batch,)](
        labels, plan, table, table.numel(), tiles, tiles_x, height, width, regions, *labels.stride(),
        TILE_H=tile[0], TILE_W=tile[1], num_warps=4,
    )  # fmt: skip
    return plan
