"""One HDR training or test sample, and its bracket as a tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.ops.checks import check_positive, check_tensor
from skt_components.ops.transfer import linearize_ldr

# Peak of the one linear scale of RAW brackets, where the shortest exposure saturates; BracketIRE's number.
RAW_PEAK = 16.0


class HDRSample(NamedTuple):
    """A bracket of pictures and the radiance of its reference exposure.

    ``torch.utils.data.default_collate`` turns a list of samples into one sample with a leading batch axis
    (``name`` and ``domain`` become lists of str); pinned memory works too.

    Attributes:
        bracket: float32. sRGB: (N, 6, H, W), for each exposure the linearized RGB, then the LDR RGB in [0, 1]. RAW:
            (N, 4, h, w), packed R, Gr, Gb, B, all exposures on one linear scale.
        exposure_times: (N,) float32; relative to the shortest, which is 1, unless the data set states otherwise.
        target: float32 linear radiance. sRGB: (3, H, W), relative to the peak. RAW: packed (4, h, w), or (4, 4 h, 4 w)
            for fourfold super-resolution, on the scale of the bracket, whose peak is 16.
        name: name of the scene, for logs and reports.
        domain: ``"srgb"`` or ``"raw"``.
        metadata: how to display RAW data, as keywords of ``DomainTransfer("raw")``: ``white_balance`` (3,), factors
            of R, G and B, and ``color_matrix`` (3, 3) from the camera's linear RGB to linear sRGB. Empty for sRGB.
    """

    bracket: Tensor
    exposure_times: Tensor
    target: Tensor
    name: str
    domain: str
    metadata: dict[str, Tensor] = {}  # noqa: RUF012  (a tuple has no other default, and nothing writes to it)


def make_bracket(
    ldr: Float[Tensor, "n 3 h w"], exposure_times: Float[Tensor, " n"], gamma: float = 2.2
) -> Float[Tensor, "n 6 h w"]:
    """Stack the linearized exposures and the exposures themselves along the channels.

    Args:
        ldr: (N, 3, H, W) display-encoded RGB in [0, 1].
        exposure_times: (N,) relative exposure times, each above zero.
        gamma: exponent that undoes the display encoding.

    Returns:
        (N, 6, H, W): ``ldr ** gamma / t`` in channels 0 to 2, ``ldr`` in channels 3 to 5.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: the shapes do not fit, or ``gamma`` is not above zero.

    Example:
        >>> bracket = make_bracket(torch.ones(3, 3, 4, 4), torch.tensor([1.0, 4.0, 16.0]))
        >>> bracket.shape, bracket[:, 0, 0, 0].tolist()
        (torch.Size([3, 6, 4, 4]), [1.0, 0.25, 0.0625])
    """
    check_tensor("ldr", ldr, ndim=4, layout="(N, 3, H, W)", channels=3)
    check_tensor("exposure_times", exposure_times, ndim=1, layout="(N,)")
    check_positive("gamma", gamma)
    if len(exposure_times) != len(ldr):
        raise ValueError(
            f"exposure_times must have one entry for each of the {len(ldr)} exposures, "
            f"got shape {tuple(exposure_times.shape)}"
        )
    return torch.cat([linearize_ldr(ldr, exposure_times, gamma=gamma), ldr], dim=1)
