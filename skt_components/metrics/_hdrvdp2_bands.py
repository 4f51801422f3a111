"""HDR-VDP-2, from bands to visible differences: neural contrast sensitivity, masking, and the quality Q."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.metrics._hdrvdp2_numerics import cached, in_strips, interpolate, power, recomputed, resize
from skt_components.metrics._hdrvdp2_optics import filter_doubled, frequencies_doubled, log_luminance

# Parameters p1 .. p4 of the contrast sensitivity, one row for each adapting luminance (cd/m2).
_CSF_LUMINANCE = (0.002, 0.02, 0.2, 2.0, 20.0, 150.0)
_CSF = (
    (0.991265, 3.74038, 0.50722, 4.46044),
    (0.800889, 3.54104, 0.682505, 4.94958),
    (0.476505, 4.37453, 0.750315, 5.28678),
    (0.405782, 4.40602, 0.935314, 5.61425),
    (0.334278, 3.79542, 1.07327, 6.4635),
    (0.394533, 2.7755, 1.16577, 7.45665),
)
_EXCITATION = 10**0.544068
_MASKING = 10**0.49576
_SELF, _ORIENTATIONS, _NEIGHBORS = 10**0.189065, 10**0.449199, 10**1.52512
_PSYCHOMETRIC = 3.5 / _EXCITATION
# Weight of a band in Q, linear in its frequency (cycles per degree) between these.
_QUALITY_FREQUENCY = (0.1172, 0.2344, 0.4688, 0.9375, 1.875, 3.75, 7.5, 15.0, 30.0, 60.0)
_QUALITY_WEIGHT = (0.0, 0.0, 0.0003, 0.0003, 0.0398, 0.2690, 0.2142, 0.2832, 0.2832, 0.0)
_FLOOR = 1e-12


def band_frequencies(count: int, pixels_per_degree: float) -> list[float]:
    """Return the peak frequency of each band in cycles per degree, fine to coarse."""
    return [pixels_per_degree / 2 / 2**i for i in range(count)]


def filter_base(
    reference: Tensor, difference: Tensor, luminance: tuple[Tensor, Tensor], pixels_per_degree: float
) -> tuple[Tensor, Tensor]:
    """Apply the contrast sensitivity to the base bands.

    Args:
        reference: base band of the reference, ``(B, 1, h, w)``.
        difference: base band of the test picture less that of the reference.
        luminance: mean adapting luminance of the test picture and of the reference, ``(B,)`` each.
        pixels_per_degree: sampling of the base band.

    Returns:
        The filtered base of the reference and the filtered base's difference.
    """
    height, width = reference.shape[-2:]
    frequency = frequencies_doubled(height, width, pixels_per_degree, reference.dtype, reference.device)
    gain_test, gain_reference = (
        _contrast_sensitivity(frequency, log_luminance(mean)[:, None, None, None]) for mean in luminance
    )
    # Both are surrounded by the reference's mean; a constant has no contrast, so it can be left out.
    reference = reference - reference.mean((-2, -1), keepdim=True)
    # Written so that the difference of equal pictures stays exactly 0.
    changed = filter_doubled(difference, gain_test) + filter_doubled(reference, gain_test - gain_reference)
    return filter_doubled(reference, gain_reference), changed


def _contrast_sensitivity(frequency: Tensor, log_luminance: Tensor) -> Tensor:
    """Return the contrast sensitivity at ``frequency`` (cycles per degree), adapted to 10^log_luminance; 0 at 0."""
    p1, p2, p3, p4 = _csf_parameters(log_luminance)
    constant = frequency == 0
    frequency = frequency.masked_fill(constant, 1.0)
    low_cut = -torch.expm1(-((frequency / 7) ** 2))
    sensitivity = p4 * torch.sqrt(low_cut**p3 / (1 + (p1 * frequency) ** p2))
    return sensitivity.masked_fill(constant, 0.0)


def _csf_parameters(log_luminance: Tensor) -> list[Tensor]:
    """Interpolate the rows of the table, which are not spaced evenly."""
    knots = (math.log10(luminance) for luminance in _CSF_LUMINANCE)
    steps = [((log_luminance - low) / (high - low)).clamp(0, 1) for low, high in pairwise(knots)]
    parameters = []
    for column in zip(*_CSF, strict=True):
        value = torch.full_like(log_luminance, column[0])
        for step, (low, high) in zip(steps, pairwise(column), strict=True):
            value = value + step * (high - low)
        parameters.append(value)
    return parameters


@cached(32)
def _sensitivity_tables(frequencies: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the contrast sensitivity ``(frequencies, 256)`` over lg of the luminance in [-5, 5]."""
    log_luminance = torch.linspace(-5, 5, 256, dtype=torch.float64)
    rows = [_contrast_sensitivity(torch.tensor(f, dtype=torch.float64), log_luminance) for f in frequencies]
    return torch.stack(rows).to(device, dtype)


def mutual_structure(reference: list[Tensor], difference: list[Tensor]) -> list[Tensor]:
    """Return the structure that both pictures have, band by band, averaged over 3x3 pixels."""

    def shared(reference: Tensor, difference: Tensor) -> Tensor:
        return torch.minimum((reference + difference).abs(), reference.abs())

    # Beyond the border there is no structure, yet it counts in the mean.
    pairs = zip(reference, difference, strict=True)
    return [F.avg_pool2d(in_strips(shared, *pair), 3, stride=1, padding=1) for pair in pairs]


def visible_differences(
    difference: list[Tensor], mutual: list[Tensor] | None, log_luminance: Tensor, pixels_per_degree: float
) -> list[Tensor]:
    """Return how visible the difference is in each band, signed, in units of the detection threshold.

    Args:
        difference: bands of the difference, fine to coarse, ``(B, orientations, h, w)`` each.
        mutual: structure that hides the difference, same shapes; None for no masking.
        log_luminance: lg of the luminance that the eye is adapted to, ``(B, 1, H, W)``.
        pixels_per_degree: sampling of the finest band.
    """
    frequencies = tuple(band_frequencies(len(difference), pixels_per_degree))
    tables = _sensitivity_tables(frequencies, log_luminance.dtype, log_luminance.device)
    visible = []
    for i, band in enumerate(difference):
        if i < len(difference) - 1:
            sensitivity = interpolate(tables[i], resize(log_luminance, band.shape[-2:]), -5.0, 5.0)
        else:  # filter_base applied the base's contrast sensitivity
            sensitivity = torch.ones_like(band)
        around = [mutual[i], *recomputed(partial(_neighbors, i), *mutual)] if mutual else []
        visible.append(in_strips(partial(_detect, 2.0**i), band, sensitivity, *around))
    return visible


def _detect(gain: float, difference: Tensor, sensitivity: Tensor, *structure: Tensor) -> Tensor:
    """Return the difference in units of the threshold, which ``structure`` in the band and in its neighbors raises."""
    threshold = power(sensitivity, _EXCITATION)
    visible = difference.sign() * power(difference.abs() / gain, _EXCITATION) * (gain * threshold)
    if not structure:
        return visible
    own, *around = structure
    local = own * (sensitivity / gain)
    mask = _SELF * power(local, _MASKING)
    if own.shape[1] > 1:
        mask = mask + _ORIENTATIONS * power((local.sum(1, keepdim=True) - local).clamp(min=0), _MASKING)
    if around:
        mask = mask + _NEIGHBORS * power(around[0] * sensitivity, _MASKING)
    return visible / torch.sqrt(1 + (gain * mask * threshold) ** 2)


def _neighbors(i: int, *mutual: Tensor) -> list[Tensor]:
    """Return the sum of the structure in the bands next to band ``i``, at its size; empty without such bands."""
    own, gain = mutual[i], 2.0**i
    # The base hides nothing in the level above it; a band of one orientation uses the first of its neighbors.
    neighbors = [(i - 1, gain / 2)] * (i > 0) + [(i + 1, gain * 2)] * (i < len(mutual) - 2)
    parts = [resize(mutual[j][:, : own.shape[1]], own.shape[-2:]).clamp(min=0) / scale for j, scale in neighbors]
    return [sum(parts[1:], start=parts[0])] if parts else []


def perceived(visible: list[Tensor]) -> list[Tensor]:
    """Apply the psychometric slope to bands, before they are combined into a map."""

    def bend(gain: float, band: Tensor) -> Tensor:
        return band.sign() * power(band.abs() / gain, _PSYCHOMETRIC) * gain

    return [in_strips(partial(bend, 2.0**i), band) for i, band in enumerate(visible)]


def quality(visible: list[Tensor], changed: Tensor, pixels_per_degree: float) -> Tensor:
    """Return Q ``(B,)`` of visible differences, counted where the pictures ``changed`` ``(B, 1, H, W)``."""
    total = visible[0].new_zeros(len(changed))
    frequencies = band_frequencies(len(visible), pixels_per_degree)
    for band, weight in zip(visible, np.interp(frequencies, _QUALITY_FREQUENCY, _QUALITY_WEIGHT), strict=True):
        if weight:
            error = recomputed(_band_error, band, resize(changed, band.shape[-2:]))
            total = total + float(weight) * torch.log1p(error / _FLOOR).sum(1)
    return 100 - total


def _band_error(band: Tensor, changed: Tensor) -> Tensor:
    return torch.linalg.vector_norm(band * changed, dim=(-2, -1)) / changed[0, 0].numel()
