"""HDR without a network: the reference exposure as it is, and a classical merge of all exposures.

Both take the bracket of a network and return linear radiance on the scale of its output. They need no training, so a
trained network should be better than both.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from skt_components.ops.checks import (
    at_least_float32,
    check_choice,
    check_count,
    check_exposure_times,
    check_not_empty,
    check_positive,
    check_sides,
    check_tensor,
)

_RAW_CHANNELS, _RAW_PEAK, _DISPLAY_GAMMA = 4, 16.0, 2.2
# Display values of an exposure's brightest channel between which its weight falls from 1 to 0.
_TRUSTED, _CLIPPED = 0.8, 0.98
# Differences of square roots of radiance: allowed for noise, and relative to the reference.
_NOISE = {"srgb": 0.003, "raw": 0.04}
_RELATIVE = {"srgb": 0.06, "raw": 0.15}


def reference_exposure(
    bracket: Float[Tensor, "b n c h w"], *, reference: int | None = None, scale: int = 1
) -> Float[Tensor, "b o sh sw"]:
    """Return the linear radiance of the reference exposure alone.

    Args:
        bracket: ``(B, N, 6, H, W)``, linearized RGB then LDR RGB; or ``(B, N, 4, h, w)``, packed RAW in [0, 16].
        reference: index of the reference exposure; None for the middle one of sRGB, the first of RAW.
        scale: enlarge the sides by this whole number, bicubically.

    Returns:
        ``(B, 3, H, W)`` or ``(B, 4, h, w)``, times ``scale`` along both sides.

    Raises:
        TypeError: ``bracket`` is not a floating-point tensor.
        ValueError: its shape is not one of these, or an option is out of range.

    Example:
        >>> reference_exposure(torch.rand(1, 3, 6, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """
    index = _check_bracket(bracket, reference)
    channels = _RAW_CHANNELS if bracket.shape[2] == _RAW_CHANNELS else 3
    return _enlarge(bracket[:, index, :channels], scale)


def merge_exposures(
    bracket: Float[Tensor, "b n c h w"],
    exposure_times: Float[Tensor, " n"],
    *,
    reference: int | None = None,
    tolerance: float = 1.0,
    scale: int = 1,
) -> Float[Tensor, "b o sh sw"]:
    """Merge the exposures of a bracket by a weighted mean. Use the reference alone where they disagree.

    The weight of an exposure is its time, because a longer exposure has less noise. The weight falls to zero where the
    exposure is saturated. An exposure counts only where it agrees with the reference. For this, the difference of the
    square roots of both radiances is blurred over 3 x 3 pixels, and compared with a tolerance for noise plus a part of
    the reference. Where the reference is saturated, any radiance above its saturation agrees. Nothing is aligned.

    Args:
        bracket: as in :func:`reference_exposure`.
        exposure_times: ``(N,)`` or ``(B, N)``, in any unit, all above zero.
        reference: as in :func:`reference_exposure`.
        tolerance: factor of the allowed difference. Larger values use more of the other exposures, and give more
            ghosts.
        scale: as in :func:`reference_exposure`.

    Returns:
        as :func:`reference_exposure`.

    Raises:
        TypeError: ``bracket`` is not a floating-point tensor.
        ValueError: a shape does not fit, or an option is out of range.

    Example:
        >>> bracket = torch.rand(1, 5, 4, 8, 8)
        >>> merge_exposures(bracket, torch.tensor([1.0, 4.0, 16.0, 64.0, 256.0])).shape
        torch.Size([1, 4, 8, 8])
    """
    index = _check_bracket(bracket, reference)
    check_positive("tolerance", tolerance)
    check_not_empty("bracket", bracket)
    dtype, bracket = bracket.dtype, at_least_float32(bracket)
    batch, count = bracket.shape[:2]
    if exposure_times.shape[-1:] != (count,) or exposure_times.ndim > 2:
        raise ValueError(
            f"exposure_times must be ({count},) or (B, {count}), one for each exposure, "
            f"got {tuple(exposure_times.shape)}"
        )
    domain = "raw" if bracket.shape[2] == _RAW_CHANNELS else "srgb"
    check_exposure_times("exposure_times", exposure_times)
    times = exposure_times.to(bracket).expand(batch, count)
    times = (times / times.amin(1, keepdim=True))[:, :, None, None, None]
    if domain == "raw":
        radiance = bracket / _RAW_PEAK
        display = (radiance * times).clamp(0, 1) ** (1 / _DISPLAY_GAMMA)
    else:
        radiance, display = bracket[:, :, :3], bracket[:, :, 3:]
    trusted = ((_CLIPPED - display.amax(2, keepdim=True)) / (_CLIPPED - _TRUSTED)).clamp(0, 1)
    agreement = _agreement(radiance, times, index, tolerance * _NOISE[domain], tolerance * _RELATIVE[domain])
    weight = times * trusted
    shortest = times == times.amin(1, keepdim=True)
    weight = torch.where(shortest, weight.clamp_min(1e-2), weight) * agreement  # light that saturates all of them
    alone = torch.arange(count, device=bracket.device)[:, None, None, None] == index
    weight = torch.where(alone, weight.clamp_min(1e-6), weight)  # nothing else agrees
    merged = (weight * radiance).sum(1) / weight.sum(1)
    return _enlarge(merged * _RAW_PEAK if domain == "raw" else merged, scale).to(dtype)


def _agreement(radiance: Tensor, times: Tensor, index: int, noise: float, relative: float) -> Tensor:
    """Return the agreement (B, N, 1, H, W) of each exposure with the reference, from 0 to 1."""
    blurred = F.avg_pool2d(radiance.flatten(0, 1), 3, 1, 1, count_include_pad=False).unflatten(0, radiance.shape[:2])
    saturation = 0.95 / times[:, index : index + 1]
    roots = torch.minimum(blurred.clamp_min(0), saturation).sqrt()
    own = roots[:, index : index + 1]
    difference = ((roots - own).abs() / (noise + relative * own)).amax(2)
    difference = F.max_pool2d(difference, 3, 1, 1)[:, :, None]  # the soft edges of objects
    return torch.exp(-(difference**2))


def _check_bracket(bracket: Tensor, reference: int | None) -> int:
    check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
    check_choice("channels of bracket", bracket.shape[2], (6, _RAW_CHANNELS))
    count = bracket.shape[1]
    if not count:
        raise ValueError(f"bracket must hold at least one exposure (B, N, C, H, W), got shape {tuple(bracket.shape)}")
    if reference is None:
        return 0 if bracket.shape[2] == _RAW_CHANNELS else count // 2
    if not 0 <= reference < count:
        raise ValueError(f"reference must be in [0, {count}), got {reference}")
    return reference


def _enlarge(picture: Tensor, scale: int) -> Tensor:
    if check_count("scale", scale, 1) == 1:
        return picture
    check_sides("bracket", picture)
    return F.interpolate(picture, scale_factor=scale, mode="bicubic").clamp_min(0)
