"""Training: the scheme around a network, weights, checkpoints."""

from skt_components.training.checkpoint import (
    NonFiniteError,
    check_finite,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from skt_components.training.config import LossWeights, TrainConfig, make_run_folder, read_options
from skt_components.training.scheme import SemanticKnowledgeTransfer, StepOutput

__all__ = [
    "LossWeights",
    "NonFiniteError",
    "SemanticKnowledgeTransfer",
    "StepOutput",
    "TrainConfig",
    "check_finite",
    "load_checkpoint",
    "load_weights",
    "make_run_folder",
    "read_options",
    "save_checkpoint",
    "save_weights",
]
