"""Brackets simulated from HDR photographs and from procedural scenes."""

from skt_components.simulation.bracket import (
    simulate_bracket,
    simulate_bracket_from_frames,
    simulate_raw_bracket,
    simulate_raw_bracket_from_frames,
)
from skt_components.simulation.camera import Camera, RawCamera
from skt_components.simulation.export import simulate_dataset, write_bracketire_frame, write_kalantari_scene
from skt_components.simulation.hdr_folder import HDRFolder, verify_hdr_folder
from skt_components.simulation.motion import Motion
from skt_components.simulation.sequences import HDRSequences
from skt_components.simulation.synthetic import SyntheticScenes

__all__ = [
    "Camera",
    "HDRFolder",
    "HDRSequences",
    "Motion",
    "RawCamera",
    "SyntheticScenes",
    "simulate_bracket",
    "simulate_bracket_from_frames",
    "simulate_dataset",
    "simulate_raw_bracket",
    "simulate_raw_bracket_from_frames",
    "verify_hdr_folder",
    "write_bracketire_frame",
    "write_kalantari_scene",
]
