"""Peak signal-to-noise ratio per picture: plain, linear (PSNR-L) and tone-mapped (PSNR-mu).

Every metric takes ``(B, C, H, W)`` and returns ``(B,)`` decibels in float64. It raises TypeError for an argument that
is not a floating-point tensor, and ValueError if shapes differ or an option is out of range.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from skt_components.metrics._inputs import check_pair
from skt_components.ops.checks import check_count
from skt_components.ops.transfer import mu_law


def psnr(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], *, peak: float, crop: int = 0
) -> Float64[Tensor, " b"]:
    """Compute the peak signal-to-noise ratio of each picture, ``10 log10(peak^2 / MSE)``.

    The error is averaged over the channels and pixels of one picture only. A data set's PSNR is the mean of these
    values (:class:`~skt_components.metrics.MeanMetric`), not the PSNR of its mean error. Predictions are not clipped:
    the published protocols of HDR-Transformer and SCTNet do not clip, and clipping would hide errors above the peak.

    Args:
        prediction: on the scale of ``peak``.
        target: same scale.
        peak: value of white, such as 1.0 or 255, > 0.
        crop: pixels left out on each side; at least one pixel must remain.

    Returns:
        ``inf`` (with zero gradient) where the two pictures are equal.

    Example:
        >>> target = torch.zeros(1, 3, 4, 4)
        >>> round(psnr(target + 0.1, target, peak=1.0).item(), 3)
        20.0
    """
    prediction, target = check_pair(prediction, target, peak)
    prediction, target = crop_sides(prediction, crop), crop_sides(target, crop)
    mse = (prediction - target).square().flatten(1).mean(1)
    # log10 has no finite gradient at 0, so equal pictures bypass it and leave their batch mates alone.
    equal = mse == 0
    decibels = 20 * math.log10(peak) - 10 * torch.log10(mse.masked_fill(equal, 1.0))
    return decibels.masked_fill(equal, math.inf)


def psnr_l(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], *, peak: float = 1.0, crop: int = 0
) -> Float64[Tensor, " b"]:
    """Compute PSNR-L, the :func:`psnr` of linear HDR pictures.

    ``peak`` is the linear value of white: 1 for sRGB data sets, 16 for BracketIRE.

    Example:
        >>> target = torch.zeros(1, 3, 4, 4)
        >>> round(psnr_l(target + 1.6, target, peak=16.0).item(), 3)
        20.0
    """
    return psnr(prediction, target, peak=peak, crop=crop)


def psnr_mu(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float = 1.0,
    mu: float = 5000.0,
    bits: int | None = None,
    crop: int = 0,
) -> Float64[Tensor, " b"]:
    """Compute PSNR-mu, the PSNR after mu-law tone mapping of ``x / peak``, where white is 1.

    BracketIRE compares RGB pictures stored in 16 bits, truncated, without their border: ``bits=16, crop=10``
    (BracketIRE+: ``crop=16``).

    Args:
        prediction: linear HDR; not clipped. Below zero the mu-law continues as an odd function.
        target: linear HDR, same scale.
        peak: linear value of white (1 for sRGB data sets, 16 for BracketIRE).
        mu: compression of the mu-law, 5000 in all published tables.
        bits: clip both tone-mapped pictures to [0, 1] and truncate them to integers of 1 to 32 bits first; leaves no
            gradient.
        crop: pixels left out on each side.

    Example:
        >>> target = torch.zeros(1, 3, 4, 4)
        >>> psnr_mu(target + 1.0, target).item()
        0.0

    Reference:
        Kalantari, Ramamoorthi. Deep high dynamic range imaging of dynamic scenes. SIGGRAPH 2017.
    """
    prediction, target = check_pair(prediction, target, peak)
    mapped = [quantize(mu_law(x / peak, mu=mu), bits) for x in (prediction, target)]
    return psnr(*mapped, peak=1.0, crop=crop)


def quantize(picture: Float[Tensor, "*shape"], bits: int | None, *, rounded: bool = False) -> Float[Tensor, "*shape"]:
    """Clip a picture to [0, 1] and round it to integers of ``bits`` bits, scaled back to [0, 1].

    Args:
        picture: any shape, white at 1.
        bits: 1 to 32; None returns the picture unchanged.
        rounded: round to the nearest integer; False truncates, as a plain conversion to integers does.

    Raises:
        ValueError: ``bits`` is not a whole number from 1 to 32.
    """
    if bits is None:
        return picture
    if check_count("bits", bits, 1) > 32:
        raise ValueError(f"bits must be a whole number from 1 to 32, got {bits!r}")
    largest = 2.0**bits - 1
    scaled = picture.double().clamp(0, 1) * largest
    # The tolerance keeps integers that rounding errors of a logarithm moved just below themselves.
    whole = scaled.round() if rounded else (scaled + 1e-6).floor()
    return (whole / largest).to(picture.dtype)


def crop_sides(picture: Float[Tensor, "b c h w"], crop: int) -> Float[Tensor, "b c _h _w"]:
    """Cut ``crop`` pixels off each side; raise ValueError if nothing is left."""
    height, width = (side - 2 * check_count("crop", crop, 0) for side in picture.shape[-2:])
    if min(height, width) < 1:
        raise ValueError(f"crop must leave a pixel of {tuple(picture.shape[-2:])}, got {crop}")
    return picture[..., crop : crop + height, crop : crop + width]
