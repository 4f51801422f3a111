"""Models: reconstruction networks (ORM) and the SPGRM."""

from skt_components.models.ahdrnet import AHDRNet
from skt_components.models.spgrm import SPGRM

__all__ = ["SPGRM", "AHDRNet"]
