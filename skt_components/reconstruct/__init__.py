"""HDR pictures from the files of a camera: read exposures, align them, and run a network.

The command ``skt reconstruct`` does all of this.
"""

from skt_components.reconstruct.alignment import align_exposures
from skt_components.reconstruct.exposures import (
    Exposure,
    RawExposure,
    bracket_from_exposures,
    read_exposure,
    read_raw_exposure,
)
from skt_components.reconstruct.reconstruction import reconstruct

__all__ = [
    "Exposure",
    "RawExposure",
    "align_exposures",
    "bracket_from_exposures",
    "read_exposure",
    "read_raw_exposure",
    "reconstruct",
]
