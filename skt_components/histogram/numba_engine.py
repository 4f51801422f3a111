"""The soft histogram on the CPU in loops that numba compiles: the sums of the torch engine, without its temporaries.

Pixels go through in strips that stay in the first-level cache: one loop that the compiler vectorises finds each
value's cell and first factor, a second one adds to the table or reads from it. Both kinds of basis have one form, in
which a value at ``cell`` with the factors ``kernel`` and ``ratio`` has the share ``kernel * growth[k] * ratio ** k``
in the k-th of a run of neighbouring numbers: the bins of its window (taps), or the moments of its cell.

Pictures and channels are independent and are shared out among as many threads as torch is allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from skt_components.histogram.kernels import Moments, Taps, spread_nan

_CHUNK = 1 << 16  # pixels at a time, which are copied where they are not contiguous
_THREAD = 1 << 18  # values that are worth a thread
_STRIP = 512
# All that lets the compiler vectorise, but for the two that forbid NaN and infinity.
_FAST = {"reassoc", "nsz", "arcp", "contract", "afn"}


def _compile(function: Callable) -> Callable:
    function = inspect.unwrap(function)  # run-time checkers of annotations wrap it
    options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache can be written
        return numba.njit(**options)(function)


def compiled_difference(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, regions: int, basis: Taps | Moments
) -> Tensor:
    """Return the histograms of ``student`` minus those of ``teacher``, ``(B, R, C, N)``; shapes as in the torch engine.

    The basis must be :attr:`recurrent`.
    """
    batch, channels, pixels = student.shape
    result = torch.zeros(batch, regions, channels, basis.bins.num, dtype=torch.float64)
    constants = _constants(basis)
    signed = [(x, sign) for x, sign in ((student, 1.0), (teacher, -1.0)) if x is not None]

    def count(place: tuple[int, int]) -> None:
        picture, channel = place
        table, flat = _table(basis, regions)
        for part in _parts(pixels):
            label = _labels(labels, picture, part)
            for values, sign in signed:
                _add(_row(values, place, part), label, regions, sign, flat, *constants)
        result[picture, :, channel] = spread_nan(basis.fold(table))

    _share_out(count, student)
    return result


def compiled_gradient(upstream: Tensor, values: Tensor, labels: Tensor | None, basis: Taps | Moments) -> Tensor:
    """Return the gradient for ``values`` (B, C, P), given that for their histograms, ``upstream`` (B, R, C, N)."""
    regions, pixels = upstream.shape[1], values.shape[2]
    result = torch.empty(values.shape, dtype=values.dtype)
    upstream, constants = upstream.double(), _constants(basis)

    def read(place: tuple[int, int]) -> None:
        picture, channel = place
        table, flat = _table(basis, regions)
        basis.unfold(upstream[picture, :, channel], table)
        for part in _parts(pixels):
            label = _labels(labels, picture, part)
            _read(_row(values, place, part), label, regions, _row(result, place, part), flat, *constants)

    _share_out(read, values)
    return result


def _share_out(work: Callable[[tuple[int, int]], None], values: Tensor) -> None:
    """Do the ``work`` of every picture and channel, on several threads where that pays."""
    places = list(product(range(values.shape[0]), range(values.shape[1])))
    threads = min(torch.get_num_threads(), len(places), values.numel() // _THREAD)
    if threads <= 1:
        for place in places:
            work(place)
        return
    inference = torch.is_inference_mode_enabled()

    def work_there(place: tuple[int, int]) -> None:  # a thread does not know of these modes
        with torch.inference_mode(inference), torch.no_grad():
            work(place)

    with ThreadPoolExecutor(threads) as pool:  # made anew: one that is kept would not survive a fork
        list(pool.map(work_there, places))


def _table(basis: Taps | Moments, regions: int) -> tuple[Tensor, np.ndarray]:
    """Return a table of zeros as the basis folds it, (tables, R, segment), and as the loops see it."""
    table = torch.zeros(regions, basis.segment, basis.tables, dtype=torch.float64)
    return table.permute(2, 0, 1), table.view(-1).numpy()


def _parts(pixels: int) -> list[slice]:
    return [slice(first, min(first + _CHUNK, pixels)) for first in range(0, pixels, _CHUNK)]


def _row(values: Tensor, place: tuple[int, int], part: slice) -> np.ndarray:
    return values[place][part].contiguous().numpy()


def _labels(labels: Tensor | None, picture: int, part: slice) -> np.ndarray:
    return np.empty(0, np.int64) if labels is None else labels[picture, part].to(torch.int64).contiguous().numpy()


def _constants(basis: Taps | Moments) -> tuple[object, ...]:
    """What the loops need to know of the basis; ``growth`` as a tuple, so that they are compiled for its length."""
    if isinstance(basis, Taps):
        kernel: tuple[float, float, tuple[float, ...]] = (basis.steep, basis.bins.half_window - 0.5, (*basis.growth,))
    else:
        kernel = (0.0, 0.0, (1.0,) * basis.tables)
    return ((basis.origin, basis.segment, basis.tables), basis.line, basis.limits, *kernel)


@_compile
def _power_of_two(x):  # type: ignore[no-untyped-def]
    """Return 2 ** x as a factor close to 1, exact to 2e-13, and the bits of the float64 that completes it."""
    whole = np.floor(x + 0.5)
    y = (x - whole) * 0.6931471805599453
    series = 1 / 5040 + y * (1 / 40320 + y * (1 / 362880 + y / 3628800))
    series = 1 + y * (1 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * series))))))
    return series, np.int64(np.int32(whole) + 1023) << 52


@_compile
def _locate(values, labels, regions, rows, line, limits, steep, first, at, place, factors, bits):  # type: ignore[no-untyped-def]
    """Find where the run of every value of a strip begins, its place in its cell from -0.5 to 0.5, its two factors.

    A run of no region begins at -1.
    """
    scale, shift = line
    low, high = limits
    origin, segment, tables = rows
    for j in range(values.size):
        exact = values[j] * scale + shift
        inside = exact if exact == exact else 0.0  # NaN has a cell, where its place spoils the histogram
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
    """Memory for a strip: runs, places, factors and what completes these, as bits and as numbers."""
    scales = np.empty((2, _STRIP))
    return np.empty(_STRIP, np.int64), np.empty(_STRIP), np.empty((2, _STRIP)), scales.view(np.int64), scales


@_compile
def _add(values, labels, regions, sign, table, rows, line, limits, steep, first, growth):  # type: ignore[no-untyped-def]
    """Add ``sign`` times the shares of every value to its run of the table."""
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
    """Set ``out`` to the slope of every value, by Horner's rule in its ratio.

    Taps: the sum of table times kernel times distance, for which the rule gives value and derivative together.
    Moments: the polynomial whose coefficients :meth:`Moments.unfold` left behind the first number of the run.
    """
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
