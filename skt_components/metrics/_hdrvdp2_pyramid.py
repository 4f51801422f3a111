"""The steerable pyramid of HDR-VDP-2: four orientations, mirrored borders, filtered by FFT."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.metrics import _hdrvdp2_filters as filters
from skt_components.metrics._hdrvdp2_numerics import cached

_BORDER = 8  # the radius of the largest filter
_FILTERS = {
    "ends": (filters.HIGHPASS_0, filters.LOWPASS_0),
    "level": (*filters.BANDS, filters.LOWPASS),
}
MIN_SIDE = _BORDER + 1  # a border of 8 can be mirrored from nine samples


def pyramid_height(height: int, width: int) -> int:
    """Return how many levels a picture gets: halved by floor while its shorter side is at least 17."""
    # The levels themselves have ceil(side / 2) samples; the calibrated metric counts with floor nevertheless.
    return (min(height, width) // 17).bit_length()


def build_pyramid(maps: Tensor) -> list[Tensor]:
    """Return the bands of maps ``(B, H, W)``, fine to coarse: high pass, four orientations per level, base.

    Each is ``(B, orientations, h, w)``; h and w halve (rounded up) from level to level.
    """
    high, low = _correlate(maps[:, None], "ends").split(1, dim=1)
    bands = [high]
    for _ in range(pyramid_height(*maps.shape[-2:])):
        oriented, low = _correlate(low, "level").split((4, 1), dim=1)
        bands.append(oriented)
        low = low[..., ::2, ::2]
    return [*bands, low]


def rebuild(bands: list[Tensor]) -> Tensor:
    """Return maps ``(B, H, W)`` from bands as :func:`build_pyramid` makes them."""
    high, *levels, low = bands
    for oriented in reversed(levels):
        spread = low.new_zeros(low.shape[:2] + oriented.shape[-2:])
        spread[..., ::2, ::2] = low
        low = _convolve_and_add(torch.cat([oriented, spread], dim=1), "level")
    return _convolve_and_add(torch.cat([high, low], dim=1), "ends")[:, 0]


def _correlate(maps: Tensor, kind: str) -> Tensor:
    """Correlate maps ``(B, 1, h, w)`` with every filter of ``kind``: ``(B, filters, h, w)``."""
    spectrum, size = _mirrored_spectrum(maps)
    responses = _responses(kind, *size, maps.dtype, maps.device)
    return torch.cat([_inverse(spectrum * response, size, maps) for response in responses], dim=1)


def _convolve_and_add(maps: Tensor, kind: str) -> Tensor:
    """Convolve each of maps ``(B, filters, h, w)`` with its own filter of ``kind`` and add: ``(B, 1, h, w)``."""
    total: Tensor | float = 0.0
    for i, part in enumerate(maps.split(1, dim=1)):
        spectrum, size = _mirrored_spectrum(part)
        total = total + spectrum * _responses(kind, *size, maps.dtype, maps.device)[i].conj()
    assert isinstance(total, Tensor)
    return _inverse(total, size, maps)


def _mirrored_spectrum(maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the spectrum of maps whose border is mirrored without its edge sample, and its size."""
    padded = F.pad(maps, (_BORDER,) * 4, mode="reflect")
    height, width = (_fast_length(side) for side in padded.shape[-2:])
    return torch.fft.rfft2(padded, s=(height, width)), (height, width)


def _inverse(spectrum: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return torch.fft.irfft2(spectrum, s=size)[..., _BORDER : _BORDER + height, _BORDER : _BORDER + width]


def _fast_length(length: int) -> int:
    """Return the next length without prime factors above 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


@cached(32)
def _responses(kind: str, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the frequency responses ``(filters, height, width // 2 + 1)`` of the filters of ``kind``."""
    return torch.stack([_response(kernel, height, width, device) for kernel in _FILTERS[kind]]).to(dtype.to_complex())


def _response(kernel: np.ndarray, height: int, width: int, device: torch.device) -> Tensor:
    offsets = torch.arange(len(kernel), dtype=torch.float64, device=device) - len(kernel) // 2
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64, device=device)
    row_waves, column_waves = (torch.exp(2j * torch.pi * torch.outer(f, offsets)) for f in (rows, columns))
    weights = torch.from_numpy(kernel.copy()).to(device, torch.complex128)
    return row_waves @ weights @ column_waves.mT
