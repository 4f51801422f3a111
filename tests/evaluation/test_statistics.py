"""Intervals of means and of paired gains: their coverage of the true value is as stated."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from skt_components.evaluation import bootstrap_mean, paired_summary
from skt_components.evaluation.statistics import _student_quantile


def simulate(
    generator: torch.Generator, seeds: int, pictures: int, of_seed: float, of_picture: float, rest: float, gain=0.1
) -> tuple[list[Tensor], list[Tensor]]:
    """Values of two methods; a gain has a part of its seed, one of its picture and one of both."""

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    theirs = 40 + 4 * draw(1, pictures) + 0.3 * draw(seeds, pictures)
    ours = theirs + gain + of_seed * draw(seeds, 1) + of_picture * draw(1, pictures) + rest * draw(seeds, pictures)
    return list(ours), list(theirs)


def coverage(simulations: int, *parts, **options) -> float:
    generator = torch.Generator().manual_seed(5)
    held = 0
    for _ in range(simulations):
        found = paired_summary(*simulate(generator, *parts), resamples=300, **options)
        held += found.low <= 0.1 <= found.high
    return held / simulations


# the interval


@pytest.mark.parametrize(
    ("seeds", "pictures", "of_seed", "of_picture", "rest"),
    [
        (1, 16, 0.0, 0.1, 0.1),
        (2, 16, 0.1, 0.02, 0.02),  # the seeds decide: a plain bootstrap holds it half of the time
        (3, 16, 0.1, 0.02, 0.02),
        (3, 16, 0.02, 0.1, 0.02),  # the pictures decide: drawn for each seed anew, they would seem three times as many
        (5, 8, 0.1, 0.1, 0.1),
    ],
)
def test_the_interval_holds_the_true_gain(seeds, pictures, of_seed, of_picture, rest):
    assert coverage(200, seeds, pictures, of_seed, of_picture, rest) >= 0.90


def test_views_of_one_scene_are_not_taken_for_many_scenes():
    """Four views each of four or eight scenes, which gain differently: by view the interval is far too narrow."""
    generator, held = torch.Generator().manual_seed(6), {True: 0, False: 0}
    for number in range(200):
        scenes = 4 if number % 2 else 8
        ours, theirs = simulate(generator, 3, scenes, 0.02, 0.3, 0.02)
        rows = [[values.repeat(4) for values in of] for of in (ours, theirs)]
        for grouped in held:
            groups = list(range(scenes)) * 4 if grouped else None
            found = paired_summary(*rows, groups=groups, resamples=300)
            held[grouped] += found.low <= 0.1 <= found.high
    assert held[True] >= 180
    assert held[False] < 150


def test_groups_of_one_picture_each_change_nothing_and_of_any_size_leave_the_gain():
    ours, theirs = simulate(torch.Generator().manual_seed(7), 3, 6, 0.1, 0.1, 0.1)
    one, other = paired_summary(ours, theirs, groups="abcdef"), paired_summary(ours, theirs)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-9)
    uneven = paired_summary(ours, theirs, groups=["a", "a", "a", "b", "c", "c"])
    assert uneven.gain == paired_summary(ours, theirs).gain
    assert uneven.low < uneven.gain < uneven.high


@pytest.mark.parametrize("groups", [["a"] * 6, ["a", "b"]])
def test_groups_must_be_two_and_of_all_pictures(groups):
    ours, theirs = simulate(torch.Generator().manual_seed(7), 3, 6, 0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="groups must name at least two groups for 6 pictures, got"):
        paired_summary(ours, theirs, groups=groups)


def test_the_interval_is_not_just_wide():
    assert coverage(200, 5, 16, 0.1, 0.1, 0.02, confidence=0.5) <= 0.65


def test_what_all_seeds_share_does_not_shrink_with_more_of_them():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = simulate(generator, 1, 30, 0.0, 0.1, 0.0)
    one = paired_summary(ours, theirs)
    many = paired_summary(ours * 6, theirs * 6)
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.05)


def test_many_pictures_of_one_seed_give_the_interval_of_the_bootstrap():
    gains = torch.randn(400, generator=torch.Generator().manual_seed(1)) + 0.3
    found, wanted = paired_summary([gains + 40], [torch.full((400,), 40.0)]), bootstrap_mean(gains.tolist())
    assert found.gain == pytest.approx(wanted.mean, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def test_students_quantiles_are_those_of_the_tables():
    found = [_student_quantile(0.975, freedom) for freedom in (1, 2, 4, 9, 30)]
    assert found == pytest.approx([12.7062, 4.3027, 2.7764, 2.2622, 2.0423], abs=2e-3)
    assert _student_quantile(0.9, 5000) == pytest.approx(NormalDist().inv_cdf(0.9), abs=1e-3)


def test_equal_values_give_equal_intervals():
    values = simulate(torch.Generator().manual_seed(2), 3, 8, 0.1, 0.1, 0.1)
    torch.manual_seed(1)
    first, state = paired_summary(*values), torch.get_rng_state()
    assert paired_summary(*values) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert paired_summary(*values, seed=1).low != first.low
    narrow = paired_summary(*values, confidence=0.5)
    assert first.low < narrow.low < first.gain < narrow.high < first.high


# the numbers


def test_a_constant_gain_is_exact():
    theirs = [torch.tensor([40.0, 41.0, 42.0]), torch.tensor([30.0, 31.0, 32.0])]
    found = paired_summary([values + 2**-12 for values in theirs], theirs)
    assert (found.gain, found.low, found.high) == (2**-12,) * 3
    assert found.seed_gains == (2**-12,) * 2
    assert (found.pictures, found.wins, found.standard_error) == (3, 2, 0.0)


def test_the_numbers_of_a_worked_example():
    theirs = [torch.zeros(2)] * 3
    found = paired_summary([torch.tensor(row) for row in ([1.0, 3.0], [-2.0, 0.0], [2.0, 2.0])], theirs)
    assert found.seed_gains == (2.0, -1.0, 2.0)
    assert found.gain == 1.0
    assert found.wins == 2
    assert found.standard_error == pytest.approx(1.0)  # standard deviation sqrt(3) over sqrt(3)
    swapped = paired_summary(theirs, [torch.tensor(row) for row in ([1.0, 3.0], [-2.0, 0.0], [2.0, 2.0])])
    assert (swapped.gain, swapped.wins) == (-1.0, 1)


def test_infinite_values_are_not_hidden_unless_both_are():
    infinite, finite = torch.tensor([math.inf, 40.0]), torch.tensor([50.0, 40.0])
    assert paired_summary([infinite], [infinite])[:3] == (0.0, 0.0, 0.0)
    found = paired_summary([infinite], [finite])
    assert found.gain == math.inf
    assert math.isnan(found.low)
    assert math.isnan(found.high)


# the line


def test_the_line_for_people():
    theirs = [torch.zeros(16)] * 3
    found = paired_summary([torch.full((16,), gain) for gain in (0.1, 0.05, 0.22)], theirs)
    line = str(found._replace(low=-0.01, high=0.25))
    assert line == (
        "paired gain over 3 seeds and 16 pictures: +0.123 dB PSNR-mu, 95 % interval [-0.010, +0.250], "
        "seeds +0.10 +0.05 +0.22"
    )


def test_the_line_of_one_seed_says_that_it_is_over_pictures_alone():
    found = paired_summary([torch.ones(4)], [torch.zeros(4)], metric="SSIM", confidence=0.9)
    assert str(found) == (
        "paired gain over 1 seed and 4 pictures: +1.000 SSIM, 90 % interval [+1.000, +1.000] over pictures alone"
    )
    assert found.standard_error is None


# rejects_bad_input


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([3], [3, 3], r"ours and theirs must have the same seeds, one at least, got 1 and 2"),
        ([], [], r"ours and theirs must have the same seeds, one at least, got 0 and 0"),
        ([3], [2], r"theirs\[0\] must have the 3 pictures that ours\[0\] has, got 2"),
        ([3, 4], [3, 4], r"ours\[1\] must have the 3 pictures that ours\[0\] has, got 4"),
        ([1], [1], r"ours\[0\] must be \(P,\), one value for each of at least two pictures, got \(1,\)"),
    ],
)
def test_rejects_other_numbers_of_seeds_or_pictures(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        paired_summary([torch.rand(n) for n in ours], [torch.rand(n) for n in theirs])


def test_rejects_what_is_no_list_of_rows_and_bad_options():
    rows = [torch.rand(3)]
    with pytest.raises(ValueError, match=r"ours\[0\] must be \(P,\), .*, got \(\)"):
        paired_summary(torch.rand(3), torch.rand(3))
    with pytest.raises(TypeError, match=r"theirs\[0\] must be a tensor of one value per picture, got list"):
        paired_summary(rows, [[1.0, 2.0, 3.0]])
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got"):
            paired_summary(rows, rows, confidence=confidence)
    with pytest.raises(ValueError, match="resamples must be a whole number >= 1, got 0"):
        paired_summary(rows, rows, resamples=0)


# bootstrap_mean


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_interval_is_that_of_all_resamples_widened_for_few(confidence):
    values = [30.0, 35.5, 41.0, 38.2, 33.3]
    off = np.array(list(itertools.product(values, repeat=5))).mean(1) - np.mean(values)  # all 3125, equally likely
    found = bootstrap_mean(values, resamples=20_000, confidence=confidence)
    upper = (1 + confidence) / 2
    wider = math.sqrt(5 / 4) * scipy.stats.t.ppf(upper, 4) / scipy.stats.norm.ppf(upper)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.low - found.mean == pytest.approx(wider * np.quantile(off, 1 - upper), abs=0.2)
    assert found.high - found.mean == pytest.approx(wider * np.quantile(off, upper), abs=0.2)


def test_hardly_anything_is_widened_for_many():
    values = np.random.default_rng(0).normal(40, 2, 400)
    half = 1.96 * values.std() / 20
    found = bootstrap_mean(values, resamples=20_000)
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05 * half)


def test_one_picture_has_no_interval():
    found = bootstrap_mean([40.0])
    assert found.mean == 40.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(1).normal(40, 2, 15)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_an_infinite_value_has_no_interval():
    found = bootstrap_mean([40.0, math.inf, 42.0])
    assert found.mean == math.inf
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "values must hold at least one"),
        ([1.0], {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
        ([1.0], {"resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_rejects_bad_input(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, **options)


def test_an_interval_stays_where_the_metric_can_be():
    values = [0.999, 0.9995, 0.2]
    free, inside = bootstrap_mean(values), bootstrap_mean(values, bounds=(-1.0, 1.0))
    assert free.high > 1
    assert inside == (free.mean, free.low, 1.0)
    assert math.isnan(bootstrap_mean([0.5], bounds=(-1.0, 1.0)).high)
