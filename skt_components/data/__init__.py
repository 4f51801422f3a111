"""HDR samples: files, simulated brackets, folders of pictures, procedural scenes."""

from skt_components.data.camera import Camera, simulate_bracket
from skt_components.data.hdr_folder import HDRFolder
from skt_components.data.io import read_image, write_image
from skt_components.data.motion import Motion
from skt_components.data.sample import HDRSample, make_bracket
from skt_components.data.synthetic import SyntheticScenes

__all__ = [
    "Camera",
    "HDRFolder",
    "HDRSample",
    "Motion",
    "SyntheticScenes",
    "make_bracket",
    "read_image",
    "simulate_bracket",
    "write_image",
]
