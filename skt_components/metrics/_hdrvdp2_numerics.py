"""Numerics of HDR-VDP-2: cached constants, work in strips, interpolation, powers, MATLAB's bicubic resizing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
T = TypeVar("T")

_STRIP = 2**18  # numbers in a strip
_BLOCK = 32  # output rows of one matrix product of resize


def cached(count: int) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Keep the last ``count`` constants of a function for later pictures of the same size."""

    def decorate(build: Callable[P, Tensor]) -> Callable[P, Tensor]:
        @wraps(build)
        def constant(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            # Tensors made in inference mode could not be used by a later call with gradients.
            with torch.inference_mode(False), torch.no_grad():
                return build(*args, **kwargs)

        return lru_cache(maxsize=count)(constant)  # type: ignore[return-value]

    return decorate


def in_strips(function: Callable[..., Tensor], *maps: Tensor, dim: int = -2) -> Tensor:
    """Return ``function(*maps)``, computed strip by strip along ``dim`` on a CPU.

    The intermediate results then fit in the cache: three times as fast. The backward pass computes them again.
    """
    largest = max(maps, key=Tensor.numel)
    length = largest.shape[dim]
    strip = max(_STRIP * length // largest.numel(), 1)
    if largest.device.type != "cpu" or strip >= length:
        return recomputed(function, *maps)
    strips = zip(*(part.split(strip, dim) for part in maps), strict=True)
    return torch.cat([recomputed(function, *parts) for parts in strips], dim)


def recomputed(function: Callable[..., T], *maps: Tensor) -> T:
    """Return ``function(*maps)``; the backward pass computes it again instead of keeping intermediate results."""
    if not torch.is_grad_enabled() or not any(part.requires_grad for part in maps):
        return function(*maps)
    return checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=False)


def interpolate(table: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Interpolate linearly in a 1-D ``table`` sampled evenly over [low, high], to which ``x`` is clamped."""
    position = (x.clamp(low, high) - low) * ((len(table) - 1) / (high - low))
    index = position.detach().long().clamp(0, len(table) - 2)
    # index_select is five times as fast as indexing, on a CPU.
    start, slope = (column.index_select(0, index.flatten()).view_as(x) for column in (table, table.diff()))
    return start + (position - index) * slope


def power(x: Tensor, exponent: float) -> Tensor:
    """Return ``x ** exponent`` for x >= 0 and an exponent >= 1, in a third of the time of pow on a CPU."""
    return (x.clamp(min=torch.finfo(x.dtype).tiny).log() * exponent).exp()


def resize(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Resize maps ``(..., H, W)`` as MATLAB's ``imresize``: bicubic, antialiased, mirrored with the edge sample."""
    height, width = size
    return _resize_rows(_resize_rows(maps, height).mT, width).mT


def _resize_rows(maps: Tensor, count: int) -> Tensor:
    """Resize the second last axis of ``maps`` to ``count`` rows."""
    rows = maps.shape[-2]
    if rows == count:
        return maps
    weights = _weights(rows, count, maps.dtype, maps.device)
    windows = maps.index_select(-2, _windows(rows, count, maps.device))
    windows = windows.unflatten(-2, (weights.shape[0], weights.shape[2]))
    return (weights @ windows).flatten(-3, -2)[..., :count, :]


@cached(256)
def _weights(rows: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights ``(blocks, 32, window)`` of the rows in each block's window."""
    matrix = _matrix(rows, count)
    starts, window = _block_windows(matrix)
    padded = np.pad(matrix, ((0, len(starts) * _BLOCK - count), (0, 0)))
    blocks = [padded[i * _BLOCK : (i + 1) * _BLOCK, start : start + window] for i, start in enumerate(starts)]
    return torch.from_numpy(np.stack(blocks)).to(device, dtype)


@cached(256)
def _windows(rows: int, count: int, device: torch.device) -> Tensor:
    """Return the rows that the blocks need, one window after the other."""
    starts, window = _block_windows(_matrix(rows, count))
    return torch.from_numpy((np.array(starts)[:, None] + np.arange(window)).ravel()).to(device)


def _block_windows(matrix: np.ndarray) -> tuple[list[int], int]:
    """Return where the window of each block of 32 output rows starts, and the length of all windows."""
    # The weights lie in a band: a block needs few rows, and all blocks together are one small matrix product.
    blocks = [np.flatnonzero(matrix[i : i + _BLOCK].any(axis=0)) for i in range(0, len(matrix), _BLOCK)]
    window = max(int(used[-1] - used[0]) + 1 for used in blocks)
    return [min(int(used[0]), matrix.shape[1] - window) for used in blocks], window


def _matrix(rows: int, count: int) -> np.ndarray:
    """Return the matrix ``(count, rows)`` of the resizing."""
    scale = count / rows
    stretch = min(scale, 1.0)
    width = 4 / stretch
    centers = np.arange(1, count + 1) / scale + 0.5 * (1 - 1 / scale)
    support = np.floor(centers - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(stretch * (centers[:, None] - support))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = (support.astype(np.int64) - 1) % (2 * rows)
    mirrored = np.minimum(mirrored, 2 * rows - 1 - mirrored)
    matrix = np.zeros((count, rows))
    np.add.at(matrix, (np.arange(count)[:, None], mirrored), weights)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
