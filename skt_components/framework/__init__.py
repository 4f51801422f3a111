"""Semantic knowledge transfer around any reconstruction network: the method, and the baseline without it."""

from skt_components.framework.baseline import BareNetwork, BareOutput, ReconstructionLoss
from skt_components.framework.diagnosis import TermGradient, compare_gradients, region_distance
from skt_components.framework.loss_weights import LossWeights
from skt_components.framework.semantic_transfer import SemanticKnowledgeTransfer, StepOutput

__all__ = [
    "BareNetwork",
    "BareOutput",
    "LossWeights",
    "ReconstructionLoss",
    "SemanticKnowledgeTransfer",
    "StepOutput",
    "TermGradient",
    "compare_gradients",
    "region_distance",
]
