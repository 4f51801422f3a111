"""Training: the scheme around a network, weights, checkpoints."""

from skt_components.training.checkpoint import (
    NonFiniteError,
    check_finite,
    deferred_interrupt,
    load_checkpoint,
    load_model,
    load_weights,
    restore_checkpoint,
    save_checkpoint,
    save_weights,
)
from skt_components.training.config import LossWeights, TrainConfig, read_options
from skt_components.training.run_folder import make_run_folder
from skt_components.training.scheme import SemanticKnowledgeTransfer, StepOutput
from skt_components.training.setup import check_bank_weights, load_network, make_knowledge_bank, pick_device

__all__ = [
    "LossWeights",
    "NonFiniteError",
    "SemanticKnowledgeTransfer",
    "StepOutput",
    "TrainConfig",
    "check_bank_weights",
    "check_finite",
    "deferred_interrupt",
    "load_checkpoint",
    "load_model",
    "load_network",
    "load_weights",
    "make_knowledge_bank",
    "make_run_folder",
    "pick_device",
    "read_options",
    "restore_checkpoint",
    "save_checkpoint",
    "save_weights",
]
