"""Training: the scheme around a network, weights, checkpoints."""

from skt_components.training.batches import (
    SamplePositions,
    place_sample,
    sample_generators,
    seed_everything,
    training_batches,
)
from skt_components.training.checkpoint import (
    NonFiniteError,
    deferred_interrupt,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
    save_weights,
)
from skt_components.training.checkpoint_folder import CheckpointFolder, restore_state
from skt_components.training.config import LossWeights, TrainConfig, read_options
from skt_components.training.diagnosis import TermGradient, compare_gradients, region_distance
from skt_components.training.engine import Engine, unused_parameters
from skt_components.training.environment import describe_environment, write_environment
from skt_components.training.plan import describe_plan
from skt_components.training.run_folder import make_run_folder, write_options
from skt_components.training.run_summary import write_run_summary
from skt_components.training.schedule import learning_rate, transfer_ramp
from skt_components.training.scheme import SemanticKnowledgeTransfer, StepOutput
from skt_components.training.setup import check_bank_weights, load_network, make_knowledge_bank, pick_device
from skt_components.training.watch import StepWatch

__all__ = [
    "CheckpointFolder",
    "Engine",
    "LossWeights",
    "NonFiniteError",
    "SamplePositions",
    "SemanticKnowledgeTransfer",
    "StepOutput",
    "StepWatch",
    "TermGradient",
    "TrainConfig",
    "check_bank_weights",
    "compare_gradients",
    "deferred_interrupt",
    "describe_environment",
    "describe_plan",
    "learning_rate",
    "load_checkpoint",
    "load_model",
    "load_network",
    "load_weights",
    "make_knowledge_bank",
    "make_run_folder",
    "pick_device",
    "place_sample",
    "read_options",
    "region_distance",
    "restore_state",
    "sample_generators",
    "save_checkpoint",
    "save_weights",
    "seed_everything",
    "training_batches",
    "transfer_ramp",
    "unused_parameters",
    "write_environment",
    "write_options",
    "write_run_summary",
]
