"""Read one page of a TIFF file, or end in an error that says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skt_components.files.bounds import check_promise
from skt_components.files.packages import import_package
from skt_components.ops.checks import warn_caller

Array = npt.NDArray[Any]

# Lossless ones whose decoders give bytes; others (JPEG, JPEG 2000, WebP) may decode to another type or color.
_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    8: "Deflate",
    32946: "Deflate",
    32773: "PackBits",
    34925: "LZMA",
    50000: "Zstandard",
}
_LZW = 5
_PREDICTORS = (1, 2, 3)


class _UnsupportedError(ValueError):
    """A page of a kind that is not supported, or not here."""


def read_tiff(
    path: Path, *, part: int | None = None, check_page: Callable[[Any], str | None] = lambda page: None
) -> Array:
    """Read a page as H×W×channels in the file's own numbers and byte order, upright as its orientation tag says.

    Alpha is a channel like others: colors are not multiplied by it. tifffile decodes the page; compressions that it
    cannot decode alone need imagecodecs. OpenCV replaces imagecodecs for one kind, see :func:`_decode_with_opencv`.

    Args:
        path: the file.
        part: number of the page, from 0; None: the first one that is not a reduced copy or a mask, with a warning if
            there are several.
        check_page: returns why a page of tifffile is not wanted, or None.

    Raises:
        ValueError: the file is damaged, has no such page, an unsupported kind of page, or one that is not wanted; or
            imagecodecs is missing, which the message names.
        ImportError: tifffile is missing.
    """
    tifffile = import_package("tifffile", ".tif files need the tifffile package", "data")
    try:
        with tifffile.TiffFile(path) as file:
            page = _choose_page(path, file.pages, part)
            if problem := check_page(page) or _unsupported(page):
                raise _UnsupportedError(f"{path}: {problem}")
            check_promise(path, max(page.nbytes, math.prod(page.chunks) * page.dtype.itemsize))
            array = _decode(path, page)
            orientation = page.tags[274].value if 274 in page.tags else 1
            contiguous = page.planarconfig == 1 or page.samplesperpixel == 1
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    except _UnsupportedError:
        raise
    except Exception as error:  # a damaged file can make the reader fail in any way
        reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
        raise ValueError(f"{path}: broken, truncated or unsupported TIFF file ({reason})") from None
    array = array.reshape(shape) if contiguous else np.moveaxis(array.reshape(shape[2], *shape[:2]), 0, -1)
    return _upright(array, orientation)


def _choose_page(path: Path, pages: Any, part: int | None) -> Any:
    if part is not None:
        if not 0 <= part < len(pages):
            raise _UnsupportedError(f"{path}: part must be the number of one of {len(pages)} pages, from 0, got {part}")
        return pages[part]
    whole = [number for number, page in enumerate(pages) if not page.subfiletype & 5]  # 1: reduced, 4: mask
    chosen = whole[0] if whole else 0
    if len(whole) > 1:
        warn_caller(f"{path}: has {len(whole)} pages that could be the picture, page {chosen} is read; part= chooses")
    return pages[chosen]


def _unsupported(page: Any) -> str | None:
    """Return why a page cannot be decoded to exactly its own numbers, or None."""
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        wanted = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        return f"its compression must be one of {wanted}, got {name}: save it again with one of these"
    if page.predictor not in _PREDICTORS:
        return f"its predictor must be one of {_PREDICTORS}, got {page.predictor}"
    if page.dtype is None or 0 in page.shape or page.imagedepth != 1:
        return f"it must be a flat picture of numbers, got shape {page.shape}, {page.bitspersample} bits per sample"
    if page.is_subsampled:
        return "its colors have fewer pixels than its brightness"
    if len(page.dataoffsets) < math.prod(page.chunked) or min(page.databytecounts, default=0) < 1:
        return "strips or tiles of the picture are missing"
    return None


def _decode(path: Path, page: Any) -> Array:
    try:
        array = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        name = _COMPRESSIONS[page.compression]
        if (decoded := _decode_with_opencv(path, page)) is None:
            bits = f"{page.bitspersample}-bit {getattr(page.photometric, 'name', page.photometric)}"
            install = 'imagecodecs: pip install "skt-components[data]"'
            raise _UnsupportedError(f"{path}: {name} compression of {bits} pictures needs {install}") from None
        array = decoded
    # Each sample of a strip that is cut short is an error in tifffile, but not in all of its decoders.
    if array.size != math.prod(page.shape) or array.dtype.newbyteorder("=") != page.dtype.newbyteorder("="):
        raise ValueError(f"it decodes to {array.shape} {array.dtype}, its header says {page.shape} {page.dtype}")
    return array


def _decode_with_opencv(path: Path, page: Any) -> Array | None:
    """Decode LZW where imagecodecs is missing; return None for pages that OpenCV may decode to other numbers.

    OpenCV gives the file's numbers, or an error for a damaged file, for upright gray or RGB of 16 bits in strips with
    the samples of a pixel together, as it writes itself. It decodes 8 bits and alpha in another way, which multiplies
    by alpha and fills damaged strips with zeros.
    """
    plain = page.compression == _LZW and page.predictor in (1, 2) and page.fillorder == 1 and not page.is_tiled
    upright = 274 not in page.tags or page.tags[274].value == 1
    samples = page.samplesperpixel == {1: 1, 2: 3}.get(page.photometric) and page.planarconfig == 1
    if not (plain and upright and samples and page.dtype == np.uint16 and page.bitspersample == 16 and page.index == 0):
        return None
    try:
        cv2 = import_package("cv2", "", "data")
    except ImportError:
        return None
    bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None:
        raise ValueError("OpenCV cannot decode it")
    return bgr if bgr.ndim == 2 else bgr[..., ::-1]


def _upright(array: Array, orientation: int) -> Array:
    """Return H×W×C turned as TIFF's orientation tag says, from 1 (as stored) to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
