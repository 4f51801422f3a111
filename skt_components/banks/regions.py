"""Regions without a segmentation network: batched k-means on colour and position, and a plain grid.

These are colour regions, NOT semantic ones: one object of two colours becomes two regions, and two objects
of one colour may become one. They need no weights and run on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from skt_components.ops.checks import check_count, check_positive, check_tensor

_LEVELS = 4096.0  # coordinates are rounded to 1/4096 before they are summed, see _update_centres


@dataclass(frozen=True)
class ColorPositionKMeans:
    """Cut each picture into colour regions by k-means on (R, G, B, x, y); no weights, no randomness.

    Centres are fitted on the picture reduced to ``working_size`` and then every pixel of the full picture takes
    the nearest one. Centres start on a regular grid, ties go to the lower index, a region that runs empty
    keeps its centre and may stay empty, and a picture's labels do not depend on the rest of the batch.

    These are colour regions, not semantic ones. Use a segmentation network where one is at hand.

    Args:
        num_regions: K, regions per picture, at least 1.
        iterations: rounds of assignment and update, at least 1.
        position_weight: weight of the position, in units of the picture's longer side, against colour in
            [0, 1]; 0 clusters by colour alone, large values approach a grid.
        working_size: the longer side in pixels at which centres are fitted.

    Example:
        >>> labels = ColorPositionKMeans(num_regions=4)(torch.rand(2, 3, 33, 48))
        >>> labels.shape, labels.dtype
        (torch.Size([2, 33, 48]), torch.int64)
    """

    num_regions: int = 8
    iterations: int = 10
    position_weight: float = 0.5
    working_size: int = 64

    def __post_init__(self) -> None:
        for name in ("num_regions", "iterations", "working_size"):
            check_count(name, getattr(self, name), 1)
        if self.position_weight != 0:
            check_positive("position_weight", self.position_weight)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Label every pixel.

        Args:
            images: ``(B, 3, H, W)``, RGB; values are clamped to [0, 1].
            features: a bank's maps; not looked at.

        Returns:
            int64 labels ``(B, H, W)`` in [0, ``num_regions``).

        Raises:
            TypeError: if ``images`` is not a floating-point tensor.
            ValueError: if its shape is not ``(B, 3, H, W)``.
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        images = images.float().clamp(0, 1)
        height, width = images.shape[-2:]
        small = F.adaptive_avg_pool2d(images, _fit_within(height, width, self.working_size))
        points = with_position(small, self.position_weight)
        centres = grid_centres(small, self.num_regions, self.position_weight)
        for _ in range(self.iterations):
            centres = _update_centres(points, _nearest(points, centres), centres)
        return _nearest(with_position(images, self.position_weight), centres).view(-1, height, width)


@dataclass(frozen=True)
class GridRegions:
    """Cut each picture into equal rectangles: a control that knows nothing about the picture.

    Args:
        rows: rectangles along the height.
        cols: rectangles along the width.

    Example:
        >>> GridRegions(2, 2)(torch.zeros(1, 3, 4, 4))[0].tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    """

    rows: int = 4
    cols: int = 4

    def __post_init__(self) -> None:
        check_count("rows", self.rows, 1)
        check_count("cols", self.cols, 1)

    @property
    def num_regions(self) -> int:
        """How many rectangles there are."""
        return self.rows * self.cols

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Label every pixel of ``images`` ``(B, 3, H, W)``, row by row; int64 ``(B, H, W)``; no features needed."""
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        batch, _, height, width = images.shape
        row = torch.arange(height, device=images.device) * self.rows // height
        col = torch.arange(width, device=images.device) * self.cols // width
        return (row[:, None] * self.cols + col).expand(batch, height, width).contiguous()


def _fit_within(height: int, width: int, size: int) -> tuple[int, int]:
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def with_position(maps: Tensor, weight: float) -> Tensor:
    """Return ``(B, C + 2, H*W)``: the maps, then y and x in units of the longer side times ``weight``."""
    batch, _, height, width = maps.shape
    scale = weight / max(height, width)
    y, x = ((torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5) * scale for n in (height, width))
    position = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(batch, 2, height, width)
    return torch.cat([maps, position], dim=1).flatten(2)


def grid_centres(images: Float[Tensor, "b c h w"], count: int, weight: float) -> Float[Tensor, "b {count} d"]:
    """Return ``(B, count, C + 2)``: mean channels and middles of ``count`` cells in nearly square rows.

    Args:
        images: ``(B, C, H, W)``, colours or any other maps.
        count: how many cells cover the picture.
        weight: what the positions y and x, in units of the longer side, are multiplied by.
    """
    height, width = images.shape[-2:]
    rows = min(count, max(1, round(math.sqrt(count * height / width))))
    bounds = [count * r // rows for r in range(rows + 1)]
    cells = []
    for r in range(rows):
        # Rows may hold different numbers of cells, so that exactly ``count`` of them cover the picture.
        strip = images[..., height * r // rows : max(height * (r + 1) // rows, height * r // rows + 1), :]
        cols = bounds[r + 1] - bounds[r]
        colour = F.adaptive_avg_pool2d(strip, (1, cols))[:, :, 0]
        y = colour.new_full((cols,), (r + 0.5) / rows * height)
        x = (torch.arange(cols, device=images.device) + 0.5) * (width / cols)
        position = torch.stack([y, x]) * (weight / max(height, width))
        cells.append(torch.cat([colour, position.expand(len(images), 2, cols)], dim=1))
    return torch.cat(cells, dim=2).transpose(1, 2)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index ``(B, N)`` of the nearest of ``centres`` ``(B, K, D)`` to ``points`` ``(B, D, N)``."""
    # Written out per axis and not as a matrix product, whose rounding could change with the batch size.
    distance = (points[:, None, 0] - centres[:, :, 0, None]).square()
    for d in range(1, points.shape[1]):
        offset = points[:, None, d] - centres[:, :, d, None]
        distance.addcmul_(offset, offset)
    return lowest(distance)


def lowest(distance: Tensor) -> Tensor:
    """Return the lowest index along axis 1 at the minimum; the last one for what is not a number."""
    # As argmin gives, whose CPU kernel for an inner axis takes six times as long.
    last = distance.shape[1] - 1
    index = torch.arange(last + 1, device=distance.device, dtype=torch.int32).view(1, -1, *[1] * (distance.ndim - 2))
    return torch.where(distance <= distance.amin(dim=1, keepdim=True), index, last).amin(dim=1).long()


def _update_centres(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Return the mean of each region's points; a region without points keeps its centre."""
    total, count = region_sums((points.double() * _LEVELS).round(), labels, centres.shape[1])
    mean = (total / (count.clamp_min(1) * _LEVELS)).float()
    return torch.where(count > 0, mean, centres)


def region_sums(points: Tensor, labels: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """Return the sum ``(B, K, D)`` of each region's float64 ``points`` ``(B, D, N)``, and their number ``(B, K, 1)``.

    Sums of whole numbers below 2**53 are exact in float64: the same in any order and for any batch size.
    """
    index = torch.arange(regions, device=points.device)
    member = (labels[:, None] == index[None, :, None]).to(points.dtype)
    return member @ points.transpose(1, 2), member.sum(dim=-1, keepdim=True)
