"""Knowledge banks: frozen networks that describe a picture by features and regions during training."""

from skt_components.banks.cache import CachedBank
from skt_components.banks.fastsam import FastSAMFeatureExtractor, FastSAMRegions
from skt_components.banks.fastsam_weights import convert_checkpoint, find_fastsam_weights
from skt_components.banks.frozen import Frozen
from skt_components.banks.label_maps import read_label_map
from skt_components.banks.priors import (
    EmptyBank,
    KnowledgeBank,
    RegionSource,
    SemanticPriors,
    priors_from_labels,
    priors_from_masks,
)
from skt_components.banks.regions import ColorPositionKMeans, FeatureKMeans, GridRegions
from skt_components.banks.registry import check_bank_weights, make_knowledge_bank
from skt_components.banks.segmenter import SegmenterRegions
from skt_components.banks.timm import TimmFeatureExtractor
from skt_components.banks.vgg import VGG19Features

__all__ = [
    "CachedBank",
    "ColorPositionKMeans",
    "EmptyBank",
    "FastSAMFeatureExtractor",
    "FastSAMRegions",
    "FeatureKMeans",
    "Frozen",
    "GridRegions",
    "KnowledgeBank",
    "RegionSource",
    "SegmenterRegions",
    "SemanticPriors",
    "TimmFeatureExtractor",
    "VGG19Features",
    "check_bank_weights",
    "convert_checkpoint",
    "find_fastsam_weights",
    "make_knowledge_bank",
    "priors_from_labels",
    "priors_from_masks",
    "read_label_map",
]
