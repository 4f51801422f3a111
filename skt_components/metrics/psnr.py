"""Peak signal-to-noise ratio per picture: plain, linear (PSNR-l) and tone-mapped (PSNR-mu)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from skt_components.metrics._inputs import check_pair
from skt_components.ops.transfer import mu_law


def psnr(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], *, peak: float
) -> Float64[Tensor, " b"]:
    """Peak signal-to-noise ratio of each picture, ``10 log10(peak^2 / MSE)``.

    The error is pooled over the channels and pixels of one picture only. A data set's PSNR is the mean of
    these values (:class:`~skt_components.metrics.MeanMetric`), not the PSNR of its mean error. Predictions
    are not clipped: the published protocols of HDR-Transformer and SCTNet do not clip, and clipping would
    hide errors above the peak.

    Args:
        prediction: ``(B, C, H, W)``, on the scale of ``peak``.
        target: ``(B, C, H, W)``, same scale.
        peak: the value that counts as white, such as 1.0 or 255.

    Returns:
        ``(B,)`` decibels in float64; ``inf`` (with zero gradient) where the two pictures are equal.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ or are not ``(B, C, H, W)``; ``peak`` is not above 0.

    Example:
        >>> target = torch.zeros(1, 3, 4, 4)
        >>> round(psnr(target + 0.1, target, peak=1.0).item(), 3)
        20.0
    """
    prediction, target = check_pair(prediction, target, peak)
    mse = (prediction - target).square().flatten(1).mean(1)
    # log10 has no finite gradient at 0, so equal pictures bypass it and leave their batch mates alone.
    equal = mse == 0
    decibels = 20 * math.log10(peak) - 10 * torch.log10(mse.masked_fill(equal, 1.0))
    return decibels.masked_fill(equal, math.inf)


def psnr_l(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], *, peak: float = 1.0
) -> Float64[Tensor, " b"]:
    """PSNR-l: the PSNR of linear HDR pictures.

    Args:
        prediction: ``(B, C, H, W)`` linear HDR; not clipped.
        target: ``(B, C, H, W)`` linear HDR, same scale.
        peak: the linear value that counts as white (1 for sRGB data sets, 16 for BracketIRE).

    Returns:
        ``(B,)`` decibels in float64.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ or are not ``(B, C, H, W)``; ``peak`` is not above 0.

    Example:
        >>> target = torch.zeros(1, 3, 4, 4)
        >>> round(psnr_l(target + 1.6, target, peak=16.0).item(), 3)
        20.0
    """
    return psnr(prediction, target, peak=peak)


def psnr_mu(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float = 1.0,
    mu: float = 5000.0,
) -> Float64[Tensor, " b"]:
    """PSNR-mu: the PSNR after mu-law tone mapping of ``x / peak``, where white is 1.

    Args:
        prediction: ``(B, C, H, W)`` linear HDR; not clipped. Below zero the mu-law is continued oddly.
        target: ``(B, C, H, W)`` linear HDR, same scale.
        peak: the linear value that counts as white (1 for sRGB data sets, 16 for BracketIRE).
        mu: compression of the mu-law, 5000 in all published tables.

    Returns:
        ``(B,)`` decibels in float64.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ or are not ``(B, C, H, W)``; ``peak`` or ``mu`` is not above 0.

    Example:
        >>> target = torch.zeros(1, 3, 4, 4)
        >>> psnr_mu(target + 1.0, target).item()
        0.0

    Reference:
        Kalantari, Ramamoorthi. Deep high dynamic range imaging of dynamic scenes. SIGGRAPH 2017.
    """
    prediction, target = check_pair(prediction, target, peak)
    return psnr(mu_law(prediction / peak, mu=mu), mu_law(target / peak, mu=mu), peak=1.0)
