"""Readers and writers of the file formats; arrays are H×W×3 RGB."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skt_components.data.windows import Array

Pixels = npt.NDArray[np.float32]

_PACKAGES = {
    "cv2": "Radiance .hdr files need OpenCV",
    "OpenEXR": ".exr files need the OpenEXR package",
    "tifffile": ".tif files need the tifffile package",
}
# Largest plausible compression: LZW and Deflate reach about 1400 bytes a byte; RGBE runs at most 127 pixels in 8 bytes.
_MAX_UNPACKED, _MAX_RGBE_PIXELS = 1400, 16
_SCALES = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{_PACKAGES[module]}: pip install "skt-components[data]"') from error


def _to_float(path: Path, array: Array) -> Pixels:
    """Scale whole numbers to [0, 1], keep floats; drop a fourth channel."""
    if array.dtype in _SCALES:
        pixels = array.astype(np.float32) / np.float32(_SCALES[array.dtype])
    elif array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = array.astype(np.float32)
    else:
        raise ValueError(f"{path}: numbers must be uint8, uint16 or floats, got {array.dtype}")
    if 0 in pixels.shape:
        raise ValueError(f"{path}: the picture has no pixels, shape {array.shape}")
    return pixels[..., :3]


def read_hdr(path: Path) -> Pixels:
    """Decode Radiance RGBE."""
    data = path.read_bytes()
    if not data.startswith((b"#?RADIANCE", b"#?RGBE")):
        raise ValueError(f"{path}: not a Radiance file (it must start with #?RADIANCE)")
    if b"32-bit_rle_xyze" in data[:4096]:
        raise ValueError(f"{path}: Radiance XYZE files are not supported, only RGBE")
    size = re.search(rb"\n[-+][XY] +(\d{1,9}) +[-+][XY] +(\d{1,9}) *\n", data[:65536])
    if size and int(size[1]) * int(size[2]) > _MAX_RGBE_PIXELS * len(data):
        raise ValueError(f"{path}: its header promises more pixels than a file of {len(data)} bytes can hold")
    cv2 = _load("cv2")
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"{path}: broken Radiance file ({str(error).strip()})") from error
    if bgr is None:
        raise ValueError(f"{path}: broken or truncated Radiance file")
    return _to_float(path, bgr[..., ::-1])


def write_hdr(path: Path, pixels: Pixels) -> None:
    """Encode Radiance RGBE."""
    done, data = _load("cv2").imencode(".hdr", np.ascontiguousarray(pixels[..., ::-1]))
    if not done:
        raise ValueError(f"{path}: OpenCV could not encode a picture of shape {pixels.shape}")
    path.write_bytes(data.tobytes())


def read_exr(path: Path) -> Pixels:
    """Read R, G and B of the first part that has them."""
    openexr = _load("OpenEXR")
    try:
        with openexr.File(str(path), separate_channels=True) as file:
            parts = [{name: c.pixels for name, c in part.channels.items()} for part in file.parts]
    except Exception as error:
        raise ValueError(f"{path}: broken, truncated or no OpenEXR file ({error})") from error
    if not parts:
        raise ValueError(f"{path}: broken or truncated OpenEXR file (no part could be read)")
    rgb = next((part for part in parts if {"R", "G", "B"} <= part.keys()), None)
    if rgb is None:
        names = sorted(name for part in parts for name in part)
        raise ValueError(f"{path}: no part has channels R, G and B, only {', '.join(names) or 'none'}")
    planes = [rgb[name] for name in "RGB"]
    if any(plane is None or plane.ndim != 2 or plane.shape != planes[0].shape for plane in planes):
        raise ValueError(f"{path}: R, G and B must have one size")
    if any(plane.dtype.kind != "f" for plane in planes):
        raise ValueError(f"{path}: R, G and B must be half or float, got {planes[0].dtype}")
    return _to_float(path, np.stack(planes, axis=-1))


def write_exr(path: Path, pixels: Array) -> None:
    """Write R, G and B, losslessly compressed, in the array's own precision."""
    openexr = _load("OpenEXR")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    channels = {name: np.ascontiguousarray(pixels[..., i]) for i, name in enumerate("RGB")}
    with openexr.File(header, channels) as file:
        file.write(str(path))


def read_tif(path: Path) -> Pixels:
    """Read the first page, see :func:`decode_tif`."""
    return _to_float(path, decode_tif(path))


def decode_tif(path: Path) -> Array:
    """Read the first page as H×W×3 or H×W×4 in the file's own numbers; gray is repeated three times.

    OpenCV decodes LZW and other compressed pages if tifffile lacks the codec.
    """
    tifffile = _load("tifffile")
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
            if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
                raise ValueError(f"color type must be RGB or gray, got {page.photometric!r}")
            if page.nbytes > _MAX_UNPACKED * path.stat().st_size:
                raise ValueError(f"its header promises {page.nbytes} bytes, which no file of its length can hold")
            try:
                array = page.asarray()
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                array, planar = _decode_tif_with_opencv(path), False
    except Exception as error:
        raise ValueError(f"{path}: broken, truncated or unsupported TIFF file ({error})") from error
    if planar:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ValueError(f"{path}: must be RGB, RGBA or gray, got shape {array.shape}")
    return array


def _decode_tif_with_opencv(path: Path) -> Array:
    cv2 = _load("cv2")
    bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None:
        raise ValueError("OpenCV cannot decode it")
    return bgr if bgr.ndim == 2 else bgr[..., [2, 1, 0]]


def write_tif(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Write uncompressed 16-bit RGB."""
    _load("tifffile").imwrite(path, pixels, photometric="rgb", metadata=None)


def read_npy(path: Path) -> Pixels:
    """Read H×W×3 or 3×H×W."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{path}: broken, truncated or no .npy array ({error})") from error
    if array.ndim != 3 or 3 not in (array.shape[-1], array.shape[0]):
        raise ValueError(f"{path}: must be H×W×3 or 3×H×W, got shape {array.shape}")
    return _to_float(path, array if array.shape[-1] == 3 else array.transpose(1, 2, 0))
