"""Read and write linear pictures: .hdr, .exr, .tif, .npy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.data import exr, formats, radiance
from skt_components.files import atomic_write
from skt_components.ops.checks import check_choice, check_tensor

_READERS = {
    ".hdr": radiance.read_hdr,
    ".exr": exr.read_exr,
    ".tif": formats.read_tif,
    ".tiff": formats.read_tif,
    ".npy": formats.read_npy,
}
SUPPORTED_SUFFIXES = tuple(_READERS)


def read_image(
    path: str | os.PathLike[str], *, part: int | str | None = None, nonfinite: str = "raise"
) -> Float[Tensor, "3 h w"]:
    """Read a picture as float32 RGB, with the values that the file stores.

    - ``.hdr``: Radiance RGBE of any orientation, with or without run lengths. The values are divided by the factors of
      the EXPOSURE and COLORCORR lines, which gives radiance.
    - ``.exr``: the channels R, G and B, or luminance Y with or without RY and BY, in the display window. Pixels without
      data are zero. All other channels, also alpha, are ignored.
    - ``.tif``: uint8 / 255, uint16 / 65535, or unchanged floats. Gray is repeated three times, alpha is dropped. The
      file may have lossless compression. The picture is turned upright by its orientation tag.
    - ``.npy``: the same number types, of any byte order, H×W×3 or 3×H×W (a 3×H×3 array counts as H×W×3).

    Negative values (colors outside the gamut in EXR files) are kept. Primaries are not converted.

    Args:
        path: file with one of the suffixes above.
        part: which part of the file to read: the number of a TIFF page, from 0; the number or name of an EXR part; an
            EXR layer such as "diffuse"; or "part.layer". None: the first TIFF page that is not reduced, or the first
            EXR part with unnamed channels (with a warning if there are others), else the only EXR layer.
        nonfinite: "raise": infinities and NaN are an error. "replace": NaN becomes 0, and infinities become the largest
            or smallest finite value of the picture.

    Returns:
        (3, H, W) float32 RGB.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the suffix is not supported, the file is broken, not RGB or contains infinities or NaN, ``part`` is
            missing or does not exist, or ``nonfinite`` is unknown.
        ImportError: the package that reads this format is missing.
    """
    check_choice("nonfinite", nonfinite, ("raise", "replace"))
    path = Path(path)
    suffix = _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    pixels = _READERS[suffix](path, part)
    if nonfinite == "replace":
        pixels = _replace_nonfinite(path, pixels)
    _check_finite(path, pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def write_image(
    path: str | os.PathLike[str], image: Float[Tensor, "3 h w"], *, overwrite: bool = False, half: bool = False
) -> None:
    """Write a picture in the format of the suffix. After an error there is no new file, and an old file is unchanged.

    ``.hdr``: RGBE, values >= 0, each within 1/128 of the pixel's largest channel. ``.exr``: float32, or
    float16 with ``half``. ``.tif``: uint16, values in [0, 1], rounded to the nearest (halves to even).
    ``.npy``: float32, H×W×3.

    Args:
        path: file to write, in a folder that exists.
        image: (3, H, W) RGB, finite; on any device.
        overwrite: replace an existing file.
        half: write EXR as float16; values up to 65504.

    Raises:
        TypeError: ``image`` is not a floating-point tensor.
        FileExistsError: the file exists and ``overwrite`` is False.
        FileNotFoundError: the folder does not exist.
        ValueError: the suffix is not supported, or the format cannot hold the values.
        ImportError: the package that writes this format is missing.
    """
    path = Path(path)
    suffix = _check_suffix(path)
    check_tensor("image", image, ndim=3, layout="(3, H, W)", channels=3)
    if half and suffix != ".exr":
        raise ValueError(f"{path}: half is for .exr files only")
    if image.numel() == 0:
        raise ValueError(f"image must have pixels, got shape {tuple(image.shape)}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    pixels = np.ascontiguousarray(image.detach().to("cpu", torch.float32).permute(1, 2, 0).numpy())
    _check_finite(path, pixels)
    low, high = float(pixels.min()), float(pixels.max())
    with atomic_write(path, sync=False) as temporary:
        if suffix == ".hdr":
            if low < 0 or high >= 2.0**127:
                raise ValueError(f"{path}: .hdr holds values in [0, 2**127), got [{low:g}, {high:g}]")
            radiance.write_hdr(temporary, pixels)
        elif suffix == ".exr":
            if half and max(-low, high) > 65504:
                raise ValueError(f"{path}: half-float .exr holds values up to 65504, got [{low:g}, {high:g}]")
            exr.write_exr(temporary, pixels.astype(np.float16) if half else pixels)
        elif suffix == ".npy":
            with temporary.open("wb") as file:  # np.save would add .npy to a name that ends with .NPY
                np.save(file, pixels, allow_pickle=False)
        else:
            if low < 0 or high > 1:
                raise ValueError(f"{path}: .tif holds values in [0, 1], got [{low:g}, {high:g}]")
            # float64: 65535 * x is then exact enough for halves to stay halves.
            formats.write_tif(temporary, np.rint(pixels.astype(np.float64) * 65535).astype(np.uint16))


def _check_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUPPORTED_SUFFIXES:
        raise ValueError(f"{path}: suffix must be one of {', '.join(SUPPORTED_SUFFIXES)}, got {suffix!r}")
    return suffix


def _replace_nonfinite(path: Path, pixels: formats.Pixels) -> formats.Pixels:
    finite = np.isfinite(pixels)
    if finite.all():
        return pixels
    if not finite.any():
        raise ValueError(f"{path}: no value is finite")
    known = pixels[finite]
    return np.nan_to_num(pixels, nan=0.0, posinf=known.max(), neginf=known.min())


def _check_finite(path: Path, pixels: formats.Pixels) -> None:
    bad = pixels.size - int(np.isfinite(pixels).sum())
    if bad:
        raise ValueError(f"{path}: {bad} of {pixels.size} values are infinite or NaN")
