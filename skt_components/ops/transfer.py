"""Range and domain transfer: mu-law, LDR linearization, sRGB.

Results have the shape and dtype of the input; half precision is computed in float32. Every function raises TypeError
for an input that is not a floating-point tensor, and ValueError for a ``mu`` or ``gamma`` that is not a finite number
above zero.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.ops.checks import (
    at_least_float32,
    check_choice,
    check_exposure_times,
    check_positive,
    check_scale,
    check_tensor,
)

DISPLAY_GAMMA = 2.2
"""Exponent of the display values in brackets."""
TRANSFERS = ("srgb", "gamma2.2", "linear")
"""Transfer functions of pictures, for :func:`linearize`."""


def mu_law(x: Float[Tensor, "..."], mu: float = 5000.0) -> Float[Tensor, "..."]:
    """Compress linear radiance: ``T(x) = log(1 + mu x) / log(1 + mu)`` (the T of eq. 1).

    Below zero T continues as an odd function, ``T(-x) = -T(x)``, so that negative outputs of a linear network have a
    gradient, unlike with a clamp. The slope at 0 is ``mu / log(1 + mu)`` from both sides.

    Args:
        x: linear radiance relative to its peak, nominally [0, 1].
        mu: amount of compression.

    Example:
        >>> import torch
        >>> mu_law(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    check_tensor("x", x)
    check_positive("mu", mu)
    wide = at_least_float32(x)
    positive = wide >= 0
    compressed = torch.log1p(mu * _magnitude(wide, positive)) / math.log1p(mu)
    return torch.where(positive, compressed, -compressed).to(x.dtype)


def mu_law_inverse(y: Float[Tensor, "..."], mu: float = 5000.0) -> Float[Tensor, "..."]:
    """Invert :func:`mu_law`, including its odd continuation, to linear radiance relative to its peak.

    Example:
        >>> import torch
        >>> mu_law_inverse(mu_law(torch.tensor([0.25])))
        tensor([0.2500])
    """
    check_tensor("y", y)
    check_positive("mu", mu)
    wide = at_least_float32(y)
    positive = wide >= 0
    expanded = torch.expm1(math.log1p(mu) * _magnitude(wide, positive)) / mu
    return torch.where(positive, expanded, -expanded).to(y.dtype)


def _magnitude(x: Tensor, positive: Tensor) -> Tensor:
    """Return ``|x|`` with slope 1 at 0, where ``abs`` and, in some releases of torch, ``clamp`` have slope 0."""
    return torch.where(positive, x, -x)


def linearize_ldr(
    ldr: Float[Tensor, "*batch n c h w"], exposure_times: Float[Tensor, "*batch n"], gamma: float = 2.2
) -> Float[Tensor, "*batch n c h w"]:
    """Convert LDR exposures to one linear radiance scale: ``ldr ** gamma / exposure_time``.

    Args:
        ldr: gamma-encoded exposures in [0, 1]; values below 0 count as 0.
        exposure_times: relative, above zero, 1 for the exposure on the target's scale. Not exposure values in stops:
            these become times by ``2 ** (ev - ev.min())``.
        gamma: exponent of the camera response, 2.2 in the Kalantari and Tel protocols.

    Raises:
        ValueError: the shapes do not fit, or a time is not above zero (verified on the CPU only).

    Warns if ``ldr`` is not in [0, 1], such as pictures of 0 to 255.

    Example:
        >>> import torch
        >>> linearize_ldr(torch.ones(2, 3, 4, 4), torch.tensor([1.0, 4.0]))[1, 0, 0, 0]
        tensor(0.2500)
    """
    check_tensor("ldr", ldr)
    check_tensor("exposure_times", exposure_times)
    check_positive("gamma", gamma)
    if ldr.ndim < 4 or exposure_times.shape != ldr.shape[:-3]:
        raise ValueError(
            f"exposure_times must have the leading axes of ldr (..., N, C, H, W), got shapes "
            f"{tuple(exposure_times.shape)} and {tuple(ldr.shape)}"
        )
    check_exposure_times("exposure_times", exposure_times)
    check_scale("ldr", ldr, "display-encoded in [0, 1]", low=-0.5, high=2.0)
    dtype = torch.promote_types(ldr.dtype, exposure_times.dtype)
    linear = at_least_float32(ldr).clamp(min=0) ** gamma / exposure_times[..., None, None, None]
    return linear.to(dtype)


def srgb_encode(linear: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Apply the sRGB transfer function (IEC 61966-2-1) to linear light, its two parts continued beyond [0, 1].

    Example:
        >>> import torch
        >>> srgb_encode(torch.tensor([0.5]))
        tensor([0.7354])
    """
    check_tensor("linear", linear)
    # Without the clamp the power law's infinite slope at 0 would make the gradient of the linear branch NaN.
    wide = at_least_float32(linear)
    curved = 1.055 * wide.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(wide <= 0.0031308, 12.92 * wide, curved).to(linear.dtype)


def srgb_decode(encoded: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Invert :func:`srgb_encode`, to linear light.

    Example:
        >>> import torch
        >>> srgb_decode(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    check_tensor("encoded", encoded)
    wide = at_least_float32(encoded)
    curved = ((wide.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(wide <= 0.04045, wide / 12.92, curved).to(encoded.dtype)


def linearize(values: Float[Tensor, "..."], transfer: str) -> Float[Tensor, "..."]:
    """Undo a transfer function of display values in [0, 1].

    Args:
        values: values of the picture.
        transfer: "srgb", "gamma2.2" or "linear".

    Raises:
        ValueError: ``transfer`` is none of these.

    Example:
        >>> import torch
        >>> linearize(torch.tensor([0.0, 0.5, 1.0]), "gamma2.2")
        tensor([0.0000, 0.2176, 1.0000])
    """
    check_choice("transfer", transfer, TRANSFERS)
    if transfer == "srgb":
        return srgb_decode(values)
    return values**DISPLAY_GAMMA if transfer == "gamma2.2" else values
