"""Picture files of prepared data: vertical strips, from which a window is read in a few pieces, and RGBE labels."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skt_components.data.windows import Array, Window
from skt_components.files.numpy_files import read_header

# Pixels. A crop reads up to one strip more than its width, so narrow strips are good until rows get too short.
_WIDTH = 64
_RGBE_SCALES = np.array([0.0, *(2.0 ** (e - 136) for e in range(1, 256))], np.float32)


class StripFile(NamedTuple):
    """A picture, or several, of shape (..., H, W), stored as ``.npy`` of (strips, H, planes, 64).

    The rows of a window are contiguous in each strip. No file stays open between two reads, and a truncated file raises
    an error, where a memory-mapped one would kill the process.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    def cut(self, window: Window) -> Array:
        """Return the window (..., height, width) of every plane; ValueError if the file is truncated."""
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
    """Read the header of a strip file of pictures (*lead, any height, width) whose numbers have one of NumPy's kinds.

    A ValueError means that the file is broken, or holds something else.
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


def decode_rgbe(rgbe: Array) -> npt.NDArray[np.float32]:
    """Return the radiance (3, H, W) of Radiance bytes (4, H, W)."""
    return rgbe[:3] * _RGBE_SCALES.take(rgbe[3].astype(np.intp))


def encode_rgbe(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    """Return bytes (4, H, W) that decode to exactly this picture (3, H, W), or None if there are none."""
    _, exponents = np.frexp(picture.max(axis=0))
    exponents = np.where(picture.max(axis=0) > 0, exponents + 128, 0)
    if exponents.min() < 0 or exponents.max() > 255:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        mantissas = np.where(exponents > 0, picture / _RGBE_SCALES[exponents], 0)
    if not (mantissas.min() >= 0 and mantissas.max() <= 255):
        return None
    rgbe = np.concatenate([mantissas, exponents[None]]).astype(np.uint8)
    return rgbe if np.array_equal(decode_rgbe(rgbe), picture) else None
