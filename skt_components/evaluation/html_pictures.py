"""Pictures for an HTML report: data URLs, color scales, the worst places, histograms."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.files.packages import import_package

BINS = 64
# Anchors of matplotlib's inferno and viridis, evenly spaced.
INFERNO = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"]
VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
REGIONS = ["4e79a7", "f28e2b", "59a14f", "b07aa1"]


def shrink(picture: Tensor, width: int) -> Tensor:
    """Return ``(C, H, W)`` at most ``width`` wide and one and a half times as high, by averaging areas."""
    old_height, old_width = picture.shape[-2:]
    scale = min(width / old_width, 1.5 * width / old_height)
    if scale >= 1:
        return picture
    size = max(round(old_height * scale), 1), max(round(old_width * scale), 1)
    return F.interpolate(picture[None], size, mode="area")[0]


def jpeg_url(picture: Tensor) -> str:
    """Return ``(3, h, w)`` in [0, 1] as the data URL of a JPEG."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return _data_url(pixels, "jpeg", quality=88, subsampling=0)


def radiance_url(picture: Tensor) -> str:
    """Return linear ``(3, h, w)`` as the data URL of a PNG: mantissas in its upper half, exponents in its lower half.

    A pixel is ``mantissa / 256 * 2 ** (exponent - 128)``. The exponents are not stored as alpha, because browsers
    multiply colors by it.
    """
    pixels = picture.clamp(0, 1e30).double().permute(1, 2, 0).numpy()
    exponents = np.frexp(pixels.max(-1, keepdims=True))[1].clip(-127, 127)
    mantissas = np.rint(np.ldexp(pixels, 8 - exponents)).clip(0, 255)
    stacked = np.concatenate([mantissas, np.broadcast_to(exponents + 128, pixels.shape)])
    return _data_url(stacked.astype(np.uint8), "png", optimize=True)


def _data_url(pixels: np.ndarray, kind: str, **options: int) -> str:
    pillow = import_package("PIL.Image", "the report needs Pillow", "data")
    buffer = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def paint(values: Tensor, colors: Sequence[str]) -> Tensor:
    """Return ``(h, w)`` in [0, 1] as ``(3, h, w)`` on a scale between evenly spaced colors."""
    anchors = torch.tensor([list(bytes.fromhex(color)) for color in colors], dtype=values.dtype) / 255
    place = values.nan_to_num().clamp(0, 1) * (len(colors) - 1)
    below = place.floor().long().clamp(max=len(colors) - 2)
    share = (place - below)[..., None]
    return (anchors[below] * (1 - share) + anchors[below + 1] * share).permute(2, 0, 1)


def worst_places(error: Tensor, side: int, count: int) -> list[tuple[int, int]]:
    """Return (top, left) of squares that do not overlap and have the largest mean errors, the worst first."""
    step = max(side // 4, 1)
    means = F.avg_pool2d(error[None, None], side, step)[0, 0].clone()
    reach = -(-side // step) - 1
    places = []
    for _ in range(count):
        row, column = divmod(int(means.argmax()), means.shape[1])
        if not math.isfinite(means[row, column]):
            break  # all other squares overlap
        places.append((row * step, column * step))
        means[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = -math.inf
    return places


def histogram_points(pictures: Sequence[Tensor]) -> list[str]:
    """Return a histogram of each tensor of values in [0, 1] as points of an SVG line, 200 wide and 100 high.

    Heights are square roots of shares, on one scale for all tensors.
    """
    counts = [np.histogram(values.clamp(0, 1).numpy(), BINS, (0, 1))[0] for values in pictures]
    heights = [np.sqrt(count / max(count.sum(), 1)) for count in counts]
    top = max(float(height.max()) for height in heights) or 1.0
    places = (np.arange(BINS) + 0.5) * 200 / BINS
    return [
        " ".join(f"{x:.1f},{100 - 97 * y:.1f}" for x, y in zip(places, height / top, strict=True)) for height in heights
    ]
