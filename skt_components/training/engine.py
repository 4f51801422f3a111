"""One device or many for one loop: Hugging Face Accelerate, set up for this framework."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from skt_components.data.sample import HDRSample
from skt_components.files.packages import import_package
from skt_components.modules.taps import eval_mode
from skt_components.training.batches import move_sample
from skt_components.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Engine:
    """Set up one process of a run: the only one, or one of several that torchrun or accelerate started.

    Args:
        config: its ``device``, ``precision``, ``accumulate``, ``trackers``, ``channels_last`` and ``compile``.

    Attributes:
        accelerator: Hugging Face's ``Accelerator``, for the loop: ``accumulate``, ``backward``, ``clip_grad_norm_``.
        device: device of this process.
        rank: number of this process.
        processes: number of processes.
        is_main: True if this process writes files.
        dtype: dtype of pictures and weights.

    Raises:
        ImportError: accelerate, or the package of a tracker, is not installed.
        ValueError: there is no such device or tracker, or the device does not have the precision.

    Example:
        >>> engine = Engine(TrainConfig(device="cpu", trackers=()))
        >>> engine.rank, engine.processes, engine.maximum(2)
        (0, 1, 2)
    """

    def __init__(self, config: TrainConfig) -> None:
        accelerate = import_package("accelerate", "training needs accelerate", "train")
        device = _choose_device(config.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _check_trackers(config.trackers)
        self.accelerator: Accelerator = accelerate.Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=mixed_precision(config.precision, device),
            gradient_accumulation_steps=config.accumulate,
            log_with=list(config.trackers) or None,
            project_config=accelerate.utils.ProjectConfiguration(
                project_dir=".", logging_dir="."
            ),  # until there is a run folder
        )
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.processes: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self._channels_last, self._compile = config.channels_last, config.compile
        scaler = self.accelerator.scaler
        self._scaler_state = None if scaler is None else scaler.state_dict()
        # A group of the processors: the GPUs' own would make the host wait for the device.
        self._group: Any = torch.distributed.new_group(backend="gloo") if self.processes > 1 else None

    @property
    def gradient_scale(self) -> float:
        """Factor of the loss in fp16; 1 in other precisions."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def download_in_turn(self, config: TrainConfig) -> AbstractContextManager[None]:
        """Return a context in which the main process of each machine goes first if the options need downloads."""
        downloads = config.download or "pretrained" in (config.weights, config.perceptual)
        return self.accelerator.local_main_process_first() if downloads else nullcontext()

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, sample: HDRSample) -> tuple[nn.Module, Any]:
        """Put a module on this process's device and, with several processes, into DistributedDataParallel.

        Gradients are synchronized once per step, buffers only if there are batch statistics. Only if there are
        parameters without gradient, every step searches for them.

        This also applies the options ``channels_last``, ``precision`` and ``compile``.

        Args:
            module: called as ``module(bracket, target)``, returns an output with a ``total`` to differentiate; its
                ``orm`` and ``spgrm`` are compiled.
            optimizer: its optimizer.
            sample: a training sample; the module runs on it once if there are several processes.
        """
        if self._channels_last:
            module.to(memory_format=torch.channels_last)
        module.to(dtype=self.dtype)
        if self.processes > 1:
            from accelerate.utils import DistributedDataParallelKwargs

            batch = move_sample(default_collate([sample]), "cpu", self.dtype)
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=bool(unused_parameters(module, batch.bracket, batch.target)),
                broadcast_buffers=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()),
                gradient_as_bucket_view=True,
            )
        if self.accelerator.scaler is not None:  # shared by all modules; each begins with the first scale
            self.accelerator.scaler.load_state_dict(self._scaler_state)
        prepared, optimizer = self.accelerator.prepare(module, optimizer)
        for name in ("orm", "spgrm") if self._compile else ():
            if isinstance(part := getattr(module, name, None), nn.Module):
                part.compile()
        return prepared, optimizer

    def start_trackers(self, folder: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> None:
        """Start the trackers. Trackers that write files write them into ``folder``/logs.

        Args:
            folder: folder of the run.
            options: options of the run, which services show beside its curves.
        """
        self.accelerator.project_configuration.logging_dir = os.path.join(folder, "logs")
        self.accelerator.init_trackers("skt_components")
        for tracker in self.accelerator.trackers:
            if tracker.name != "tensorboard":  # which would make a run of its own of them
                tracker.store_init_configuration({key: str(value) for key, value in (options or {}).items()})

    def on_main(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the main process only. Every process returns its result, or raises its error.

        Args:
            function: the function; its result must be picklable.
            *arguments: its arguments.
        """
        from accelerate.utils import broadcast_object_list

        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = function(*arguments)
            except (OSError, ValueError, ImportError) as error:
                if self.processes == 1:
                    raise
                result[1] = error
        broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def maximum(self, number: int) -> int:
        """Return the maximum of a number over all processes, without waiting for a device.

        Every process must call it. So a signal to one process ends all processes at the same step.
        """
        if self._group is None:
            return number
        held = torch.tensor(number)
        torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(held)

    def gather(self, rows: Mapping[int, T]) -> list[T]:
        """Return the rows of all processes in the order of their numbers, each once.

        Args:
            rows: what this process has, by number; picklable.
        """
        from accelerate.utils import gather_object

        found = dict(gather_object(list(rows.items())))
        return [found[number] for number in sorted(found)]

    def mean(self, numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Return scalars averaged over the processes; this waits for the device."""
        if not numbers:
            return {}
        scalars = [torch.as_tensor(n, dtype=torch.float64, device=self.device) for n in numbers.values()]
        together = torch.stack([scalar.detach().reshape(()) for scalar in scalars])
        values = self.accelerator.reduce(together, reduction="mean").tolist()
        return dict(zip(numbers, values, strict=True))


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" takes a CUDA device if there is one.

    Raises:
        ValueError: there is no such device on this machine.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} on this machine: {reason}") from error


def unused_parameters(module: nn.Module, *inputs: Any) -> list[str]:
    """Return the names of the parameters to train that one step leaves without gradient.

    Runs the module once, forwards and backwards, and leaves no gradient behind.

    Args:
        module: returns something with a ``total`` to differentiate.
        *inputs: of the module.
    """
    module.zero_grad(set_to_none=True)
    with eval_mode(module):  # statistics of batches stay as they are
        module(*inputs).total.backward()
    found = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    module.zero_grad(set_to_none=True)
    return found


def _check_trackers(trackers: tuple[str, ...]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"trackers must be among {', '.join(LOGGER_TYPE_TO_CLASS)}, got {tracker!r}")
        if tracker not in available:
            raise ImportError(f"trackers={tracker} needs its package: pip install {tracker}, or give no tracker")


def _choose_device(name: str) -> torch.device:
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or name == "cpu" or not torch.cuda.is_available():
        return pick_device(name)
    if name not in ("auto", "cuda"):
        raise ValueError(f"device={name} must be auto for several processes, of which each has its own GPU")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def mixed_precision(wanted: str, device: torch.device) -> str:
    """Return what Accelerate calls a ``TrainConfig.precision`` on a device: "no", "bf16" or "fp16"."""
    if wanted == "auto":
        real = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if real else "no"
    if wanted == "fp16" and device.type != "cuda":
        raise ValueError(f"precision=fp16 needs a GPU, whose gradients are then scaled; on {device.type} take bf16")
    return "no" if wanted in ("fp32", "fp64") else wanted
