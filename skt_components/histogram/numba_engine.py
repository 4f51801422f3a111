"""The soft histogram on the CPU in loops compiled by numba: the sums of the torch engine without its temporaries.

For each strip of pixels that stays in the cache, a vectorized loop finds cells and factors, a second one adds to the
table or reads from it. In both bases a value contributes ``kernel * growth[k] * ratio ** k`` to the k-th of a run of
neighboring numbers: the bins of its window, or the moments of its cell.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from skt_components.histogram.kernels import Bins, Moments, Window, choose_basis, spread_nan

_CHUNK = 1 << 16  # pixels at a time, copied where they are not contiguous
_THREAD = 1 << 18  # least number of values for each thread
_TABLE = 1 << 16  # largest table, in numbers, for pictures that are processed together
_STRIP = 512
if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise RuntimeError("NUMBA_DISABLE_JIT is set, and loops without compilation take 200 times as long")

# All flags that help the compiler to vectorize, except the two that forbid NaN and infinity.
_FAST = {"reassoc", "nsz", "arcp", "contract", "afn"}


def _compile(function: Callable) -> Callable:
    function = inspect.unwrap(function)  # run-time type checkers wrap it
    options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache is writable
        return numba.njit(**options)(function)


def cache_folder() -> str:
    """Return the folder where numba keeps the compiled loops."""
    compiled: Any = _add
    return str(compiled.stats.cache_path)


def histogram_difference(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, regions: int, bins: Bins
) -> Tensor:
    """Return a table as in the torch engine, for a bandwidth of at least :data:`~.kernels.RECURRENCE` bins."""
    signed = [(x.flatten(2), sign) for x, sign in ((student, 1.0), (teacher, -1.0)) if x is not None]
    batch, channels, pixels = signed[0][0].shape
    result = torch.zeros(batch, regions, channels, bins.num, dtype=torch.float64)
    basis = choose_basis(bins)
    constants = _constants(basis)

    def count(pictures: slice, channel: int) -> None:
        rows = result[pictures, :, channel]
        table, flat = _table(basis, rows.shape[0] * regions)
        for part, label in _parts(labels, pictures, rows.shape[0], regions, pixels):
            for values, sign in signed:
                _add(_row(values[pictures, channel, part]), label, rows.shape[0] * regions, sign, flat, *constants)
        rows.copy_(spread_nan(basis.fold(table)).view(rows.shape))

    _for_each_channel(count, student, regions * basis.segment * basis.tables)
    return result


def histogram_gradient(upstream: Tensor, values: Tensor, labels: Tensor | None, bins: Bins) -> Tensor:
    """Return the gradient for ``values`` (B, C, H, W), given the gradient for their histograms (B, R, C, N)."""
    result = torch.empty(values.shape, dtype=values.dtype)
    flat_values, flat_result, upstream = values.flatten(2), result.flatten(2), upstream.double()
    regions, basis = upstream.shape[1], choose_basis(bins)
    constants = _constants(basis)

    def read(pictures: slice, channel: int) -> None:
        slopes = upstream[pictures, :, channel].flatten(0, 1)
        table, flat = _table(basis, len(slopes))
        basis.unfold(slopes, table)
        together = len(flat_values[pictures])
        for part, label in _parts(labels, pictures, together, regions, flat_values.shape[2]):
            target = flat_result[pictures, channel, part]
            out = _row(target)
            _read(_row(flat_values[pictures, channel, part]), label, len(slopes), out, flat, *constants)
            if together > 1:  # then ``out`` is a copy
                target.copy_(torch.from_numpy(out).view(target.shape))

    _for_each_channel(read, values, regions * basis.segment * basis.tables)
    return result


def _for_each_channel(work: Callable[[slice, int], None], values: Tensor, numbers: int) -> None:
    """Call ``work(pictures, channel)`` for each channel, on several threads if there are enough values.

    Small pictures, whose tables of ``numbers`` fit into the cache together, are processed together.
    """
    batch, channels = values.shape[:2]
    pixels = max(values.shape[2] * values.shape[3], 1)
    together = max(1, min(_CHUNK // pixels, _TABLE // max(numbers, 1)))
    groups = [slice(first, min(first + together, batch)) for first in range(0, batch, together)]
    places = list(product(groups, range(channels)))
    threads = min(torch.get_num_threads(), len(places), values.numel() // _THREAD)
    if threads <= 1:
        for place in places:
            work(*place)
        return
    inference = torch.is_inference_mode_enabled()

    def work_in_thread(place: tuple[slice, int]) -> None:  # threads do not inherit these modes
        with torch.inference_mode(inference), torch.no_grad():
            work(*place)

    with ThreadPoolExecutor(threads) as pool:  # a pool kept for later calls would not survive a fork
        list(pool.map(work_in_thread, places))


def _table(basis: Window | Moments, regions: int) -> tuple[Tensor, np.ndarray]:
    """Return a table of zeros in the basis's layout, (tables, R, segment), and flat in the layout of the loops."""
    table = torch.zeros(regions, basis.segment, basis.tables, dtype=torch.float64)
    return table.permute(2, 0, 1), table.view(-1).numpy()


def _parts(
    labels: Tensor | None, pictures: slice, together: int, regions: int, pixels: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield parts of the pixels of some pictures, and their labels if there are any.

    The regions of pictures that are processed together follow each other: picture 1 has regions R to 2 R - 1.
    """
    if labels is not None:
        labels = labels[pictures].flatten(1)
    first_region = torch.arange(together)[:, None] * regions
    for first in range(0, pixels, _CHUNK):
        part = slice(first, min(first + _CHUNK, pixels))
        if labels is not None:
            label = labels[:, part].to(torch.int64)
            if together > 1:
                label = torch.where((label >= 0) & (label < regions), label + first_region, -1)
            yield part, _row(label)
        else:
            yield part, np.empty(0, np.int64) if together == 1 else _row(first_region.expand(-1, pixels))


def _row(values: Tensor) -> np.ndarray:
    return values.reshape(-1).numpy()


def _constants(basis: Window | Moments) -> tuple[object, ...]:
    """Return the loops' constants; ``growth`` is a tuple, so that they are compiled for its length."""
    if isinstance(basis, Window):
        kernel: tuple[float, float, tuple[float, ...]] = (basis.steep, basis.bins.half_window - 0.5, (*basis.growth,))
    else:
        kernel = (0.0, 0.0, (1.0,) * basis.tables)
    return ((basis.origin, basis.segment, basis.tables), basis.line, basis.limits, *kernel)


@_compile
def _power_of_two(x):  # type: ignore[no-untyped-def]
    """Return 2 ** x as a factor close to 1, exact to 2e-13, and the bits of the float64 to multiply it by."""
    whole = np.floor(x + 0.5)
    y = (x - whole) * 0.6931471805599453
    series = 1 / 5040 + y * (1 / 40320 + y * (1 / 362880 + y / 3628800))
    series = 1 + y * (1 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * series))))))
    return series, np.int64(np.int32(whole) + 1023) << 52


@_compile
def _locate(values, labels, regions, rows, line, limits, steep, first, at, place, factors, bits):  # type: ignore[no-untyped-def]
    """Find the start of each value's run (-1: no region), its offset in its cell, -0.5 to 0.5, and its factors."""
    scale, shift = line
    low, high = limits
    origin, segment, tables = rows
    for j in range(values.size):
        exact = values[j] * scale + shift
        inside = exact if exact == exact else 0.0  # NaN has a cell, where its offset makes the histogram NaN
        inside = inside if inside > low else low
        inside = inside if inside < high else high
        whole = np.floor(inside + 0.5)
        at[j] = (np.int32(whole) + origin) * tables
        t = inside - whole if exact == exact else exact
        place[j] = t
        factors[0, j], bits[0, j] = _power_of_two(-steep * (t + first) * (t + first))
        factors[1, j], bits[1, j] = _power_of_two(2 * steep * t)
    if labels.size:
        for j in range(values.size):
            region = labels[j]
            at[j] = at[j] + region * (segment * tables) if (region >= 0) & (region < regions) else -1


@_compile
def _strips():  # type: ignore[no-untyped-def]
    """Allocate a strip's runs, offsets, factors, and the powers of two of the factors as bits and as numbers."""
    scales = np.empty((2, _STRIP))
    return np.empty(_STRIP, np.int64), np.empty(_STRIP), np.empty((2, _STRIP)), scales.view(np.int64), scales


@_compile
def _add(values, labels, regions, sign, table, rows, line, limits, steep, first, growth):  # type: ignore[no-untyped-def]
    """Add ``sign`` times the contributions of each value to its run of the table."""
    at, place, factors, bits, scales = _strips()
    for start in range(0, values.size, _STRIP):
        strip, label = values[start : start + _STRIP], labels[start : start + _STRIP]
        _locate(strip, label, regions, rows, line, limits, steep, first, at, place, factors, bits)
        for j in range(strip.size):
            if at[j] < 0:
                continue
            share = sign * factors[0, j] * scales[0, j]
            ratio = factors[1, j] * scales[1, j] if steep > 0 else place[j]
            table[at[j]] += share
            for k in range(1, len(growth)):
                share *= ratio * growth[k]
                table[at[j] + k] += share


@_compile
def _read(values, labels, regions, out, table, rows, line, limits, steep, first, growth):  # type: ignore[no-untyped-def]
    """Set ``out`` to the slope of each value by Horner's rule, as ``slope`` of the two bases does."""
    at, place, factors, bits, scales = _strips()
    last = len(growth) - 1
    for start in range(0, values.size, _STRIP):
        strip, label = values[start : start + _STRIP], labels[start : start + _STRIP]
        _locate(strip, label, regions, rows, line, limits, steep, first, at, place, factors, bits)
        for j in range(strip.size):
            if at[j] < 0:
                out[start + j] = 0
                continue
            end = at[j] + last
            value = table[end]
            if steep > 0:
                ratio, derivative = factors[1, j] * scales[1, j], 0.0
                for k in range(last):
                    factor = ratio * growth[last - k]
                    derivative = (derivative + value) * factor
                    value = table[end - k - 1] + value * factor
                value = factors[0, j] * scales[0, j] * ((place[j] + first) * value - derivative)
            else:
                for k in range(1, last):
                    value = table[end - k] + value * place[j]
            out[start + j] = value
