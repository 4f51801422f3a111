"""Read region maps from files, such as the segmentation of a data set."""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from skt_components.files.bounds import check_picture_size
from skt_components.files.numpy_files import read_array
from skt_components.files.packages import import_package
from skt_components.files.tiff import read_tiff
from skt_components.files.unpickle import value_errors

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}
_PNG_STEP = {2: 85, 4: 17}  # Pillow spreads gray of few bits over 0..255
_HINT = "a region map has one integer per pixel; write it as 8- or 16-bit gray or with a palette"


def read_label_map(
    path: str | os.PathLike[str], *, ignore: int | None = None, compact: bool = False
) -> Int[Tensor, "h w"]:
    """Read one region per pixel from a ``.png``, ``.tif`` or ``.npy`` file.

    The numbers in the file are never scaled: gray values, or the indices of a palette (not its colors). Arrays may be
    of any integer type or bool. Negative numbers mean "no region" and become -1.

    Args:
        path: the file; Pillow or tifffile is needed for its format.
        ignore: a number that means "no region", such as 255; it becomes -1.
        compact: renumber the other numbers to 0..R-1 in rising order. Use it for ids with gaps, such as 26001. Then
            labels of different pictures cannot be compared.

    Returns:
        int64 ``(H, W)``, -1 where there is no region.

    Raises:
        TypeError: ``ignore`` is not an integer.
        FileNotFoundError: the file does not exist.
        ValueError: the suffix is not supported, or the file is damaged or not a map of integers.

    Example:
        >>> labels = read_label_map("scene_regions.png", ignore=255)  # doctest: +SKIP
    """
    if ignore is not None and not isinstance(ignore, numbers.Integral):
        raise TypeError(f"ignore must be a whole number or None, got {ignore!r}")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ValueError(f"{path}: suffix must be one of {', '.join(_READERS)}, got {suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    array = _READERS[suffix](path)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{path}: numbers must be integers or bool, got {array.dtype}; {_HINT}")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{path}: must be H×W, got shape {array.shape}; {_HINT}")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{path}: numbers must fit into int64, got {array.max()}")
    labels = array.astype(np.int64)
    labels[(labels < 0) | (labels == (-1 if ignore is None else ignore))] = -1
    if compact:
        known = labels >= 0
        labels[known] = np.unique(labels[known], return_inverse=True)[1].reshape(-1)
    return torch.from_numpy(labels)


def _read_png(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(_PNG):
        raise ValueError(f"{path} is not a readable PNG file")
    depth, color = header[24], header[25]
    if color in _PNG_COLORS:
        raise ValueError(f"{path}: the picture is {_PNG_COLORS[color]}; {_HINT}")
    check_picture_size(path)
    pillow = import_package("PIL.Image", "region maps in .png files need Pillow", "data")
    with value_errors(path, "a readable PNG file"), pillow.open(path) as image:
        array = np.array(image)
    return array // _PNG_STEP[depth] if color == 0 and depth in _PNG_STEP else array


def _read_tif(path: Path) -> npt.NDArray[Any]:
    try:
        array = read_tiff(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable TIFF file: {str(error).removeprefix(f'{path}: ')}") from None
    if array.shape[-1] != 1:
        raise ValueError(f"{path}: the picture has {array.shape[-1]} channels; {_HINT}")
    return array[..., 0]


def _read_npy(path: Path) -> npt.NDArray[Any]:
    with value_errors(path, "a readable .npy array"):
        return read_array(path)


_READERS = {".png": _read_png, ".tif": _read_tif, ".tiff": _read_tif, ".npy": _read_npy}
