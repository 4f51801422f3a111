"""Pictures that need no training, for comparison with every network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor

from skt_components.data.sample import HDRSample
from skt_components.evaluation.protocols import Protocol
from skt_components.ops.merge import merge_exposures, reference_exposure

REFERENCE, MERGE = "reference exposure", "exposure merge"
BASELINES = (REFERENCE, MERGE)
"""Titles of the pictures of :func:`baseline_pictures`."""


def baseline_pictures(
    bracket: Float[Tensor, "b n c h w"], exposure_times: Float[Tensor, "... n"], *, scale: int = 1
) -> dict[str, Float[Tensor, "b o sh sw"]]:
    """Return the reference exposure as it is, and a classical merge of all exposures, by title.

    Args:
        bracket: sRGB or RAW, as in :func:`~skt_components.ops.reference_exposure`.
        exposure_times: as in :func:`~skt_components.ops.merge_exposures`.
        scale: how many times as large as the bracket the target is.

    Raises:
        TypeError, ValueError: as in these functions.

    Example:
        >>> import torch
        >>> list(baseline_pictures(torch.rand(1, 3, 6, 8, 8), torch.tensor([1.0, 4.0, 16.0])))
        ['reference exposure', 'exposure merge']
    """
    return {title: function(bracket) for title, function in _functions(exposure_times, scale).items()}


def baseline_predictions(
    sample: HDRSample, protocol: Protocol, *, scale: int = 1
) -> dict[str, Float[Tensor, "1 o h w"]]:
    """Return the pictures of :func:`baseline_pictures`, with the border and tiles of a protocol.

    Args:
        sample: one sample, without a batch axis.
        protocol: its border and tiles.
        scale: how many times as large as the bracket the target is.

    Example:
        >>> from skt_components.simulation import SyntheticScenes
        >>> sample = SyntheticScenes(1, 32)[0]
        >>> list(baseline_predictions(sample, Protocol.kalantari()))
        ['reference exposure', 'exposure merge']
    """
    functions = _functions(sample.exposure_times, scale)
    return {title: protocol.infer(function, sample.bracket[None]) for title, function in functions.items()}


def _functions(exposure_times: Tensor, scale: int) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        REFERENCE: partial(reference_exposure, scale=scale),
        MERGE: partial(merge_exposures, exposure_times=exposure_times, scale=scale),
    }
