"""Knowledge banks: frozen networks that describe a picture by features and regions while another one trains."""

from skt_components.banks.frozen import Frozen
from skt_components.banks.priors import KnowledgeBank, RegionSource, SemanticPriors, priors_from_labels
from skt_components.banks.regions import ColorPositionKMeans, GridRegions
from skt_components.banks.timm import TimmFeatureExtractor
from skt_components.banks.vgg import VGG19Features

__all__ = [
    "ColorPositionKMeans",
    "Frozen",
    "GridRegions",
    "KnowledgeBank",
    "RegionSource",
    "SemanticPriors",
    "TimmFeatureExtractor",
    "VGG19Features",
    "priors_from_labels",
]
