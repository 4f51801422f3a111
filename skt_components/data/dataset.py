"""What every data set shares: a length, an epoch, and samples that depend on what they are alone."""

from __future__ import annotations

from torch.utils.data import Dataset

from skt_components.data.sample import HDRSample
from skt_components.data.seeding import SharedEpoch


class SampleDataset(Dataset[HDRSample]):
    """Map-style data set whose training samples depend on (seed, epoch, index) alone, the others on (seed, index).

    Args:
        length: samples per epoch.
        trains: whether the epoch chooses the samples.
    """

    def __init__(self, length: int, *, trains: bool) -> None:
        self._length = length
        self._trains = trains
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the training samples of an epoch, in persistent workers too; call it before iterating."""
        self._epoch.set(epoch)

    def __getitem__(self, index: int | tuple[int, int]) -> HDRSample:
        """Return one sample, see :class:`HDRSample`.

        ``(epoch, index)`` draws from that epoch whatever was set, so that one loader can run on through the epochs.
        """
        epoch = self._epoch.get()
        if isinstance(index, tuple):
            epoch, index = index
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is outside a data set of {self._length} samples")
        return self._draw(index % self._length, epoch if self._trains else 0)

    def _draw(self, index: int, epoch: int) -> HDRSample:
        """Return sample ``index`` of ``epoch``."""
        raise NotImplementedError
