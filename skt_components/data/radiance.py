"""Radiance files (.hdr): header, all orientations, flat pixels, and both forms of run lengths."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skt_components.data.formats import Part, Pixels
from skt_components.data.strips import decode_rgbe
from skt_components.data.windows import Array
from skt_components.files.bounds import check_promise
from skt_components.files.packages import import_package

_NEED = "Radiance .hdr files need OpenCV"
_SIZE = re.compile(rb"([-+])([XY])\s+(\d{1,99})\s+([-+])([XY])\s+(\d{1,99})\s*")
_LONGEST_RUN = 127  # pixels, in two bytes a channel
_PIXEL_BYTES = 12  # of the decoded picture


class Header(NamedTuple):
    """Contents of a Radiance header.

    Attributes:
        scanlines: number of them.
        length: length of a scanline in pixels.
        axes: sign and name of both axes, such as ``"-Y+X"``: scanlines from top to bottom, pixels to the right.
        exposure: factors of R, G and B by which the radiance was multiplied.
        start: offset of the pixels.
    """

    scanlines: int
    length: int
    axes: str
    exposure: tuple[float, float, float]
    start: int


def read_hdr(path: Path, part: Part = None) -> Pixels:
    """Decode a Radiance file as radiance: its numbers divided by what EXPOSURE and COLORCORR lines say."""
    if part is not None:
        raise ValueError(f"{path}: has no parts, got part={part!r}")
    data = path.read_bytes()
    header = _read_header(path, data)
    pixels = _decode(path, data[header.start :], header)
    if header.exposure != (1.0, 1.0, 1.0):
        with np.errstate(over="ignore"):
            pixels = (pixels / np.array(header.exposure)).astype(np.float32)
    if header.axes[1] == "X":  # a scanline is a column
        pixels = pixels.swapaxes(0, 1)
    rows, columns = (header.axes[:2], header.axes[2:]) if header.axes[1] == "Y" else (header.axes[2:], header.axes[:2])
    return pixels[:: 1 if rows == "-Y" else -1, :: 1 if columns == "+X" else -1]


def _read_header(path: Path, data: bytes) -> Header:
    """Parse the lines up to the empty one, and the line of the size after it; they end with LF or CRLF."""
    if not data.startswith(b"#?"):
        raise ValueError(f"{path}: not a Radiance file (it must start with #?RADIANCE)")
    exposure, start = np.ones(3), 0
    while True:
        end = data.find(b"\n", start)
        if end < 0:
            raise ValueError(f"{path}: broken or truncated Radiance file: its header has no end")
        line, start = data[start:end].removesuffix(b"\r"), end + 1
        if not line:
            break
        name, _, value = line.partition(b"=")
        if name == b"FORMAT" and value.strip() != b"32-bit_rle_rgbe":
            raise ValueError(f"{path}: its FORMAT must be 32-bit_rle_rgbe, got {_shown(value.strip())}")
        if name in (b"EXPOSURE", b"COLORCORR"):
            exposure *= _factors(path, name.decode(), value)
    end = data.find(b"\n", start)
    size = _SIZE.fullmatch(data[start : end if end >= 0 else start + 1])
    if not size or size[2] == size[5]:
        shown = _shown(data[start : max(end, start + 40)])
        raise ValueError(f"{path}: broken Radiance file: its size must be like -Y 480 +X 640, got {shown}")
    scanlines, length = int(size[3]), int(size[6])
    if not scanlines * length:
        raise ValueError(f"{path}: the picture has no pixels, {scanlines} scanlines of {length}")
    axes = b"".join(size.group(1, 2, 4, 5)).decode()
    red, green, blue = exposure.tolist()
    return Header(scanlines, length, axes, (red, green, blue), end + 1)


def _factors(path: Path, name: str, value: bytes) -> Array:
    """Return the numbers of an EXPOSURE line (one) or a COLORCORR line (three)."""
    try:
        factors = np.array([float(word) for word in value.split()])
    except ValueError:
        factors = np.array([])
    wanted = 1 if name == "EXPOSURE" else 3
    if factors.size != wanted or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"{path}: {name} must be {wanted} finite number{'s' * (wanted > 1)} > 0, got {_shown(value)}")
    return factors


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("latin1"))


def _decode(path: Path, data: bytes, header: Header) -> Pixels:
    """Return the scanlines as they are stored."""
    scanlines, length, *_ = header
    count = scanlines * length
    if 8 <= length < 2**15 and data[:4] == bytes([2, 2, length >> 8, length & 255]):
        least = scanlines * (4 + 8 * math.ceil(length / _LONGEST_RUN))
        if len(data) < least:
            raise ValueError(f"{path}: broken or truncated Radiance file: needs {least} bytes, has {len(data)}")
        return _decode_runs(path, data, header)
    check_promise(path, count * _PIXEL_BYTES)
    return _to_radiance(_expand_old_runs(path, data, count), scanlines, length)


def _decode_runs(path: Path, data: bytes, header: Header) -> Pixels:
    """Decode scanlines of run lengths by channel with OpenCV, behind a header of ours."""
    cv2 = import_package("cv2", _NEED, "data")
    ours = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {header.scanlines} +X {header.length}\n".encode()
    try:
        bgr = cv2.imdecode(np.frombuffer(ours + data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"{path}: broken Radiance file ({str(error).strip()})") from error
    if bgr is None or bgr.shape != (header.scanlines, header.length, 3):
        raise ValueError(f"{path}: broken or truncated Radiance file")
    return np.asarray(bgr[..., ::-1], np.float32)


def _expand_old_runs(path: Path, data: bytes, count: int) -> Array:
    """Return ``count`` pixels in which (1, 1, 1, n) repeats the last pixel n times; consecutive ones are n's digits."""
    pixels = np.frombuffer(data[: len(data) // 4 * 4], np.uint8).reshape(-1, 4)[:count]
    runs = (pixels[:, :3] == 1).all(1)
    index = np.arange(len(pixels))
    digit = index - np.maximum.accumulate(np.where(runs, -1, index)) - 1  # place of a run in its row of runs
    if len(pixels) == 0 or runs[0] or (runs & (digit > 3)).any():
        raise ValueError(f"{path}: broken or truncated Radiance file: a run of pixels at its start, or without end")
    repeats = np.where(runs, pixels[:, 3].astype(np.int64) << np.where(runs, 8 * digit, 0), 1)
    ends = np.cumsum(repeats)
    last = int(np.searchsorted(ends, count))
    if last == len(ends) or ends[last] != count:
        raise ValueError(f"{path}: broken or truncated Radiance file: {ends[-1]} of {count} RGBE values")
    sources = np.maximum.accumulate(np.where(runs, 0, index))[: last + 1]
    return np.repeat(pixels[sources], repeats[: last + 1], axis=0)


def _to_radiance(rgbe: Array, scanlines: int, length: int) -> Pixels:
    return decode_rgbe(rgbe.reshape(-1, 4).T).T.reshape(scanlines, length, 3)


def write_hdr(path: Path, pixels: Pixels) -> None:
    """Encode Radiance RGBE."""
    done, data = import_package("cv2", _NEED, "data").imencode(".hdr", np.ascontiguousarray(pixels[..., ::-1]))
    if not done:
        raise ValueError(f"{path}: OpenCV could not encode a picture of shape {pixels.shape}")
    path.write_bytes(data.tobytes())
