"""Exposures as cameras save them: pixels, transfer function, and the amount of light from EXIF."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skt_components.data import make_bracket, read_image
from skt_components.data.exif import ExposureSettings, read_exposure_settings
from skt_components.data.formats import decode_png_or_jpeg, to_float
from skt_components.data.sample import RAW_PEAK
from skt_components.files.packages import import_package
from skt_components.ops.transfer import DISPLAY_GAMMA, linearize

RAW_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class Exposure(NamedTuple):
    """One exposure of a bracket.

    Attributes:
        linear: (3, H, W) float32 linear RGB in [0, 1]; 1 is the sensor's saturation.
        light: exposure time in seconds, times ISO / 100, divided by the square of the f-number; None if unknown.
        name: name of the file, for messages.
    """

    linear: Tensor
    light: float | None
    name: str


class RawExposure(NamedTuple):
    """One exposure of a RAW bracket.

    Attributes:
        planes: (4, h, w) float32 R, Gr, Gb, B in [0, 1]; 0 is black, 1 is the sensor's saturation.
        light: as in :class:`Exposure`.
        name: name of the file, for messages.
        white_balance: (3,) factors of R, G and B.
        color_matrix: (3, 3) from the camera's linear RGB, after the white balance, to linear sRGB.
    """

    planes: Tensor
    light: float | None
    name: str
    white_balance: Tensor
    color_matrix: Tensor


def read_exposure(path: str | os.PathLike[str], *, transfer: str | None = None, light: float | None = None) -> Exposure:
    """Read a JPEG, PNG, TIFF or camera RAW file as linear RGB, with the amount of light from its EXIF data.

    Pictures are turned by their EXIF orientation. Color profiles are not read, so the colors of the pictures should be
    sRGB. A JPEG file of a camera has a tone curve in addition to the transfer function. RAW files, and TIFF files made
    from them, give better results.

    Args:
        path: ``.jpg``, ``.png`` (8 or 16 bits), ``.tif`` (8 or 16 bits), or camera RAW (needs rawpy).
        transfer: of the values in the file: "srgb", "gamma2.2" or "linear"; None: sRGB, and linear for camera RAW.
        light: amount of light, such as the exposure time; None: from the EXIF data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is not supported, or the file is broken.
        ImportError: the package that reads this format is missing; the message names the extra.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if suffix in RAW_SUFFIXES:
        if transfer not in (None, "linear"):
            raise ValueError(f"transfer of camera RAW is linear, got {transfer!r} for {path}")
        values, transfer = _develop(path), "linear"
    elif suffix in (".tif", ".tiff"):
        values = read_image(path).clamp(0, 1)
    elif suffix in PICTURE_SUFFIXES:
        pixels = decode_png_or_jpeg(path)
        values = torch.from_numpy(to_float(path, pixels).transpose(2, 0, 1).copy())
    else:
        raise ValueError(f"{path}: suffix must be one of {', '.join(PICTURE_SUFFIXES + RAW_SUFFIXES)}, got {suffix!r}")
    return Exposure(linearize(values, transfer or "srgb"), read_light(path) if light is None else light, path.name)


def read_raw_exposure(path: str | os.PathLike[str], *, light: float | None = None) -> RawExposure:
    """Read the sensor's values of a camera RAW file, for a network on packed RAW such as TMRNet.

    Args:
        path: a file with a Bayer mosaic of any phase. Rows and columns before the first red pixel are cropped.
        light: as for :func:`read_exposure`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a camera RAW file, or its mosaic is not a Bayer pattern.
        ImportError: rawpy is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with _open_raw(path) as raw:
        pattern = raw.raw_pattern
        if pattern is None or pattern.shape != (2, 2) or raw.color_desc.decode() != "RGBG":
            raise ValueError(f"{path}: the sensor's mosaic must be a Bayer pattern of red, green and blue")
        top, left = (int(place[0]) for place in np.nonzero(pattern == 0))
        values = raw.raw_image_visible.astype(np.float32)[top:, left:]
        colors = raw.raw_colors_visible[top : top + 2, left : left + 2]
        values = values[: values.shape[0] // 2 * 2, : values.shape[1] // 2 * 2]
        black = np.array(raw.black_level_per_channel, np.float32)
        planes = []
        for row in (0, 1):
            for column in (0, 1):
                color = colors[row, column]
                planes.append((values[row::2, column::2] - black[color]) / (raw.white_level - black[color]))
        gains = np.array(raw.camera_whitebalance[:3], np.float32)
        matrix = raw.color_matrix
    planes_tensor = torch.from_numpy(np.stack(planes)).clamp(0, 1)
    gains = gains / gains[1] if gains[1] > 0 else np.ones(3, np.float32)
    light = read_light(path) if light is None else light
    return RawExposure(planes_tensor, light, path.name, torch.from_numpy(gains), _to_srgb(matrix))


def _to_srgb(color_matrix: np.ndarray) -> Tensor:
    """Return LibRaw's matrix from white-balanced camera RGB to linear sRGB; the identity if the file has none."""
    matrix = np.asarray(color_matrix, np.float32)[:3, :3]
    return torch.from_numpy(matrix.copy()) if np.allclose(matrix.sum(1), 1, atol=0.01) else torch.eye(3)


def read_light(path: str | os.PathLike[str]) -> float | None:
    """Return the amount of light of an exposure by its EXIF data: seconds times ISO / 100 over the f-number squared.

    ISO and f-number count as constant where they are missing; None without an exposure time.

    Raises:
        ValueError: the EXIF data are damaged.
        ImportError: exifread is not installed.
    """
    settings = read_exposure_settings(path)
    if settings.time is None and Path(path).suffix.lower() in RAW_SUFFIXES:  # RAW files that are no TIFF files inside
        with _open_raw(Path(path)) as raw:
            found = raw.other
            numbers = (found.shutter, found.iso_speed, found.aperture)
            settings = ExposureSettings(*(number or None for number in numbers))
    return settings.light


def check_exposures(names: Sequence[str], sizes: Sequence[Sequence[int]], light: Sequence[float | None]) -> list[float]:
    """Return the amounts of light after checking that the pictures can be one bracket.

    Raises:
        ValueError: sizes differ, an amount is unknown or not above zero, or two are equal.
    """
    for name, size in zip(names, sizes, strict=True):
        if tuple(size) != tuple(sizes[0]):
            height, width = size[-2:]
            first = f"{names[0]} is {sizes[0][-1]}x{sizes[0][-2]}"
            raise ValueError(f"pictures must have one size: {first}, {name} is {width}x{height}")
    known: list[float] = []
    for name, value in zip(names, light, strict=True):
        if value is None:
            raise ValueError(
                f"{name} has no exposure time in its EXIF data: give `exposure_times`, one for each picture"
            )
        if not 0 < value < math.inf:
            raise ValueError(f"exposure_times must be finite numbers > 0, got {value} for {name}")
        known.append(float(value))
    for i, value in enumerate(known):
        for j in range(i):
            if abs(value / known[j] - 1) < 0.05:
                raise ValueError(
                    f"pictures must have different exposures: {names[j]} and {names[i]} both have {value:g}; "
                    "if the EXIF data are wrong, give `exposure_times`"
                )
    return known


def check_order(names: Sequence[str], pictures: Sequence[Tensor], light: Sequence[float]) -> None:
    """Raise ValueError if a longer exposure is darker than a shorter one.

    Args:
        names: names of the pictures, for the message.
        pictures: linear or display values in [0, 1].
        light: exposure of each picture.
    """
    order = sorted(range(len(light)), key=lambda index: light[index])
    means = [float(picture.flatten()[:: max(picture.numel() // 100_000, 1)].float().mean()) for picture in pictures]
    for shorter, longer in itertools.pairwise(order):
        if means[longer] < 0.98 * means[shorter]:
            raise ValueError(
                f"exposure_times must fit the pictures: {names[longer]} has the longer exposure "
                f"({light[longer]:g} against {light[shorter]:g}) but is darker than {names[shorter]}"
            )


def bracket_from_exposures(exposures: Sequence[Exposure | RawExposure]) -> tuple[Tensor, Tensor]:
    """Return the bracket (N, C, H, W) of exposures from dark to bright, as the networks take it, and their times.

    Args:
        exposures: all :class:`Exposure` or all :class:`RawExposure`, in any order.

    Returns:
        the bracket, and the exposures (N,) relative to the shortest, which is 1.

    Raises:
        ValueError: there are fewer than two, sizes differ, an exposure is unknown, two are equal, or a longer one is
            darker.
    """
    if len(exposures) < 2:
        raise ValueError(f"pictures must be at least two exposures, got {len(exposures)}")
    pixels = [exposure[0] for exposure in exposures]
    names = [exposure.name for exposure in exposures]
    light = check_exposures(names, [picture.shape for picture in pixels], [exposure.light for exposure in exposures])
    check_order(names, pixels, light)
    order = sorted(range(len(light)), key=lambda index: light[index])
    times = torch.tensor([light[index] / min(light) for index in order])
    stack = torch.stack([pixels[index] for index in order])
    if isinstance(exposures[0], RawExposure):
        return stack * (RAW_PEAK / times)[:, None, None, None], times
    return make_bracket(stack.clamp(0, 1) ** (1 / DISPLAY_GAMMA), times, DISPLAY_GAMMA), times


def _open_raw(path: Path) -> Any:
    rawpy = import_package("rawpy", "camera RAW files need rawpy", "photo")
    try:
        return rawpy.imread(str(path))
    except rawpy.LibRawError as error:
        raise ValueError(f"{path}: not a camera RAW file that LibRaw reads: {error}") from error


def _develop(path: Path) -> Tensor:
    """Return the linear sRGB values (3, H, W) of a camera RAW file, with the camera's white balance."""
    with _open_raw(path) as raw:
        pixels = raw.postprocess(gamma=(1, 1), no_auto_bright=True, output_bps=16, use_camera_wb=True)
    scaled = pixels.astype(np.float32) / 65535
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
