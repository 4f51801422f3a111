"""Pictures on disk in upright strips: a window is a few pieces of the file, read without mapping it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skt_components.data.windows import Window
from skt_components.files.numpy_files import read_header

Array = npt.NDArray[Any]

# Pixels. A crop reads up to one strip more than it is wide, so narrow is good, as long as rows are not too short.
_WIDTH = 64


class StripFile(NamedTuple):
    """A picture, or several, of shape (..., H, W), stored as ``.npy`` of (strips, H, planes, 64).

    The rows of a window lie side by side in each strip. Nothing stays open between two reads, and a file that was cut
    short is an error, where a mapped one would end the process.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    def cut(self, window: Window) -> Array:
        """Return the window (..., height, width) of every plane; ValueError if the file ends before."""
        top, left, height, width = window.source()
        rows, planes = self.shape[-2], math.prod(self.shape[:-2])
        region = np.empty((planes, height, width), self.dtype)
        row_bytes = planes * _WIDTH * self.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            for strip in range(left // _WIDTH, (left + width - 1) // _WIDTH + 1):
                piece = np.empty((height, planes, _WIDTH), self.dtype)
                file.seek(self.offset + (strip * rows + top) * row_bytes)
                self._fill(file, piece)
                start = max(left, strip * _WIDTH)
                stop = min(left + width, (strip + 1) * _WIDTH)
                part = piece[..., start - strip * _WIDTH : stop - strip * _WIDTH]
                region[..., start - left : stop - left] = part.swapaxes(0, 1)
        return region.reshape(*self.shape[:-2], height, width)

    def _fill(self, file: io.FileIO, piece: Array) -> None:
        memory = piece.data.cast("B")
        while memory:
            count = file.readinto(memory)
            if not count:
                raise ValueError(f"{self.path}: ends before its header says: it was cut short")
            memory = memory[count:]


def open_strips(path: Path, lead: tuple[int, ...], width: int, kinds: str) -> StripFile:
    """Read the header of a strip file.

    Args:
        path: the file.
        lead: what the planes are, such as (exposures, channels).
        width: of the picture, which the last strip may exceed.
        kinds: NumPy kinds of number that it may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or holds something else.
    """
    shape, fortran, dtype, offset = read_header(path, kinds=kinds, ndim=4)
    strips, height, planes, strip_width = shape
    if fortran or strip_width != _WIDTH or planes != math.prod(lead) or strips != -(-width // _WIDTH):
        wanted = f"({-(-width // _WIDTH)}, height, {math.prod(lead)}, {_WIDTH})"
        raise ValueError(f"{path}: must hold strips {wanted}, got {shape}")
    return StripFile(path, (*lead, height, width), dtype, offset)


def to_strips(pictures: Array) -> Array:
    """Return pictures (..., H, W) as strips (strips, H, planes, 64), the last one filled with zeros."""
    height, width = pictures.shape[-2:]
    planes = pictures.reshape(-1, height, width)
    count = -(-width // _WIDTH)
    padded = np.zeros((len(planes), height, count * _WIDTH), pictures.dtype)
    padded[..., :width] = planes
    return np.ascontiguousarray(padded.reshape(len(planes), height, count, _WIDTH).transpose(2, 1, 0, 3))
