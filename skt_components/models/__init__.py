"""Reconstruction networks (ORM), the teacher (SPGRM), and their files."""

from skt_components.models.ahdrnet import AHDRNet
from skt_components.models.export import export_onnx, export_program
from skt_components.models.hdr_transformer import HDRTransformer
from skt_components.models.initialization import fit_last_layer, initialize_from_samples
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.pretrained import load_initial_weights, load_pretrained, pretrained_names
from skt_components.models.registry import (
    NETWORK_CLASSES,
    NETWORKS,
    bracket_options,
    load_model,
    load_network,
    load_official,
    load_weights,
    save_weights,
)
from skt_components.models.sctnet import SCTNet
from skt_components.models.spgrm import SPGRM
from skt_components.models.tmrnet import TMRNet, TMRNetPlus

__all__ = [
    "NETWORKS",
    "NETWORK_CLASSES",
    "SPGRM",
    "AHDRNet",
    "HDRTransformer",
    "ReconstructionNetwork",
    "SCTNet",
    "TMRNet",
    "TMRNetPlus",
    "bracket_options",
    "export_onnx",
    "export_program",
    "fit_last_layer",
    "initialize_from_samples",
    "load_initial_weights",
    "load_model",
    "load_network",
    "load_official",
    "load_pretrained",
    "load_weights",
    "pretrained_names",
    "save_weights",
]
