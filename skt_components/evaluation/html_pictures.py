"""What a report in HTML draws: pictures as data URLs, colour scales, the worst places, histograms."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 64
# Anchors of matplotlib's inferno and viridis, evenly spaced.
INFERNO = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"]
VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
REGIONS = ["4e79a7", "f28e2b", "59a14f", "b07aa1"]


def shrink(picture: Tensor, width: int) -> Tensor:
    """Return ``(C, H, W)`` at most ``width`` wide, each pixel the mean of what it covers."""
    height, full = picture.shape[-2:]
    if full <= width:
        return picture
    return F.interpolate(picture[None], (max(round(height * width / full), 1), width), mode="area")[0]


def jpeg_url(picture: Tensor) -> str:
    """Return ``(3, h, w)`` in [0, 1] as a data URL, for the eye."""
    bytes_ = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return _url(bytes_, "jpeg", quality=88, subsampling=0)


def radiance_url(picture: Tensor) -> str:
    """Return linear ``(3, h, w)`` as a PNG of twice the height: above the mantissas, below the common exponents.

    A pixel is ``mantissa / 256 * 2 ** (exponent - 128)``. Not as alpha, which browsers multiply colours by.
    """
    pixels = picture.clamp(0, 1e30).double().permute(1, 2, 0).numpy()
    exponents = np.frexp(pixels.max(-1, keepdims=True))[1].clip(-127, 127)
    mantissas = np.rint(np.ldexp(pixels, 8 - exponents)).clip(0, 255)
    stacked = np.concatenate([mantissas, np.broadcast_to(exponents + 128, pixels.shape)])
    return _url(stacked.astype(np.uint8), "png", optimize=True)


def _url(pixels: np.ndarray, kind: str, **options: int) -> str:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('the report needs Pillow: pip install "skt-components[data]"') from error
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def paint(values: Tensor, colors: Sequence[str]) -> Tensor:
    """Return ``(h, w)`` in [0, 1] as ``(3, h, w)`` on a scale between evenly spaced colours."""
    anchors = torch.tensor([list(bytes.fromhex(color)) for color in colors], dtype=values.dtype) / 255
    place = values.nan_to_num().clamp(0, 1) * (len(colors) - 1)
    below = place.floor().long().clamp(max=len(colors) - 2)
    share = (place - below)[..., None]
    return (anchors[below] * (1 - share) + anchors[below + 1] * share).permute(2, 0, 1)


def worst_places(error: Tensor, side: int, count: int) -> list[tuple[int, int]]:
    """Return top and left of the squares with the largest mean error that do not overlap, the worst first."""
    step = max(side // 4, 1)
    means = F.avg_pool2d(error[None, None], side, step)[0, 0].clone()
    reach = -(-side // step) - 1
    places = []
    for _ in range(count):
        row, column = divmod(int(means.argmax()), means.shape[1])
        if not math.isfinite(means[row, column]):
            break  # all the rest overlaps
        places.append((row * step, column * step))
        means[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = -math.inf
    return places


def histogram_svg(target: Tensor, results: Mapping[str, Tensor], label: str) -> str:
    """Return histograms of values in [0, 1] as SVG: the target's filled, the results' as lines; square-root scale."""
    target_heights, *heights = (_heights(values) for values in (target, *results.values()))
    top = max(float(h.max()) for h in (target_heights, *heights)) or 1.0
    lines = [_points(h / top) for h in heights]
    body = f'<polygon class="target" points="0,100 {_points(target_heights / top)} 200,100"/>'
    body += "".join(f'<polyline class="model{i + 1}" points="{points}"/>' for i, points in enumerate(lines))
    label = html.escape(label, quote=True)
    return f'<svg viewBox="0 0 200 100" preserveAspectRatio="none" role="img" aria-label="{label}">{body}</svg>'


def _heights(values: Tensor) -> np.ndarray:
    counts = np.histogram(values.clamp(0, 1).numpy(), BINS, (0, 1))[0]
    return np.sqrt(counts / max(counts.sum(), 1))


def _points(heights: np.ndarray) -> str:
    places = (np.arange(BINS) + 0.5) * 200 / BINS
    return " ".join(f"{x:.1f},{100 - 97 * y:.1f}" for x, y in zip(places, heights, strict=True))
