"""Structural similarity per picture: plain, linear (SSIM-L) and tone-mapped (SSIM-mu).

Every metric takes ``(B, C, H, W)`` and returns ``(B,)`` similarities in float64, 1 for equal pictures. It raises
TypeError for an argument that is not a floating-point tensor, and ValueError if shapes differ, pictures are too small
or an option is out of range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from skt_components.metrics._inputs import check_pair
from skt_components.metrics.psnr import crop_sides, quantize
from skt_components.ops.checks import check_choice
from skt_components.ops.transfer import mu_law

_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_BORDERS = ("valid", "replicate", "volume")


def ssim(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float,
    clip: bool = False,
    sample_covariance: bool = False,
    border: str = "valid",
    crop: int = 0,
) -> Float64[Tensor, " b"]:
    """Compute the structural similarity of each picture; the default is the form of the HDR literature.

    All forms have a Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, and a mean over pixels and channels.
    Published numbers differ in the other settings:

    - HDR-Transformer and SCTNet: ``clip=True``. The same number as scikit-image's ``structural_similarity`` of clipped
      pictures with ``gaussian_weights=True``, ``sigma=1.5`` and ``use_sample_covariance=False``.
    - BracketIRE: ``sample_covariance=True``, scikit-image's ``use_sample_covariance=True``.
    - MATLAB on one channel: ``border="replicate"``. MATLAB treats H x W x 3 numbers as a volume: ``border="volume"``.
      Both follow its documentation and were never compared with MATLAB.

    HDR-Transformer and SCTNet scale to [0, 255] and clip there, for SSIM but not for PSNR. This matters only for
    pictures with values outside [0, peak]. By default such errors are not hidden, as in :func:`psnr`.

    Args:
        prediction: on the scale of ``peak``; H and W at least 11 for ``border="valid"``.
        target: same scale.
        peak: value of white, such as 1.0 or 255, > 0.
        clip: clip both pictures to [0, peak] first.
        sample_covariance: use variances of a sample, 121/120 times the population's.
        border: "valid": only windows inside the picture. "replicate": a window around every pixel, with repeated border
            pixels. "volume": as "replicate", with a window of 11x11x11 over the channels too.
        crop: pixels that are first cropped from each side.

    Example:
        >>> picture = torch.rand(2, 3, 16, 16)
        >>> ssim(picture, picture, peak=1.0).tolist()
        [1.0, 1.0]

    Reference:
        Wang, Bovik, Sheikh, Simoncelli. Image quality assessment: from error visibility to structural
        similarity. IEEE TIP 2004.
    """
    prediction, target = check_pair(prediction, target, peak)
    check_choice("border", border, _BORDERS)
    prediction, target = crop_sides(prediction, crop), crop_sides(target, crop)
    height, width = prediction.shape[-2:]
    if border == "valid" and min(height, width) < _WINDOW:
        raise ValueError(f"prediction and target must be at least {_WINDOW}x{_WINDOW} pixels, got {height}x{width}")
    if clip:
        prediction, target = prediction.clamp(0, peak), target.clamp(0, peak)
    if not len(prediction):
        return prediction.new_zeros(0)  # torch pads no empty batch
    if border == "volume":
        return _similarity(prediction, target, peak, sample_covariance, border)
    # One channel after another needs a third of the memory.
    channels = zip(prediction.split(1, dim=1), target.split(1, dim=1), strict=True)
    values = [_similarity(p, t, peak, sample_covariance, border) for p, t in channels]
    return torch.stack(values).mean(0)


def ssim_l(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float = 1.0,
    clip: bool = False,
    sample_covariance: bool = False,
    border: str = "valid",
    crop: int = 0,
) -> Float64[Tensor, " b"]:
    """Compute SSIM-L, the :func:`ssim` of linear HDR pictures.

    ``peak`` is the linear value of white: 1 for sRGB data sets, 16 for BracketIRE.

    Example:
        >>> picture = torch.rand(1, 3, 16, 16)
        >>> ssim_l(picture, picture).item()
        1.0
    """
    return ssim(prediction, target, peak=peak, clip=clip, sample_covariance=sample_covariance, border=border, crop=crop)


def ssim_mu(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float = 1.0,
    mu: float = 5000.0,
    bits: int | None = None,
    clip: bool = False,
    sample_covariance: bool = False,
    border: str = "valid",
    crop: int = 0,
) -> Float64[Tensor, " b"]:
    """Compute SSIM-mu, the SSIM after mu-law tone mapping of ``x / peak``, where white is 1.

    Args:
        prediction: linear HDR. Below zero the mu-law continues as an odd function.
        target: linear HDR, same scale.
        peak: linear value of white (1 for sRGB data sets, 16 for BracketIRE).
        mu: compression of the mu-law, 5000 in all published tables.
        bits: clip both tone-mapped pictures to [0, 1] and truncate them to integers of 1 to 32 bits first, as in
            BracketIRE's 16-bit files; leaves no gradient.
        clip, sample_covariance, border, crop: as in :func:`ssim`; ``clip`` is to [0, 1] after tone mapping.

    Example:
        >>> picture = torch.rand(1, 3, 16, 16)
        >>> ssim_mu(picture, picture).item()
        1.0
    """
    prediction, target = check_pair(prediction, target, peak)
    mapped = [quantize(mu_law(x / peak, mu=mu), bits) for x in (prediction, target)]
    return ssim(*mapped, peak=1.0, clip=clip, sample_covariance=sample_covariance, border=border, crop=crop)


def _similarity(
    prediction: Float64[Tensor, "b c h w"],
    target: Float64[Tensor, "b c h w"],
    peak: float,
    sample_covariance: bool,
    border: str,
) -> Float64[Tensor, " b"]:
    """Return the mean similarity over all windows, which span the channels only for ``border="volume"``."""
    axes = (-1, -2, -3) if border == "volume" else (-1, -2)
    count = _WINDOW ** len(axes)
    bessel = count / (count - 1) if sample_covariance else 1.0

    # The variances are only needed as their sum, so four maps are filtered instead of five.
    maps = torch.stack([prediction, target, prediction.square() + target.square(), prediction * target])
    if border != "valid":
        maps = F.pad(maps, (_WINDOW // 2,) * 2 * len(axes) + (0, 0) * (3 - len(axes)), mode="replicate")
    mean_p, mean_t, mean_squares, mean_product = _gaussian_filter(maps, axes)
    product, squares = mean_p * mean_t, mean_p.square() + mean_t.square()
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    luminance = (2 * product + c1) / (squares + c1)
    structure = (2 * bessel * (mean_product - product) + c2) / (bessel * (mean_squares - squares) + c2)
    return (luminance * structure).flatten(1).mean(1)


def _gaussian_filter(maps: Float64[Tensor, "m b c h w"], axes: Sequence[int]) -> Float64[Tensor, "m b _c _h _w"]:
    """Filter by the Gaussian window along each of the axes, where the window fits."""
    center = _WINDOW // 2
    weights = [math.exp(-((i - center) ** 2) / (2 * _SIGMA**2)) for i in range(_WINDOW)]
    # A sum of shifted maps, in place: on a CPU, float64 conv2d or a new tensor per shift takes three times as long.
    for dim in axes:
        valid = maps.shape[dim] - _WINDOW + 1
        filtered = maps.narrow(dim, center, valid) / sum(weights)
        for i in (i for i in range(_WINDOW) if i != center):
            filtered.add_(maps.narrow(dim, i, valid), alpha=weights[i] / sum(weights))
        maps = filtered
    return maps
