"""HDR samples: files, simulated brackets, folders of pictures, procedural scenes."""

from skt_components.data.bracketire import BracketIRE
from skt_components.data.camera import Camera, simulate_bracket
from skt_components.data.hdr_folder import HDRFolder
from skt_components.data.io import read_image, write_image
from skt_components.data.kalantari import Kalantari17, Tel23
from skt_components.data.motion import Motion
from skt_components.data.prepare import Verification, prepare, verify
from skt_components.data.sample import HDRSample, make_bracket
from skt_components.data.synthetic import SyntheticScenes

__all__ = [
    "BracketIRE",
    "Camera",
    "HDRFolder",
    "HDRSample",
    "Kalantari17",
    "Motion",
    "SyntheticScenes",
    "Tel23",
    "Verification",
    "make_bracket",
    "prepare",
    "read_image",
    "simulate_bracket",
    "verify",
    "write_image",
]
