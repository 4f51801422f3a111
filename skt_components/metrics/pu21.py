"""PU21: metrics of display-referred HDR pictures in a perceptually uniform encoding of luminance.

Encodings keep shape and dtype; half precision is computed in float32. Metrics take ``(B, C, H, W)``, linear BT.709 RGB
with each channel in cd/m2, or luminance with C = 1, and return ``(B,)`` in float64. Every function raises TypeError for
an argument that is not a floating-point tensor, and ValueError if shapes do not fit or an option is out of range.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Float, Float64
from torch import Tensor

from skt_components.metrics._inputs import PAIR, check_absolute, check_pair
from skt_components.metrics.psnr import psnr
from skt_components.metrics.ssim import ssim
from skt_components.ops.checks import (
    at_least_float32,
    check_choice,
    check_non_negative,
    check_positive,
    check_scale,
    check_tensor,
)

_DARKEST, _BRIGHTEST = 0.005, 10_000.0  # cd/m2, the range that the encoding was fitted on
_PEAK = 256.0  # what a white of 100 cd/m2 is encoded to
_LUMINANCE = (0.212656, 0.715158, 0.072186)  # of linear BT.709


class _Curve(NamedTuple):
    p1: float
    p2: float
    p3: float
    p4: float
    p5: float
    p6: float
    p7: float


_CURVES = {
    "banding": _Curve(1.070275272, 0.4088273932, 0.153224308, 0.2520326168, 1.063512885, 1.14115047, 521.4527484),
    "banding_glare": _Curve(
        0.353487901, 0.3734658629, 8.277049286e-05, 0.9062562627, 0.09150303166, 0.9099517204, 596.3148142
    ),
    "peaks": _Curve(1.043882782, 0.6459495343, 0.3194584211, 0.374025247, 1.114783422, 1.095360363, 384.9217577),
    "peaks_glare": _Curve(
        816.885024, 1479.463946, 0.001253215609, 0.9329636822, 0.06746643971, 1.573435413, 419.6006374
    ),
}


def pu21_encode(luminance: Float[Tensor, "*shape"], *, variant: str = "banding_glare") -> Float[Tensor, "*shape"]:
    """Encode luminance so that equal steps look equal: ``V = p7 (((p1 + p2 Y^p4) / (1 + p3 Y^p4))^p5 - p6)``.

    100 cd/m2, a usual display's white, becomes about 256, so that metrics of 8-bit pictures can be used.

    Args:
        luminance: cd/m2, or each channel of linear RGB on that scale; any shape. Clamped to [0.005, 10000].
        variant: the measurements that the curve fits: "banding", "banding_glare" (its authors' choice), "peaks" or
            "peaks_glare".

    Returns:
        PU values, 0 to about 595.

    Example:
        >>> import torch
        >>> pu21_encode(torch.tensor([0.005, 100.0, 10000.0])).round()
        tensor([  0., 256., 595.])

    Reference:
        Mantiuk, Azimi. PU21: A novel perceptually uniform encoding for adapting existing quality metrics for HDR.
        Picture Coding Symposium 2021.
    """
    check_tensor("luminance", luminance)
    check_choice("variant", variant, _CURVES)
    p = _CURVES[variant]
    powered = at_least_float32(luminance).clamp(_DARKEST, _BRIGHTEST) ** p.p4
    encoded = p.p7 * (((p.p1 + p.p2 * powered) / (1 + p.p3 * powered)) ** p.p5 - p.p6)
    return encoded.clamp(min=0).to(luminance.dtype)


def pu21_decode(encoded: Float[Tensor, "*shape"], *, variant: str = "banding_glare") -> Float[Tensor, "*shape"]:
    """Invert :func:`pu21_encode` to luminance in cd/m2.

    Example:
        >>> import torch
        >>> pu21_decode(pu21_encode(torch.tensor([1.0, 50.0], dtype=torch.float64)))
        tensor([ 1.0000, 50.0000], dtype=torch.float64)
    """
    check_tensor("encoded", encoded)
    check_choice("variant", variant, _CURVES)
    p = _CURVES[variant]
    root = (at_least_float32(encoded) / p.p7 + p.p6).clamp(min=0) ** (1 / p.p5)
    return (((root - p.p1).clamp(min=0) / (p.p2 - p.p3 * root)) ** (1 / p.p4)).to(encoded.dtype)


def display_luminance(
    encoded: Float[Tensor, "*shape"],
    *,
    peak: float = 100.0,
    contrast: float = 1000.0,
    gamma: float = 2.2,
    ambient: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """Compute the luminance of a display, gain-gamma-offset model: ``L = (peak - black) V^gamma + black``.

    ``black`` is ``peak / contrast`` plus the room light that the screen reflects (0.5 %), ``0.005 ambient / pi``.
    SCTNet's evaluation has ``peak=55, ambient=10`` for 8-bit tone-mapped pictures.

    Args:
        encoded: display values, clipped to [0, 1]; any shape.
        peak: luminance of white, cd/m2.
        contrast: ratio of white to black in a dark room.
        gamma: exponent of the display.
        ambient: illuminance of the room, lux.

    Returns:
        cd/m2 per channel.

    Example:
        >>> import torch
        >>> display_luminance(torch.tensor([0.0, 1.0]), peak=200.0)
        tensor([  0.2000, 200.0000])
    """
    check_tensor("encoded", encoded)
    for name, value in (("peak", peak), ("contrast", contrast), ("gamma", gamma)):
        check_positive(name, value)
    check_non_negative("ambient", ambient)
    check_scale("encoded", encoded, "display values in [0, 1]", low=-0.5, high=2.0)
    black = 0.005 * ambient / math.pi + peak / contrast
    return ((peak - black) * at_least_float32(encoded).clamp(0, 1) ** gamma + black).to(encoded.dtype)


def psnr_pu21(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    variant: str = "banding_glare",
    luminance: bool = False,
) -> Float64[Tensor, " b"]:
    """Compute the PSNR of PU21-encoded pictures, with 256, the code of 100 cd/m2, as the peak.

    Pictures must be absolute: multiply relative radiance by the luminance of its white, or see
    :func:`display_luminance`. There is a warning for pictures without a value above 1 cd/m2, and for pictures of many
    whole numbers only.

    Args:
        prediction: C = 1 or 3.
        target: same.
        variant: as in :func:`pu21_encode`.
        luminance: compare the luminance only (PSNR-Y), not all channels.

    Example:
        >>> import torch
        >>> white = torch.full((1, 3, 4, 4), 100.0)
        >>> round(psnr_pu21(1.01 * white, white).item(), 2)
        51.95
    """
    prediction, target = check_pair(prediction, target, _PEAK)
    encoded = [pu21_encode(_luminance(x) if luminance else _colors(x), variant=variant) for x in (prediction, target)]
    check_absolute(PAIR, prediction, target)
    return psnr(*encoded, peak=_PEAK)


def ssim_pu21(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], *, variant: str = "banding_glare"
) -> Float64[Tensor, " b"]:
    """Compute the SSIM of the PU21-encoded luminance, in the form of MATLAB (repeated border), dynamic range 256.

    Arguments as in :func:`psnr_pu21`.

    Example:
        >>> import torch
        >>> picture = 100 * torch.rand(1, 3, 16, 16)
        >>> ssim_pu21(picture, picture).item()
        1.0
    """
    prediction, target = check_pair(prediction, target, _PEAK)
    encoded = [pu21_encode(_luminance(x), variant=variant) for x in (prediction, target)]
    check_absolute(PAIR, prediction, target)
    return ssim(*encoded, peak=_PEAK, border="replicate")


def _colors(picture: Float64[Tensor, "b c h w"]) -> Float64[Tensor, "b c h w"]:
    if picture.shape[1] not in (1, 3):
        raise ValueError(f"prediction and target must have 3 channels (RGB) or 1, got shape {tuple(picture.shape)}")
    return picture


def _luminance(picture: Float64[Tensor, "b c h w"]) -> Float64[Tensor, "b 1 h w"]:
    if _colors(picture).shape[1] == 1:
        return picture
    return (picture * picture.new_tensor(_LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
