"""Structural similarity per picture: plain, linear (SSIM-l) and tone-mapped (SSIM-mu)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from skt_components.metrics._inputs import check_pair
from skt_components.ops.transfer import mu_law

_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def ssim(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float,
    clip: bool = False,
) -> Float64[Tensor, " b"]:
    """Structural similarity of each picture, the form of the HDR literature.

    Gaussian window of 11 taps, sigma 1.5, population covariance, windows wholly inside the picture only,
    K1 = 0.01, K2 = 0.03, mean over pixels and channels. The same number as scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``.

    HDR-Transformer and SCTNet scale to [0, 255] and clip there, for SSIM but not for PSNR: ``clip=True`` is
    their protocol. The two differ only where a picture leaves [0, peak]; the default keeps such errors
    visible, as :func:`psnr` does.

    Args:
        prediction: ``(B, C, H, W)``, on the scale of ``peak``, H and W at least 11.
        target: ``(B, C, H, W)``, same scale.
        peak: the value that counts as white, such as 1.0 or 255.
        clip: clip both pictures to [0, peak] first.

    Returns:
        ``(B,)`` similarities in float64, 1 for equal pictures.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ, are not ``(B, C, H, W)`` or below 11x11; ``peak`` is not above 0.

    Example:
        >>> picture = torch.rand(2, 3, 16, 16)
        >>> ssim(picture, picture, peak=1.0).tolist()
        [1.0, 1.0]

    Reference:
        Wang, Bovik, Sheikh, Simoncelli. Image quality assessment: from error visibility to structural
        similarity. IEEE TIP 2004.
    """
    prediction, target = check_pair(prediction, target, peak)
    height, width = prediction.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"prediction and target must be at least {_WINDOW}x{_WINDOW} pixels, got {height}x{width}")
    if clip:
        prediction, target = prediction.clamp(0, peak), target.clamp(0, peak)

    # The variances are only needed as their sum, so four maps are filtered instead of five.
    maps = [prediction, target, prediction.square() + target.square(), prediction * target]
    mean_p, mean_t, mean_squares, mean_product = _gaussian_filter(torch.stack(maps))
    product, squares = mean_p * mean_t, mean_p.square() + mean_t.square()
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    luminance = (2 * product + c1) / (squares + c1)
    structure = (2 * (mean_product - product) + c2) / (mean_squares - squares + c2)
    return (luminance * structure).flatten(1).mean(1)


def ssim_l(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float = 1.0,
    clip: bool = False,
) -> Float64[Tensor, " b"]:
    """SSIM-l: the SSIM of linear HDR pictures.

    Args:
        prediction: ``(B, C, H, W)`` linear HDR, H and W at least 11.
        target: ``(B, C, H, W)`` linear HDR, same scale.
        peak: the linear value that counts as white (1 for sRGB data sets, 16 for BracketIRE).
        clip: clip both pictures to [0, peak] first, see :func:`ssim`.

    Returns:
        ``(B,)`` similarities in float64.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: as :func:`ssim`.

    Example:
        >>> picture = torch.rand(1, 3, 16, 16)
        >>> ssim_l(picture, picture).item()
        1.0
    """
    return ssim(prediction, target, peak=peak, clip=clip)


def ssim_mu(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    peak: float = 1.0,
    mu: float = 5000.0,
    clip: bool = False,
) -> Float64[Tensor, " b"]:
    """SSIM-mu: the SSIM after mu-law tone mapping of ``x / peak``, where white is 1.

    Args:
        prediction: ``(B, C, H, W)`` linear HDR, at least 11x11. Below zero the mu-law is continued oddly.
        target: ``(B, C, H, W)`` linear HDR, same scale.
        peak: the linear value that counts as white (1 for sRGB data sets, 16 for BracketIRE).
        mu: compression of the mu-law, 5000 in all published tables.
        clip: clip both tone-mapped pictures to [0, 1] first, see :func:`ssim`.

    Returns:
        ``(B,)`` similarities in float64.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: as :func:`ssim`; ``mu`` is not above 0.

    Example:
        >>> picture = torch.rand(1, 3, 16, 16)
        >>> ssim_mu(picture, picture).item()
        1.0
    """
    prediction, target = check_pair(prediction, target, peak)
    return ssim(mu_law(prediction / peak, mu=mu), mu_law(target / peak, mu=mu), peak=1.0, clip=clip)


def _gaussian_filter(maps: Float64[Tensor, "m b c h w"]) -> Float64[Tensor, "m b c h-10 w-10"]:
    """Filter by the Gaussian window, first along rows, then along columns, where the window fits."""
    centre = _WINDOW // 2
    taps = [math.exp(-((i - centre) ** 2) / (2 * _SIGMA**2)) for i in range(_WINDOW)]
    # A sum of shifted maps, in place: on a CPU, float64 conv2d or a new tensor per tap takes three times as long.
    for dim in (-1, -2):
        valid = maps.shape[dim] - _WINDOW + 1
        filtered = maps.narrow(dim, centre, valid) / sum(taps)
        for i in (i for i in range(_WINDOW) if i != centre):
            filtered.add_(maps.narrow(dim, i, valid), alpha=taps[i] / sum(taps))
        maps = filtered
    return maps
