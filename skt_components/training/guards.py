"""Guards of a run: non-finite numbers, jumps of the loss, and signals, without making a device wait."""

from __future__ import annotations

import errno
import os
import re
import signal
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from skt_components.files.weights import write_safetensors

_WINDOW = 100  # losses that a spike is measured against
_ENOUGH = 20  # losses before a loss can be a spike
_LAG = 2  # steps whose numbers may still be on a GPU
_FOLLOW = ("total", "the gradient")  # non-finite as a consequence of other numbers
_MOST_SPIKES = 10  # kept batches; a run that diverges has thousands of spikes

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
"""Signals after which a run saves its state and ends; Windows has two of them."""
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_LESS_MEMORY = "give a smaller `batch_size` and as much more `accumulate`, or `checkpointing`"
_NO_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? .*(exited unexpectedly|killed by signal)")
_NO_PEER = re.compile(r"connection (reset|closed|refused)( by)?|broken pipe|NCCL|gloo", re.IGNORECASE)

Batch = Sequence[Mapping[str, Tensor]]


class _Step(NamedTuple):
    step: int
    names: list[str]
    numbers: Tensor
    arrived: torch.cuda.Event | None
    batch: Batch


class NonFiniteError(FloatingPointError):
    """Report a NaN or infinite tensor of a training step; the message names it.

    Attributes:
        step: number of the step, or None if it is unknown.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class ResourceError(RuntimeError):
    """Report that memory, the disk or another process of a run failed; the message says what to do."""


def advise(error: BaseException) -> str | None:
    """Return what happened and what to do, if memory, the disk or another process failed; else None.

    Example:
        >>> advise(MemoryError())
        'out of memory: give a smaller `batch_size` and as much more `accumulate`, or `checkpointing`'
        >>> advise(ValueError("batch_size must be >= 1, got 0"))
    """
    first = (str(error) or type(error).__name__).splitlines()[0]
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"the disk is full ({first}): free some space"
    if isinstance(error, MemoryError):
        return f"out of memory: {_LESS_MEMORY}"
    if number == errno.ENOMEM or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return f"out of memory ({first}): {_LESS_MEMORY}"
    if isinstance(error, RuntimeError) and _NO_WORKER.search(str(error)):
        return f"a process that loads data was killed, mostly because memory ran out ({first}): give fewer `workers`"
    if isinstance(error, RuntimeError) and _NO_PEER.search(str(error)):
        return f"another process of the run ended ({first}): its own messages say why"
    return None


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Note signals within the block instead of interrupting a training step.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGUSR1 (a scheduler's notice), and SIGHUP (a closed terminal) unless
    ``nohup`` ignores it. Yields a function that returns the number of the signal, or 0. A second Ctrl-C ends the
    process at once. Outside the main thread Python has no signals, and the function always returns 0.

    Example:
        >>> with deferred_interrupt() as interrupted:
        ...     interrupted()
        0
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt("stopped at once by a second Ctrl-C; the newest checkpoint is of an earlier step")
        seen.append(number)

    kept = getattr(signal, "SIGHUP", None)
    noted = [n for n in STOP_SIGNALS if n != kept or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in noted}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StepWatch:
    """Stop at NaN and infinity, report jumps of the loss, and keep the batch that caused them.

    The numbers of a step are copied to the host while the device continues. They are checked when they have arrived: at
    once on the CPU, at most two steps later on a GPU. Call :meth:`flush` before saving a state, so that no state is
    saved after a NaN.

    Args:
        folder: folder of the kept batches, ``<name>-<step>.safetensors``; made when it is needed.
        name: name of the training.
        spike_factor: a total loss above this factor times the median of the last 100 steps is a spike; 0: no check.

    Example:
        >>> watch = StepWatch("run/inspect", "framework")
        >>> watch.check(0, {"total": torch.tensor(0.5)}, [{"the bracket": torch.rand(1, 3, 6, 8, 8)}])
        >>> watch.notices
        []
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, spike_factor: float = 10.0) -> None:
        self.folder, self.name, self.spike_factor = Path(folder), name, spike_factor
        self.notices: list[tuple[int, str]] = []
        """Steps and messages about them; the caller that reports them empties the list."""
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._pending: deque[_Step] = deque()
        self._spikes = 0

    def check(self, step: int, numbers: Mapping[str, Tensor], batch: Batch = ()) -> None:
        """Check the numbers of one step.

        Args:
            step: number of the step.
            numbers: scalars by name, such as loss terms and the gradient's norm; "total" is watched for spikes.
            batch: the inputs of each pass of the step by name; they must be finite too.

        Raises:
            NonFiniteError: a number or input of this step, or of an earlier one that has arrived, is NaN or infinite.
                Its batch has been written.
        """
        inputs = [(name, tensor) for part in batch for name, tensor in part.items()]
        finite = [torch.where(tensor.isfinite().all(), 0.0, torch.nan) for _, tensor in inputs]
        values = [number.detach().float() for number in numbers.values()] + finite
        if not values:
            return
        together = torch.stack([value.reshape(()) for value in values])
        arrived = None
        if together.device.type == "cuda":
            host = torch.empty(together.shape, pin_memory=True)
            together = host.copy_(together, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        names = [*numbers, *(name for name, _ in inputs)]
        self._pending.append(_Step(step, names, together, arrived, batch))
        while self._pending and (self._has_arrived() or len(self._pending) > _LAG):
            self._examine()

    def flush(self) -> None:
        """Check all numbers that have not arrived yet; the errors are the same as in :meth:`check`."""
        while self._pending:
            self._examine()

    def _has_arrived(self) -> bool:
        arrived = self._pending[0].arrived
        return arrived is None or arrived.query()

    def _examine(self) -> None:
        step = self._pending.popleft()
        if step.arrived is not None:
            step.arrived.synchronize()
        values = dict(zip(step.names, step.numbers.tolist(), strict=True))
        broken = [name for name, finite in zip(step.names, step.numbers.isfinite().tolist(), strict=True) if not finite]
        if broken:
            self._pending.clear()
            broken = [name for name in broken if name not in _FOLLOW] or broken
            raise NonFiniteError(
                f"NaN or infinity in {', '.join(dict.fromkeys(broken))} at step {step.step}{self._keep(step)}",
                step.step,
            )
        if "total" in values:
            self._check_spike(step, values["total"])

    def _check_spike(self, step: _Step, total: float) -> None:
        usual = statistics.median(self._recent) if len(self._recent) >= _ENOUGH else 0.0
        self._recent.append(total)
        if self.spike_factor and usual > 0 and total > self.spike_factor * usual:
            self._spikes += 1
            kept = self._keep(step) if self._spikes <= _MOST_SPIKES else ""
            text = f"the loss jumped to {total:.4g}, {total / usual:.0f} times its median{kept}"
            self.notices.append((step.step, text))

    def _keep(self, step: _Step) -> str:
        """Write the batch of a step, and return a part of a message about it."""
        tensors = {
            f"{name.removeprefix('the ')}{f'.{i}' if len(step.batch) > 1 else ''}": tensor.detach().cpu().contiguous()
            for i, part in enumerate(step.batch)
            for name, tensor in part.items()
        }
        if not tensors:
            return ""
        path = self.folder / f"{self.name}-{step.step:08d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, tensors)
        except (OSError, ImportError) as error:
            return f"; its batch could not be kept: {error}"
        return f"; its batch is in {path}"
