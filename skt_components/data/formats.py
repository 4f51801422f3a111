"""Readers and writers of TIFF files and arrays, and the numbers that all formats share; pictures are H×W×3 RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skt_components.data.windows import Array
from skt_components.files.bounds import check_picture_size
from skt_components.files.numpy_files import read_array
from skt_components.files.packages import import_package
from skt_components.files.tiff import read_tiff

Pixels = npt.NDArray[np.float32]
Part = int | str | None

_SCALES = {1: 255.0, 2: 65535.0}  # bytes of unsigned integers


def to_float(path: Path, array: Array) -> Pixels:
    """Scale whole numbers of 8 and 16 bits to [0, 1], keep floats, in any byte order; drop all but three channels."""
    if array.dtype.kind == "u" and array.dtype.itemsize in _SCALES:
        pixels = array.astype(np.float32) / np.float32(_SCALES[array.dtype.itemsize])
    elif array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = array.astype(np.float32)
    else:
        raise ValueError(f"{path}: numbers must be uint8, uint16 or floats, got {array.dtype}")
    if 0 in pixels.shape:
        raise ValueError(f"{path}: the picture has no pixels, shape {array.shape}")
    return pixels[..., :3]


def read_tif(path: Path, part: Part = None) -> Pixels:
    """Read a page, see :func:`decode_tif`."""
    return to_float(path, decode_tif(path, part))


def decode_tif(path: Path, part: Part = None, *, bits: int | None = None) -> Array:
    """Read a page as H×W×3 in the file's own numbers, upright; gray is repeated three times, other channels dropped.

    Args:
        path: the file.
        part: number of the page.
        bits: required size of the unsigned integers; None: any type.

    Raises:
        ValueError, ImportError: as :func:`read_tiff`.
    """
    if isinstance(part, str):
        raise ValueError(f"{path}: part of a TIFF file must be the number of a page, from 0, got {part!r}")

    def check_page(page: Any) -> str | None:
        if bits is not None and page.dtype != np.dtype(f"u{bits // 8}"):
            return f"must be a {bits}-bit TIFF, got {page.dtype}"
        return _unwanted(page)

    array = read_tiff(path, part=part, check_page=check_page)
    return array[..., :3] if array.shape[-1] > 2 else np.repeat(array[..., :1], 3, axis=-1)


def _unwanted(page: Any) -> str | None:
    """Return why a page of tifffile is not RGB or gray of whole bytes, or None."""
    name = getattr(page.photometric, "name", page.photometric)
    fits = {"RGB": page.samplesperpixel >= 3, "MINISBLACK": page.samplesperpixel <= 2}
    if name not in fits:
        return f"color type must be RGB or gray, got {name}"
    if not fits[name]:
        return f"its color type is {name}, but it has {page.samplesperpixel} channels"
    if page.dtype is not None and page.dtype.kind == "u" and page.bitspersample != 8 * page.dtype.itemsize:
        return f"numbers must have 8 or 16 bits, got {page.bitspersample}"
    return None


def decode_png_or_jpeg(path: Path) -> Array:
    """Decode a PNG or JPEG file to H×W×3 of uint8 or uint16, turned as its EXIF orientation says; alpha is dropped.

    Raises:
        ValueError: the file is damaged or not a picture.
        ImportError: OpenCV is missing.
    """
    check_picture_size(path)
    cv2: Any = import_package("cv2", f"reading {path.suffix} needs OpenCV", "data")
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        raise ValueError(f"{path}: the file is not a picture, or it is damaged")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: pictures must have 8 or 16 bits, got {pixels.dtype}")
    return np.asarray(pixels[..., ::-1])


def write_tif(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Write uncompressed 16-bit RGB."""
    tifffile = import_package("tifffile", ".tif files need the tifffile package", "data")
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None)


def read_npy(path: Path, part: Part = None) -> Pixels:
    """Read H×W×3 or 3×H×W, of any byte order."""
    if part is not None:
        raise ValueError(f"{path}: has no parts, got part={part!r}")
    array = read_array(path)
    if array.ndim != 3 or 3 not in (array.shape[-1], array.shape[0]):
        raise ValueError(f"{path}: must be H×W×3 or 3×H×W, got shape {array.shape}")
    return to_float(path, array if array.shape[-1] == 3 else array.transpose(1, 2, 0))
