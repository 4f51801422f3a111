"""Mixtures and pools of samples."""

from __future__ import annotations

import pickle

import pytest
import torch

from skt_components.data import HDRSample, MixedSamples, SamplePool
from skt_components.data.dataset import SampleDataset


class Counting(SampleDataset):
    """Samples that say where they come from, and how often they were drawn."""

    def __init__(self, name: str, length: int = 10) -> None:
        super().__init__(length, trains=True)
        self.name, self.drawn = name, 0

    def _draw(self, index: int, epoch: int) -> HDRSample:
        self.drawn += 1
        return HDRSample(torch.zeros(1), torch.ones(1), torch.zeros(1), f"{self.name} {epoch} {index}", "srgb")


def test_a_mixture_draws_by_its_shares_and_passes_epoch_and_index_on() -> None:
    mixed = MixedSamples([Counting("a"), Counting("b")], [3, 1])
    names = [mixed[(epoch, index)].name for epoch in range(100) for index in range(10)]
    assert names[-1].endswith("99 9")
    assert 0.7 < sum(name.startswith("a") for name in names) / 1000 < 0.8


def test_the_choice_depends_on_seed_epoch_and_index_alone() -> None:
    first, again = (MixedSamples([Counting("a"), Counting("b")], [1, 1], seed=5) for _ in range(2))
    other = MixedSamples([Counting("a"), Counting("b")], [1, 1], seed=6)
    places = [(epoch, index) for epoch in range(3) for index in range(10)]
    assert [again[p].name for p in reversed(places)] == [first[p].name for p in reversed(places)]
    assert [first[p].name for p in places] != [other[p].name for p in places]


def test_a_share_of_zero_draws_nothing() -> None:
    mixed = MixedSamples([Counting("a"), Counting("b")], [0, 1])
    assert all(mixed[(epoch, 0)].name.startswith("b") for epoch in range(50))


@pytest.mark.parametrize(
    ("datasets", "shares", "message"),
    [
        ([], [], "datasets must have one length, got no data set"),
        ([Counting("a", 3), Counting("b", 4)], [1, 1], r"one length, got \[3, 4\]"),
        ([Counting("a")], [1, 1], "shares must be 1 numbers >= 0"),
        ([Counting("a"), Counting("b")], [0, 0], "shares must be 2 numbers"),
        ([Counting("a"), Counting("b")], [-1, 2], "shares must be 2 numbers"),
    ],
)
def test_rejects_data_sets_and_shares_that_do_not_fit(datasets: list, shares: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedSamples(datasets, shares)


def test_a_pool_renders_each_sample_once_and_covers_epochs() -> None:
    source = Counting("a", length=4)
    pool = SamplePool(source, 6)
    names = {pool[(epoch, index)].name for epoch in range(9) for index in range(4)}
    assert names == {"a 0 0", "a 0 1", "a 0 2", "a 0 3", "a 1 0", "a 1 1"}
    assert source.drawn == 6


def test_a_copy_in_a_loader_process_starts_empty_and_gives_the_same_samples() -> None:
    pool = SamplePool(Counting("a"), 3)
    name = pool[(2, 1)].name
    copy = pickle.loads(pickle.dumps(pool))
    assert not copy._samples
    assert copy[(2, 1)].name == name


def test_rejects_an_empty_pool() -> None:
    with pytest.raises(ValueError, match="count must be"):
        SamplePool(Counting("a"), 0)
