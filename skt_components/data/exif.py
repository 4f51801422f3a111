"""Exposure settings in the EXIF data of pictures."""

from __future__ import annotations

import logging
import math
import os
from typing import NamedTuple

from skt_components.files.packages import import_package


class ExposureSettings(NamedTuple):
    """Settings of a camera for one picture; None where they are unknown.

    Attributes:
        time: exposure time in seconds.
        iso: sensitivity.
        aperture: f-number.
    """

    time: float | None
    iso: float | None
    aperture: float | None

    @property
    def light(self) -> float | None:
        """Amount of light: seconds times ISO / 100 over the f-number squared; None without an exposure time.

        ISO and f-number count as 100 and 1 where they are unknown, as they are equal for all pictures of a bracket.
        """
        if self.time is None:
            return None
        return self.time * (self.iso or 100.0) / 100.0 / (self.aperture or 1.0) ** 2


def read_exposure_settings(path: str | os.PathLike[str]) -> ExposureSettings:
    """Read the exposure settings in the EXIF data of a JPEG, PNG, TIFF or camera RAW file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the EXIF data are damaged.
        ImportError: exifread is not installed.
    """
    exifread = import_package("exifread", "reading exposure times needs ExifRead", "photo")
    logging.getLogger("exifread").setLevel(logging.ERROR)  # a file without EXIF data is no fault
    with open(path, "rb") as file:
        try:
            tags = exifread.process_file(file, details=False)
        except Exception as error:  # exifread raises IndexError, UnicodeDecodeError and others
            raise ValueError(f"{path}: the EXIF data are damaged: {error}") from error

    def number(name: str) -> float | None:
        value = getattr(tags.get(f"EXIF {name}", tags.get(f"Image {name}")), "values", None)
        while isinstance(value, (list, tuple)):
            value = value[0] if value else None
        try:
            found = float(value.num) / float(value.den) if hasattr(value, "num") else float(value)  # type: ignore[union-attr, arg-type]
        except (TypeError, ValueError, ZeroDivisionError):
            return None
        return found if 0 < found < math.inf else None

    return ExposureSettings(number("ExposureTime"), number("ISOSpeedRatings"), number("FNumber"))
