"""Data sets made from other data sets: a mixture, and a fixed pool of samples that are rendered once."""

from __future__ import annotations

from collections.abc import Sequence

from skt_components.data.dataset import SampleDataset
from skt_components.data.sample import HDRSample
from skt_components.data.seeding import make_generator, uniform
from skt_components.ops.checks import check_count


class MixedSamples(SampleDataset):
    """Draw each training sample from one of several data sets.

    The choice depends only on (seed, epoch, index), like the samples.

    Args:
        datasets: data sets of equal length, domain and sample size.
        shares: share of the samples for each data set; they are divided by their sum.
        seed: seed of the choice.

    Raises:
        ValueError: there is no data set, lengths differ, or the shares do not fit.

    Example:
        >>> from skt_components.simulation import SyntheticScenes
        >>> day, night = (SyntheticScenes(8, 16, seed=seed) for seed in (1, 2))
        >>> len(MixedSamples([day, night], [0.7, 0.3]))
        8
    """

    def __init__(self, datasets: Sequence[SampleDataset], shares: Sequence[float], *, seed: int = 0) -> None:
        lengths = sorted({len(dataset) for dataset in datasets})
        if len(lengths) != 1:
            raise ValueError(f"datasets must have one length, got {lengths or 'no data set'}")
        total = sum(shares)
        if len(shares) != len(datasets) or min(shares) < 0 or not total > 0:
            raise ValueError(f"shares must be {len(datasets)} numbers >= 0 with a sum > 0, got {tuple(shares)}")
        super().__init__(lengths[0], trains=True)
        self.datasets, self.shares, self.seed = list(datasets), [share / total for share in shares], seed

    def _draw(self, index: int, epoch: int) -> HDRSample:
        place = uniform(make_generator("train", "MixedSamples", self.seed, epoch, index), 0.0, 1.0)
        for dataset, share in zip(self.datasets, self.shares, strict=True):
            place -= share
            if place < 0:
                return dataset[(epoch, index)]
        return self.datasets[-1][(epoch, index)]  # rounding


class SamplePool(SampleDataset):
    """Render a number of training samples once, and use them again in every epoch.

    A sample is rendered at its first use, and kept in memory. This helps if rendering takes as long as a training step,
    as for simulated RAW brackets. Each loader process has its own pool.

    Args:
        dataset: gives the samples.
        count: number of different samples.

    Raises:
        ValueError: ``count`` is below 1.

    Example:
        >>> from skt_components.simulation import SyntheticScenes
        >>> pool = SamplePool(SyntheticScenes(100, 16), 2)
        >>> pool[(0, 1)].name == pool[(5, 1)].name
        True
    """

    def __init__(self, dataset: SampleDataset, count: int) -> None:
        super().__init__(len(dataset), trains=True)
        self.dataset, self.count = dataset, check_count("count", count, 1)
        self._samples: dict[int, HDRSample] = {}

    def _draw(self, index: int, epoch: int) -> HDRSample:
        number = (epoch * len(self) + index) % self.count
        if number not in self._samples:
            self._samples[number] = self.dataset[divmod(number, len(self))]
        return self._samples[number]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_samples": {}}
