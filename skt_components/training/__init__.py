"""Everything around the step of the training loop: options, devices, batches, schedules, guards, checkpoints, logs."""

from skt_components.training.batches import (
    SamplePositions,
    move_sample,
    sample_generators,
    seed_everything,
    training_batches,
)
from skt_components.training.build import (
    RunData,
    build_average,
    build_bank,
    build_data,
    build_losses,
    build_network,
    build_optimizer,
    framework_options,
    start_network,
)
from skt_components.training.checkpoints import CheckpointFolder, load_checkpoint, restore_state, save_checkpoint
from skt_components.training.config import RECIPES, TrainConfig, name_options, parse_options, read_options, to_arguments
from skt_components.training.engine import Engine, pick_device, unused_parameters
from skt_components.training.environment import describe_environment, write_environment
from skt_components.training.guards import NonFiniteError, ResourceError, StepWatch, deferred_interrupt
from skt_components.training.plan import describe_plan
from skt_components.training.run import WEIGHTS_FILES, Run, StoppedError
from skt_components.training.run_folder import RunFolder, explain, make_run_folder, write_options
from skt_components.training.run_log import rewind_log
from skt_components.training.run_summary import write_run_summary
from skt_components.training.schedules import learning_rate, transfer_ramp
from skt_components.training.validation import METRICS, Scores, Validator, mean_scores, results_table, score_pictures

__all__ = [
    "METRICS",
    "RECIPES",
    "WEIGHTS_FILES",
    "CheckpointFolder",
    "Engine",
    "NonFiniteError",
    "ResourceError",
    "Run",
    "RunData",
    "RunFolder",
    "SamplePositions",
    "Scores",
    "StepWatch",
    "StoppedError",
    "TrainConfig",
    "Validator",
    "build_average",
    "build_bank",
    "build_data",
    "build_losses",
    "build_network",
    "build_optimizer",
    "deferred_interrupt",
    "describe_environment",
    "describe_plan",
    "explain",
    "framework_options",
    "learning_rate",
    "load_checkpoint",
    "make_run_folder",
    "mean_scores",
    "move_sample",
    "name_options",
    "parse_options",
    "pick_device",
    "read_options",
    "restore_state",
    "results_table",
    "rewind_log",
    "sample_generators",
    "save_checkpoint",
    "score_pictures",
    "seed_everything",
    "start_network",
    "to_arguments",
    "training_batches",
    "transfer_ramp",
    "unused_parameters",
    "write_environment",
    "write_options",
    "write_run_summary",
]
