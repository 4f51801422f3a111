"""The training loop's parts: options, devices, batches, schedules, guards, checkpoints, the run's folder."""

from skt_components.training.batches import (
    SamplePositions,
    place_sample,
    sample_generators,
    seed_everything,
    training_batches,
)
from skt_components.training.checkpoints import CheckpointFolder, load_checkpoint, restore_state, save_checkpoint
from skt_components.training.config import TrainConfig, read_options
from skt_components.training.engine import Engine, pick_device, unused_parameters
from skt_components.training.environment import describe_environment, write_environment
from skt_components.training.guards import NonFiniteError, StepWatch, deferred_interrupt
from skt_components.training.plan import describe_plan
from skt_components.training.run_folder import make_run_folder, write_options
from skt_components.training.run_summary import write_run_summary
from skt_components.training.schedules import learning_rate, transfer_ramp

__all__ = [
    "CheckpointFolder",
    "Engine",
    "NonFiniteError",
    "SamplePositions",
    "StepWatch",
    "TrainConfig",
    "deferred_interrupt",
    "describe_environment",
    "describe_plan",
    "learning_rate",
    "load_checkpoint",
    "make_run_folder",
    "pick_device",
    "place_sample",
    "read_options",
    "restore_state",
    "sample_generators",
    "save_checkpoint",
    "seed_everything",
    "training_batches",
    "transfer_ramp",
    "unused_parameters",
    "write_environment",
    "write_options",
    "write_run_summary",
]
