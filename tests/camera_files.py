"""Files as cameras write them: JPEG with EXIF data, 16-bit PNG and TIFF, DNG."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def write_jpeg(path: Path, display: Tensor, time: Fraction | None = None, orientation: int = 1, **tags: Any) -> Path:
    """Write (3, H, W) display values with the exposure's EXIF data."""
    from PIL import Image
    from PIL.TiffImagePlugin import IFDRational

    exif = Image.Exif()
    if time is not None:
        numbers = {0x829A: IFDRational(time.numerator, time.denominator)}
        numbers |= {0x829D: IFDRational(*tags["f"])} if "f" in tags else {}
        numbers |= {0x8827: tags["iso"]} if "iso" in tags else {}
        exif[0x8769] = numbers
    exif[0x0112] = orientation
    pixels = (display.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=98, subsampling=0, exif=exif)
    return path


def write_png16(path: Path, display: Tensor) -> Path:
    import cv2

    pixels = np.rint(display.clamp(0, 1).double().permute(1, 2, 0).numpy() * 65535).astype(np.uint16)
    assert cv2.imwrite(str(path), pixels[..., ::-1])
    return path


def write_dng(
    path: Path,
    mosaic: np.ndarray,
    *,
    pattern: bytes = bytes([0, 1, 1, 2]),
    black: int = 64,
    white: int = 1023,
    neutral: tuple[float, float, float] = (0.5, 1.0, 0.6),
    time: Fraction = Fraction(1, 60),
) -> Path:
    """Write a mosaic (H, W) of uint16 as an uncompressed DNG 1.4, as converters do."""
    import tifffile

    matrix = [3.2404542, -1.5371385, -0.4985314, -0.9692660, 1.8760108, 0.0415560, 0.0556434, -0.2040259, 1.0572252]
    rational = [number for value in matrix for number in (round(value * 10000), 10000)]
    shot = [number for value in neutral for number in (round(value * 10000), 10000)]
    extra = [
        (33421, "H", 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, "B", 4, pattern, True),  # CFAPattern
        (50706, "B", 4, bytes([1, 4, 0, 0]), True),  # DNGVersion
        (50708, "s", 0, "Test camera", True),  # UniqueCameraModel
        (50714, "H", 1, black, True),  # BlackLevel
        (50717, "H", 1, white, True),  # WhiteLevel
        (50721, "2i", 9, rational, True),  # ColorMatrix1
        (50728, "2I", 3, shot, True),  # AsShotNeutral
        (50778, "H", 1, 21, True),  # CalibrationIlluminant1: D65
        (33434, "2I", 1, (time.numerator, time.denominator), True),  # ExposureTime
        (271, "s", 0, "Test", True),
        (272, "s", 0, "Test camera", True),
    ]
    tifffile.imwrite(path, mosaic.astype(np.uint16), photometric=32803, planarconfig=1, extratags=extra, metadata=None)
    return path


def textured(seed: int = 0, height: int = 96, width: int = 128) -> Tensor:
    """A scene (3, H, W) with texture of all sizes, dark to light, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.zeros(3, height, width)
    for size in (4, 8, 16, 32):
        coarse = torch.rand(1, 3, size, size * width // height, generator=generator)
        scene += torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    return scene**3 * 0.98 + 0.01
