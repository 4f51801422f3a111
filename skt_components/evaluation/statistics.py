"""What one method gains over another on the same pictures, over several seeds, with an interval that means it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from skt_components.ops.checks import check_count


class PairedSummary(NamedTuple):
    """What :func:`paired_summary` found; ``str`` of it is one line for people.

    Attributes:
        gain: mean over seeds and pictures of ours - theirs.
        low: lower end of the interval.
        high: upper end.
        confidence: of the interval.
        seed_gains: mean over the pictures, seed by seed.
        pictures: how many there are.
        wins: how many seeds have a gain above 0.
        standard_error: of the gain, from the differences between the seeds alone; None for one seed.
        metric: unit and name.
    """

    gain: float
    low: float
    high: float
    confidence: float
    seed_gains: tuple[float, ...]
    pictures: int
    wins: int
    standard_error: float | None
    metric: str

    def __str__(self) -> str:
        seeds = len(self.seed_gains)
        over = f"{seeds} seed{'s' if seeds > 1 else ''} and {self.pictures} pictures"
        interval = f"{100 * self.confidence:g} % interval [{self.low:+.3f}, {self.high:+.3f}]"
        rest = (
            ", seeds " + " ".join(f"{gain:+.2f}" for gain in self.seed_gains) if seeds > 1 else " over pictures alone"
        )
        return f"paired gain over {over}: {self.gain:+.3f} {self.metric}, {interval}{rest}"


def paired_summary(
    ours: Sequence[Float[Tensor, " p"]],
    theirs: Sequence[Float[Tensor, " p"]],
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    metric: str = "dB PSNR-mu",
) -> PairedSummary:
    r"""Return the mean gain of paired values, and how far it could be off with other seeds and other pictures.

    Every seed is validated on the same pictures: seeds and pictures are crossed, not nested. So each resample draws
    seeds, and then *one* set of pictures for all of them. Pictures drawn for each seed anew would average away that
    some pictures gain more than others, which they do for every seed, and the interval would be too narrow.

    A plain bootstrap of three seeds never leaves the smallest and the largest of them, and calls 95 % what holds the
    true gain three times in four. Therefore a resample's deviations between seeds, and those between pictures, are
    widened by :math:`\sqrt{n / (n - 1)}\; t_{n-1} / z`, Student's quantile over the normal one: 1.4 * 6.5 for two
    seeds, 1.2 * 2.2 for three, hardly anything for a hundred pictures. Two seeds say little, and it shows.

    Views of one scene gain alike. Where ``groups`` says which pictures belong together, a resample draws scenes and
    not pictures; intervals that take such pictures for independent ones are far too narrow.

    One seed cannot say what another would have given: its interval is over pictures alone, and ``str`` says so.

    Args:
        ours: for each seed ``(P,)``, one value per picture.
        theirs: those of the other method, for the same seeds and pictures in the same order.
        groups: for each picture what it is a view of; None: of something of its own.
        confidence: how often the interval holds the true gain, in (0, 1).
        resamples: how many.
        seed: of the draws; the same values give the same interval.
        metric: unit and name of the values, for ``str``.

    Returns:
        Gain, interval and what they come from. Values that are infinite on both sides gain 0; another infinite one
        makes the gain infinite or nan, and the interval nan.

    Raises:
        TypeError: an item is no tensor.
        ValueError: the numbers of seeds or of pictures differ, there are no seeds or fewer than two pictures, or an
            option is out of range; ``groups`` has another length, or fewer than two groups.

    Example:
        >>> import torch
        >>> theirs = [torch.tensor([30.0, 40.0]), torch.tensor([31.0, 41.0])]
        >>> print(paired_summary([values + 0.5 for values in theirs], theirs))
        paired gain over 2 seeds and 2 pictures: +0.500 dB PSNR-mu, 95 % interval [+0.500, +0.500], seeds +0.50 +0.50

    Reference:
        A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007: factors that are crossed.
        T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69(4), 2015: the
        widening for small samples.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    gains = _gains(ours, theirs)
    seeds = tuple(float(gain) for gain in gains.mean(1))
    drawn = gains if groups is None else _by_group(gains, list(groups))
    low, high = _interval(drawn, confidence, check_count("resamples", resamples, 1), np.random.default_rng(seed))
    error = float(np.std(seeds, ddof=1)) / len(seeds) ** 0.5 if len(seeds) > 1 else None
    wins = sum(gain > 0 for gain in seeds)
    return PairedSummary(float(gains.mean()), low, high, confidence, seeds, gains.shape[1], wins, error, metric)


def _gains(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> np.ndarray:
    """Return ours - theirs as ``(seeds, pictures)`` in float64."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"ours and theirs must have the same seeds, one at least, got {len(ours)} and {len(theirs)}")
    rows = []
    for index, pair in enumerate(zip(ours, theirs, strict=True)):
        for name, values in zip(("ours", "theirs"), pair, strict=True):
            if not isinstance(values, Tensor):
                raise TypeError(
                    f"{name}[{index}] must be a tensor of one value per picture, got {type(values).__name__}"
                )
            if values.ndim != 1 or len(values) < 2:
                wanted = "(P,), one value for each of at least two pictures"
                raise ValueError(f"{name}[{index}] must be {wanted}, got {tuple(values.shape)}")
            if len(values) != len(ours[0]):
                raise ValueError(
                    f"{name}[{index}] must have the {len(ours[0])} pictures that ours[0] has, got {len(values)}"
                )
        a, b = (values.detach().double().cpu().numpy() for values in pair)
        with np.errstate(invalid="ignore"):  # infinite on both sides
            rows.append(np.where(a == b, 0.0, a - b))
    return np.stack(rows)


def _by_group(gains: np.ndarray, groups: list[Hashable]) -> np.ndarray:
    """Return ``(seeds, groups)``: the sums over groups, scaled so that their mean is that of the pictures."""
    names = list(dict.fromkeys(groups))
    if len(groups) != gains.shape[1] or len(names) < 2:
        raise ValueError(
            f"groups must name at least two groups for {gains.shape[1]} pictures, got {len(names)} for {len(groups)}"
        )
    mean, member = gains.mean(), np.array([[group == name for name in names] for group in groups], dtype=float)
    return mean + (gains - mean) @ member * (len(names) / len(groups))


def _interval(
    gains: np.ndarray, confidence: float, resamples: int, generator: np.random.Generator
) -> tuple[float, float]:
    if not np.isfinite(gains).all():
        return math.nan, math.nan
    count, pictures = gains.shape
    mean = gains.mean()
    of_seed, of_picture = gains.mean(1) - mean, gains.mean(0) - mean
    rest = gains - mean - of_seed[:, None] - of_picture
    by_seed, by_picture = _widening(count, confidence), _widening(pictures, confidence)
    drawn = []
    for start in range(0, resamples, 500):  # in pieces: thousands of pictures need no gigabyte
        number = min(500, resamples - start)
        s = _drawn_shares(number, count, generator)
        p = _drawn_shares(number, pictures, generator)  # the same pictures for all of a resample's seeds
        drawn.append(by_seed * (s @ of_seed) + by_picture * (p @ of_picture) + ((s @ rest) * p).sum(1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(mean + low), float(mean + high)


def _drawn_shares(number: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return how large a share each of ``count`` things has in ``count`` draws with replacement, ``number`` times."""
    drawn = generator.integers(count, size=(number, count)) + count * np.arange(number)[:, None]
    return np.bincount(drawn.ravel(), minlength=number * count).reshape(number, count) / count


def _widening(count: int, confidence: float) -> float:
    """Return by how much the deviations of ``count`` resampled values are too small for an interval."""
    if count < 2:
        return 0.0  # one value deviates from nothing
    upper = (1 + confidence) / 2
    return math.sqrt(count / (count - 1)) * _student_quantile(upper, count - 1) / NormalDist().inv_cdf(upper)


@lru_cache
def _student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's distribution: the angle whose tangent is t / sqrt(n) has density cos^(n-1)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(probability * below[-1], below, angles)))
