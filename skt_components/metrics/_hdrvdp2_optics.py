"""Optics of HDR-VDP-2, from the picture to the response of the receptors: display, glare, rods and cones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from skt_components.metrics._hdrvdp2_numerics import cached, in_strips, interpolate
from skt_components.ops.transfer import srgb_decode

CHANNELS = {"luminance": 1, "luma-display": 1, "sRGB-display": 3, "rgb-bt.709": 3, "XYZ": 3}

# Sensitivity of L cones, M cones and rods to each channel.
_LUMINANCE = ((0.601847152244699, 0.31670829557916946, 0.9046706545995032),)
DISPLAYS = {
    "ccfl-lcd": (
        (0.1989961203379287, 0.04100586040758893, 0.01437736862111919),
        (0.40476260703812544, 0.25492330644134564, 0.4809208410841319),
        (0.05439061925532116, 0.050012248959300676, 0.45427589566935994),
    ),
    "led-lcd": (
        (0.1787174708325443, 0.04729528934232731, 0.0688682732168711),
        (0.44171841764736336, 0.2649529315030187, 0.584439209301964),
        (0.037298983813337794, 0.03406751621076706, 0.33097358677530136),
    ),
    "crt": (
        (0.19352143856780377, 0.045053209085706196, 0.04707366617554174),
        (0.4142240107638399, 0.25627519596218484, 0.5384547675333984),
        (0.05071663628626743, 0.04523801971999734, 0.40041394231638844),
    ),
}
_XYZ_TO_RGB = (
    (3.240708, -1.537259, -0.498570),
    (-0.969257, 1.875995, 0.041555),
    (0.055636, -0.203996, 1.057069),
)
_GLARE = (
    (0.42483859630129034, 0.028),
    (0.5724351039364803, 0.37),
    (1.6757623916493702e-4, 37.0),
    (2.5587235230643303e-3, 360.0),
)
_LOG_RANGE = 5.0  # receptors respond to 1e-5 .. 1e5 cd/m2


def absolute_light(picture: Tensor, color_encoding: str) -> Tensor:
    """Return the absolute light (cd/m2) of a coded picture ``(B, C, H, W)``; NaN counts as 1e-5."""
    picture = picture.masked_fill(picture.isnan(), 1e-5)
    if color_encoding == "luma-display":
        return 99 * picture.clamp(min=0) ** 2.2 + 1
    if color_encoding == "sRGB-display":
        return 99 * srgb_decode(picture) + 1
    if color_encoding == "XYZ":
        return torch.stack(_mix(picture, _XYZ_TO_RGB), dim=1)
    return picture


def surround(reference: Tensor, surround_l: float | Sequence[float]) -> Sequence[Tensor | float]:
    """Return the light around each channel of the reference ``(B, C, H, W)``: numbers, or ``(B, 1, 1)``."""
    if isinstance(surround_l, Sequence):
        return surround_l
    if surround_l == -1:
        geometric_mean = reference.log().mean((-2, -1), keepdim=True).exp()
        return geometric_mean.unbind(1)
    return [surround_l] * reference.shape[1]


def scatter(light: Tensor, around: Tensor | float, pixels_per_degree: float) -> Tensor:
    """Blur light ``(B, H, W)``, surrounded by ``around``, as glare in the eye does."""
    height, width = light.shape[-2:]
    mtf = _glare_mtf(height, width, pixels_per_degree, light.dtype, light.device)
    # The gain is 1 at frequency 0, so the surround passes unchanged: only the difference must be filtered.
    return (filter_doubled(light - around, mtf) + around).clamp(1e-5, 1e10)


def filter_doubled(maps: Tensor, gain: Tensor) -> Tensor:
    """Filter maps ``(..., H, W)`` by a gain ``(..., 2H, W + 1)`` of :func:`frequencies_doubled`.

    The maps are padded with zeros at the bottom and on the right to twice their size, and cropped afterwards.
    """
    height, width = maps.shape[-2:]

    def filter_columns(spectrum: Tensor, gain: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(spectrum, n=2 * height, dim=-2) * gain, dim=-2)[..., :height, :]

    spectrum = in_strips(filter_columns, torch.fft.rfft(maps, n=2 * width), gain, dim=-1)
    return torch.fft.irfft(spectrum, n=2 * width)[..., :width]


def frequencies_doubled(
    height: int, width: int, pixels_per_degree: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the cycles per degree in the half spectrum ``(2H, W + 1)`` of maps padded to twice their size."""
    rows = torch.fft.fftfreq(2 * height, dtype=dtype, device=device)
    columns = torch.fft.rfftfreq(2 * width, dtype=dtype, device=device)
    return pixels_per_degree * torch.hypot(rows[:, None], columns)


@cached(2)
def _glare_mtf(height: int, width: int, pixels_per_degree: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    frequency = frequencies_doubled(height, width, pixels_per_degree, dtype, device)
    mtf = torch.zeros_like(frequency)
    for weight, slope in _GLARE:
        mtf += weight * torch.exp(-slope * frequency)
    return mtf.to(dtype.to_complex())  # complex, as a product of complex and real numbers would convert it every time


def respond(light: Sequence[Tensor], display: str | None, peak_sensitivity: float) -> tuple[Tensor, Tensor]:
    """Return the response of the receptors and the light they are adapted to, both ``(B, H, W)``.

    Args:
        light: the channels, ``(B, H, W)`` each, in cd/m2.
        display: the display that emits three channels, a key of DISPLAYS; None for one channel of daylight.
        peak_sensitivity: decimal logarithm of the highest sensitivity to contrast.
    """
    weights = tuple(zip(*(DISPLAYS[display] if display else _LUMINANCE), strict=True))
    cones, rods = _response_tables(peak_sensitivity, light[0].dtype, light[0].device)

    def receptors(*channels: Tensor) -> Tensor:
        long, medium, rod = _mix(channels, weights)
        return torch.stack(
            [_receptor_curve(cones, long) + _receptor_curve(cones, medium) + _receptor_curve(rods, rod), long + medium]
        )

    response, luminance = in_strips(receptors, *light)
    return response - response.mean((-2, -1), keepdim=True), luminance


def _mix(channels: Tensor | Sequence[Tensor], matrix: Sequence[Sequence[float]]) -> list[Tensor]:
    """Return one weighted sum of the channels for each row of ``matrix``."""
    parts = channels.unbind(1) if isinstance(channels, Tensor) else channels
    mixed = []
    for row in matrix:
        total = parts[0] * row[0]
        for part, weight in zip(parts[1:], row[1:], strict=True):
            total = total + part * weight
        mixed.append(total)
    return mixed


def _receptor_curve(table: Tensor, light: Tensor) -> Tensor:
    return interpolate(table, log_luminance(light), -_LOG_RANGE, _LOG_RANGE)


def log_luminance(light: Tensor) -> Tensor:
    """Return lg of light, clamped to the range of the receptors."""
    return light.clamp(10**-_LOG_RANGE, 10**_LOG_RANGE).log10()


@cached(8)
def _response_tables(peak_sensitivity: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the responses of cones and rods ``(2, 2048)`` in just noticeable differences, over lg of the light."""
    log_light = np.linspace(-_LOG_RANGE, _LOG_RANGE, 2048)
    light = 10**log_light
    joint = 30.162 * ((4.0627 / light) ** 1.6596 + 1) ** -0.2712
    distance = np.abs(np.log10(light / 1.1732))
    above = np.exp(-(distance**2.9899) / 0.5547)
    below = np.exp(-(distance**1.2167) / 1.1478)
    rods = 10**1.1414 * np.where(light > 1.1732, above, below)
    cones = 0.5 * np.interp(np.minimum(2 * light, 1e5), light, np.maximum(joint - rods, 1e-3))
    sensitivity = np.stack([cones, rods]) * math.log(10)
    steps = (sensitivity[:, 1:] + sensitivity[:, :-1]) / 2 * np.diff(log_light)
    responses = np.pad(np.cumsum(steps, axis=1), ((0, 0), (1, 0))) * (0.006894596 * 10**peak_sensitivity)
    return torch.from_numpy(responses).to(device, dtype)
