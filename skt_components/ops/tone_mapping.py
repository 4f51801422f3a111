"""Tone mapping: show linear HDR on a display, with detail in the dark and in the light."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from skt_components.ops.checks import (
    at_least_float32,
    check_not_empty,
    check_positive,
    check_same_shape,
    check_tensor,
)
from skt_components.ops.transfer import srgb_encode

_LUMINANCE = (0.2126, 0.7152, 0.0722)
_DARKEST = 1e-6  # relative to the brightest pixel; 20 stops below it
_EDGE = 0.4  # stops: larger steps of brightness are edges, which the base layer keeps
_SATURATION = 0.85  # exponent of the color ratios; compressed pictures look too colorful without it


def tone_map(
    linear: Float[Tensor, "b 3 h w"],
    *,
    like: Float[Tensor, "b 3 h w"] | None = None,
    stops: float = 5.0,
) -> Float[Tensor, "b 3 h w"]:
    """Compress linear RGB for a display: base and detail layers, like bilateral tone mapping, with a guided filter.

    The logarithm of the luminance is split into a base, which is smooth except at strong edges, and the detail. The
    base is compressed to ``stops``. The detail is kept. So both a bright window and the dark room around it show their
    texture.

    Args:
        linear: RGB radiance in any unit; negative values count as 0.
        like: picture whose brightness and range determine the compression; None: ``linear`` itself. Pass the target to
            show a result and its target in the same way.
        stops: dynamic range of the base layer in the result; a smaller range is not stretched.

    Returns:
        display values in [0, 1], sRGB-encoded; a black picture is black.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: a picture is not ``(B, 3, H, W)``, the shapes differ, or ``stops`` is not above zero.

    Example:
        >>> room, window = torch.full((1, 3, 16, 8), 0.001), torch.full((1, 3, 16, 8), 1.0)
        >>> shown = tone_map(torch.cat([room, window], dim=3))
        >>> bool(shown[..., :4].min() > 0.1), bool(shown[..., 12:].max() <= 1)
        (True, True)

    Reference:
        F. Durand and J. Dorsey, "Fast bilateral filtering for the display of high-dynamic-range images", SIGGRAPH 2002;
        K. He, J. Sun and X. Tang, "Guided image filtering", ECCV 2010.
    """
    check_tensor("linear", linear, ndim=4, layout="(B, 3, H, W)", channels=3)
    check_positive("stops", stops)
    if like is not None:
        check_tensor("like", like, ndim=4, layout="(B, 3, H, W)", channels=3)
        check_same_shape("like", like, "linear", linear)
    check_not_empty("linear", linear)
    dtype, linear = linear.dtype, at_least_float32(linear)
    like = linear if like is None else at_least_float32(like)
    peak = like.flatten(1).amax(1).clamp_min(torch.finfo(like.dtype).tiny)[:, None, None, None]
    model_base, model_light = _base(like / peak)
    low, high = (_percentile(model_base, share) for share in (0.01, 0.995))
    compression = (stops / (high - low).clamp_min(1e-3)).clamp_max(1)
    model_shown = model_base * compression + (model_light - model_base)
    white = _percentile(model_shown, 0.995)
    base, light = _base(linear / peak)
    shown = base * compression + (light - base) - white
    color = (linear / peak).clamp_min(0) / torch.exp2(light).clamp_min(1e-12)
    encoded = srgb_encode((color.clamp_min(1e-6) ** _SATURATION * torch.exp2(shown)).clamp(0, 1))
    return (encoded * (linear > 0).any(1, True)).to(dtype)


def _base(linear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the base layer and the whole luminance, both (B, 1, H, W) in stops."""
    weights = linear.new_tensor(_LUMINANCE)[:, None, None]
    light = (linear.clamp_min(0) * weights).sum(1, keepdim=True).clamp_min(_DARKEST).log2()
    side = min(light.shape[-2:])
    step = max(side // 256, 1)  # the coefficients of a guided filter are smooth: a small picture has them
    small = F.avg_pool2d(light, step, ceil_mode=True, count_include_pad=False)
    radius = max(side // step // 32, 2)
    mean = _blur(small, radius)
    variance = (_blur(small**2, radius) - mean**2).clamp_min(0)
    slope = variance / (variance + _EDGE**2)
    slope, offset = _blur(slope, radius), _blur(mean - slope * mean, radius)
    if step > 1:
        slope, offset = (F.interpolate(x, light.shape[-2:], mode="bilinear") for x in (slope, offset))
    return slope * light + offset, light


def _blur(picture: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    rows = F.avg_pool2d(picture, (size, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, size), 1, (0, radius), count_include_pad=False)


def _percentile(picture: Tensor, share: float) -> Tensor:
    """Return a percentile of each picture; of large ones from a part of the pixels."""
    values = picture.flatten(1)
    values = values[:, :: max(values.shape[1] // 1_000_000, 1)]
    return torch.quantile(values, share, dim=1)[:, None, None, None]
