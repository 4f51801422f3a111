"""The mean over pictures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skt_components.metrics import MeanMetric

# invariants


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=6))
def test_every_picture_counts_once_whatever_its_batch(batches):
    mean = MeanMetric("psnr")
    for batch in batches:
        mean.update(torch.tensor(batch, dtype=torch.float64))
    values = [value for batch in batches for value in batch]
    assert mean.count == len(values)
    assert mean.compute() == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_accumulates_in_float64():
    mean = MeanMetric("psnr")
    for _ in range(10):
        mean.update(torch.full((1000,), 0.1, dtype=torch.float64))
    mean.update(1e8)
    assert mean.compute() == pytest.approx((1000.0 + 1e8) / 10001, rel=1e-15)


def test_takes_single_numbers_and_drops_the_graph():
    mean = MeanMetric("psnr")
    mean.update(30.0)
    mean.update(torch.tensor(40.0, requires_grad=True))
    assert mean.compute() == 35.0
    assert repr(mean) == "MeanMetric('psnr', count=2)"


def test_reset_forgets():
    mean = MeanMetric("psnr")
    mean.update(torch.tensor([1.0, 2.0]))
    mean.reset()
    mean.update(7.0)
    assert (mean.compute(), mean.count) == (7.0, 1)


def test_one_perfect_picture_makes_the_mean_infinite():
    mean = MeanMetric("psnr")
    mean.update(torch.tensor([30.0, math.inf]))
    assert mean.compute() == math.inf


# rejects_bad_input


def test_rejects_nan_by_name_and_stays_as_it_was():
    mean = MeanMetric("psnr_mu")
    mean.update(torch.tensor([30.0, 32.0]))
    with pytest.raises(ValueError, match="psnr_mu must not be NaN, got NaN in pictures 2 to 4"):
        mean.update(torch.tensor([30.0, math.nan, 31.0]))
    assert (mean.compute(), mean.count) == (31.0, 2)


def test_rejects_values_that_are_not_one_per_picture():
    with pytest.raises(ValueError, match=r"psnr must be one per picture, shape \(B,\), got shape \(2, 3\)"):
        MeanMetric("psnr").update(torch.ones(2, 3))


def test_rejects_a_mean_of_nothing():
    with pytest.raises(ValueError, match="ssim needs at least one picture"):
        MeanMetric("ssim").compute()
