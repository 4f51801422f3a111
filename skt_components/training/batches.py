"""The batches of a run: the same samples for any number of processes, passes and interruptions."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Generator, Iterator
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from skt_components.data.sample import HDRSample
from skt_components.data.seeding import hash_key
from skt_components.ops.checks import check_count
from skt_components.training.guards import STOP_SIGNALS


class SamplePositions(Sampler[list[tuple[int, int]]]):
    """Yield the samples of each batch as ``(epoch, index)``, endlessly, beginning with the batch ``start``.

    The samples of a run are one sequence: a permutation of the data set for every epoch, one after another. The
    sequence is cut into pieces. Batch ``b`` of process ``rank`` is the ``rank``-th part of the ``b``-th piece. So two
    processes, or two batches with added gradients, get the same samples as one process with a batch of twice the size.
    The sequence does not change when a run is resumed. A batch may contain samples of two epochs.

    Args:
        length: samples of the data set.
        batch_size: samples per batch and process.
        seed: seed of the permutations.
        start: the first batch.
        rank: number of this process.
        world: how many processes there are.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> stream = iter(SamplePositions(4, 2, seed=0, start=1))
        >>> [epoch for epoch, _ in next(stream)], [epoch for epoch, _ in next(stream)]
        ([0, 0], [1, 1])
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.length, self.batch_size = check_count("length", length, 1), check_count("batch_size", batch_size, 1)
        self.seed, self.start, self.world = seed, check_count("start", start, 0), check_count("world", world, 1)
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}), got {rank}")
        self.rank = rank

    def first(self, batch: int) -> int:
        """Return the place in the run's sequence of the first sample of a batch of this process."""
        return (batch * self.world + self.rank) * self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the positions of one batch after the other."""
        batch, drawn, order = self.start, -1, []
        while True:
            positions = []
            for place in range(self.first(batch), self.first(batch) + self.batch_size):
                epoch, index = divmod(place, self.length)
                if epoch != drawn:
                    generator = torch.Generator().manual_seed(hash_key("order", self.seed, epoch))
                    drawn, order = epoch, torch.randperm(self.length, generator=generator).tolist()
                positions.append((epoch, order[index]))
            yield positions
            batch += 1


def training_batches(
    dataset: Dataset[HDRSample],
    positions: SamplePositions,
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Generator[HDRSample, None, None]:
    """Yield batches on a device, without end. On a GPU the next batch is copied while the current one is used.

    Loader processes ignore the signals of a terminal and of a scheduler; the training process handles them. Close the
    stream (``contextlib.closing``) to end the loader processes.

    Args:
        dataset: takes ``(epoch, index)``, as the data sets of this library do.
        positions: positions of the samples.
        workers: number of loader processes.
        device: device of the batches.
        dtype: dtype of the batches; the data set's when None.
    """
    device = torch.device(device)
    loader = DataLoader(
        dataset,
        batch_sampler=positions,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(hash_key("workers", positions.seed)),
        worker_init_fn=_leave_signals,
    )
    batches = _start(loader)
    if device.type != "cuda":
        yield from (move_sample(sample, device, dtype) for sample in batches)
        return
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    ahead = cast("HDRSample | None", None)
    while True:
        main.wait_stream(side)
        sample = ahead
        for tensor in [] if sample is None else _tensors(sample):
            tensor.record_stream(main)
        with torch.cuda.stream(side):  # the copy runs beside the kernels of the step before
            ahead = move_sample(next(batches), device, dtype)
        if sample is not None:
            yield sample


def move_sample(sample: HDRSample, device: torch.device | str, dtype: torch.dtype | None = None) -> HDRSample:
    """Return a sample with its tensors on a device, without waiting for it.

    Args:
        sample: one, or a batch.
        device: device of the result.
        dtype: dtype of the result; the sample's when None.

    Example:
        >>> from skt_components import SyntheticScenes
        >>> move_sample(SyntheticScenes(1, 16)[0], "cpu", torch.float64).bracket.dtype
        torch.float64
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype, non_blocking=True)

    return sample._replace(
        bracket=move(sample.bracket),
        exposure_times=move(sample.exposure_times),
        target=move(sample.target),
        metadata={key: move(value) for key, value in sample.metadata.items()},
    )


def seed_everything(*key: int | str) -> None:
    """Seed Python, NumPy and PyTorch, on every device, by a key, such as (seed, batch, rank).

    Call it before every batch. Then the random numbers of a batch depend only on the number of the batch, and no state
    of a generator must be saved to resume.
    """
    import numpy as np

    number = hash_key(*key)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  (code of others may draw from it)
    torch.manual_seed(number)


def sample_generators(seed: int, first: int, count: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return a generator for each sample of a batch, seeded by its place in the run's sequence.

    Args:
        seed: the run's.
        first: place of the first sample, see :meth:`SamplePositions.first`.
        count: samples in the batch.
        device: where the generators draw.

    Example:
        >>> one, other = sample_generators(0, 7, 2)
        >>> again = sample_generators(0, 8, 1)[0]
        >>> bool((torch.rand(3, generator=other) == torch.rand(3, generator=again)).all())
        True
    """
    return [torch.Generator(device).manual_seed(hash_key("sample", seed, first + i)) for i in range(count)]


def _start(loader: DataLoader[HDRSample]) -> Iterator[HDRSample]:
    """Start the loader, in processes that block signals from their first moment."""
    if not hasattr(signal, "sigwaitinfo"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited by a new process
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(_worker: int) -> None:
    """Ignore Ctrl-C and a scheduler's signals, which reach the whole group: the training process handles them."""
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)  # the parent process ended the loader

    threading.Thread(target=wait, daemon=True).start()


def _tensors(sample: HDRSample) -> list[Tensor]:
    return [sample.bracket, sample.exposure_times, sample.target, *sample.metadata.values()]
