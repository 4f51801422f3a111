"""HDR samples: files, published data sets, simulated brackets, folders of pictures, procedural scenes."""

from skt_components.data.bracketire import BracketIRE
from skt_components.data.camera import Camera, simulate_bracket
from skt_components.data.hdr_folder import HDRFolder
from skt_components.data.io import read_image, write_image
from skt_components.data.kalantari import Kalantari17, Tel23
from skt_components.data.motion import Motion
from skt_components.data.prepare import Verification, prepare, verify
from skt_components.data.preview import save_contact_sheet, show_exposures, show_radiance
from skt_components.data.raw_bracket import simulate_raw_bracket, simulate_raw_bracket_from_frames
from skt_components.data.raw_camera import RawCamera
from skt_components.data.sample import HDRSample, make_bracket
from skt_components.data.simulate import simulate_dataset, write_bracketire_frame, write_kalantari_scene
from skt_components.data.synthetic import SyntheticScenes

__all__ = [
    "BracketIRE",
    "Camera",
    "HDRFolder",
    "HDRSample",
    "Kalantari17",
    "Motion",
    "RawCamera",
    "SyntheticScenes",
    "Tel23",
    "Verification",
    "make_bracket",
    "prepare",
    "read_image",
    "save_contact_sheet",
    "show_exposures",
    "show_radiance",
    "simulate_bracket",
    "simulate_dataset",
    "simulate_raw_bracket",
    "simulate_raw_bracket_from_frames",
    "verify",
    "write_bracketire_frame",
    "write_image",
    "write_kalantari_scene",
]
