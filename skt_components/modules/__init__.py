"""Modules: the parts of the framework, each usable alone."""

from skt_components.modules.domain_transfer import DomainTransfer
from skt_components.modules.fusion import DilatedResidualDenseBlock, PriorFusionBlock, SemanticGuidedFusion
from skt_components.modules.pyramid import FeaturePyramid
from skt_components.modules.skam import SKAM, SKAMOutput
from skt_components.modules.taps import FeatureTaps, suggest_taps

__all__ = [
    "SKAM",
    "DilatedResidualDenseBlock",
    "DomainTransfer",
    "FeaturePyramid",
    "FeatureTaps",
    "PriorFusionBlock",
    "SKAMOutput",
    "SemanticGuidedFusion",
    "suggest_taps",
]
