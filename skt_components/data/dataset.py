"""Base class of all data sets: samples that depend on the seed, the epoch and the index alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from skt_components.data.sample import HDRSample
from skt_components.ops.checks import check_count


class SampleDataset(Dataset[HDRSample]):
    """Map-style data set whose training samples depend on (seed, epoch, index) alone, the others on (seed, index).

    Args:
        length: samples per epoch.
        trains: True if every epoch has samples of its own.
    """

    def __init__(self, length: int, *, trains: bool) -> None:
        self._length = length
        self._trains = trains
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent loader workers see it change

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a copy made by plain pickle is private

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the training samples of an epoch, in persistent workers too; call it before iterating."""
        self._epoch.fill_(check_count("epoch", epoch, 0))

    def __getitem__(self, index: int | tuple[int, int]) -> HDRSample:
        """Return one sample, see :class:`HDRSample`.

        ``(epoch, index)`` draws from the given epoch instead, so that one loader can run on through the epochs.
        """
        epoch = int(self._epoch.item())
        if isinstance(index, tuple):
            epoch, index = index
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is outside a data set of {self._length} samples")
        return self._draw(index % self._length, epoch if self._trains else 0)

    def _draw(self, index: int, epoch: int) -> HDRSample:
        """Return sample ``index`` of ``epoch``."""
        raise NotImplementedError


def check_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels; raise ValueError unless both are whole numbers of at least 8."""
    pair = (size, size) if isinstance(size, int) else size
    try:
        height, width = pair
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number or (height, width), got {size!r}") from None
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 8 for v in (height, width)):
        raise ValueError(f"{name} must be whole numbers of at least 8 pixels, got {size!r}")
    return height, width
