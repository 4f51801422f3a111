"""From pictures that a person has to an HDR picture: reading exposures, aligning them, and running a network.

The command ``skt reconstruct`` does all of it.
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
