"""Cut pictures into regions without a segmentation network: batched k-means and a plain grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from skt_components.ops.checks import check_count, check_non_negative, check_sides, check_tensor

# Coordinates are rounded to whole numbers of 1/4096 before they are summed: such sums are exact in float64, so labels
# depend neither on the order of summation nor on the rest of the batch.
_LEVELS = 4096.0
_FLAT = 1e-6  # a channel whose deviation is below this share of its size is treated as constant


@dataclass(frozen=True)
class ColorPositionKMeans:
    """Cut each picture into color regions by k-means on (R, G, B, x, y); no weights, no randomness.

    The centers start on a regular grid and are fitted to the picture, reduced to ``working_size``. Then every pixel
    gets the label of the nearest center. At equal distance the lower index is taken. A region without pixels keeps its
    center. The labels of a picture do not depend on the rest of the batch. An object with two colors becomes two
    regions. Two objects of one color may become one region.

    Args:
        num_regions: K, regions per picture, at least 1.
        iterations: rounds of assignment and update, at least 1.
        position_weight: weight of the position, in units of the picture's longer side, against color in [0, 1];
            0 clusters by color alone, large values approach a grid.
        working_size: the longer side in pixels at which centers are fitted.

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
        check_non_negative("position_weight", self.position_weight)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Return int64 labels in [0, ``num_regions``) of RGB pictures, clamped to [0, 1]; ``features`` are not used."""
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        check_sides("images", images)
        images = images.float().clamp(0, 1)
        height, width = images.shape[-2:]
        scale = min(1.0, self.working_size / max(height, width))
        small = F.adaptive_avg_pool2d(images, (max(1, round(height * scale)), max(1, round(width * scale))))
        points = _with_position(small, self.position_weight)
        centers = _grid_centers(small, self.num_regions, self.position_weight)
        for _ in range(self.iterations):
            total, count = _region_sums(_whole(points.double()), _nearest(points, centers), self.num_regions)
            mean = (total / (count.clamp_min(1) * _LEVELS)).float()
            centers = torch.where(count > 0, mean, centers)
        return _nearest(_with_position(images, self.position_weight), centers).view(-1, height, width)


@dataclass(frozen=True)
class FeatureKMeans:
    """Cut each picture into regions by k-means on a bank's features, color and position.

    Each channel is standardized over its picture, and the features are divided by ``sqrt(C)``. So two unrelated places
    have a distance of about sqrt(2) for every network. The centers start on a regular grid and are fitted at the
    resolution of the feature map. Then the feature distances are enlarged bilinearly, the distances in color and
    position are added per pixel, and each pixel gets the label of the nearest center. Equal distances and empty regions
    are handled as in :class:`ColorPositionKMeans`.

    A region has similar features *in the network* (an eye, the rim of a cup). It is not a segment: a large object or a
    plain background is cut into parts. The defaults were chosen by eye on photographs with ``tf_efficientnet_lite0``.
    With finer maps than the coarsest, regions are scattered along edges and textures.

    Args:
        num_regions: K, regions per picture, at least 1.
        iterations: rounds of assignment and update, at least 1.
        level: index of the feature map, from 0, the coarsest.
        position_weight: weight of the position, in units of the picture's longer side; 0: no position.
        color_weight: weight of the color in [0, 1]; 0: no color.

    Example:
        >>> regions = FeatureKMeans(num_regions=4)
        >>> features = [torch.rand(2, c, 64 // s, 64 // s) for c, s in zip((32, 16, 8, 4), (16, 8, 4, 2))]
        >>> regions(torch.rand(2, 3, 64, 64), features).shape
        torch.Size([2, 64, 64])
    """

    num_regions: int = 8
    iterations: int = 10
    level: int = 0
    position_weight: float = 1.0
    color_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, minimum in (("num_regions", 1), ("iterations", 1), ("level", 0)):
            check_count(name, getattr(self, name), minimum)
        check_non_negative("position_weight", self.position_weight)
        check_non_negative("color_weight", self.color_weight)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Return int64 labels in [0, ``num_regions``).

        Args:
            images: RGB; clamped to [0, 1].
            features: the bank's maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, coarse to fine; strides are
                powers of two.

        Raises:
            ValueError: if there are no features, none of that ``level``, or shapes do not fit.
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        check_sides("images", images)
        level = self._chosen(features, images)
        height, width = images.shape[-2:]
        # The stride is the power of two for which the map is ceil(H / s) by ceil(W / s).
        stride = 2 ** math.ceil(math.log2(max(height / level.shape[-2], width / level.shape[-1])))
        rows, cols = level.shape[-2] * stride, level.shape[-1] * stride
        colors = F.pad(images.float().clamp(0, 1), (0, cols - width, 0, rows - height), mode="replicate")
        colors = colors * self.color_weight
        known = _standardize(level)
        maps = torch.cat([known, F.avg_pool2d(colors, stride).double()], dim=1)
        centers = _whole(_grid_centers(maps, self.num_regions, self.position_weight).double())
        points = _whole(_with_position(maps, self.position_weight))
        for _ in range(self.iterations):
            labels = _lowest(_distances(points, centers)).flatten(1)
            total, count = _region_sums(points, labels, self.num_regions)
            centers = torch.where(count > 0, (total / count.clamp_min(1)).round(), centers)
        split = known.shape[1]
        distance = _distances(points[:, :split], centers[..., :split]).view(len(images), -1, *level.shape[-2:])
        distance = F.interpolate(distance, size=(rows, cols), mode="bilinear", align_corners=False)
        fine = _distances(_whole(_with_position(colors.double(), self.position_weight)), centers[..., split:])
        return _lowest(distance + fine.view_as(distance))[..., :height, :width].contiguous()

    def _chosen(self, features: Sequence[Tensor] | None, images: Tensor) -> Tensor:
        if features is None:
            raise ValueError("FeatureKMeans needs the feature maps of a bank: regions(images, features), got None")
        if len(features) <= self.level:
            raise ValueError(f"level must be below the number of feature maps, {len(features)}, got {self.level}")
        chosen = features[self.level]
        check_tensor(f"features[{self.level}]", chosen, ndim=4, layout="(B, C, h, w)")
        batch, _, height, width = images.shape
        if len(chosen) != batch or chosen.shape[-2] > height or chosen.shape[-1] > width or 0 in chosen.shape:
            raise ValueError(
                f"features[{self.level}] must be (B, C, ceil(H / s), ceil(W / s)) for pictures "
                f"{tuple(images.shape)}, got {tuple(chosen.shape)}"
            )
        return chosen


@dataclass(frozen=True)
class GridRegions:
    """Cut each picture into equal rectangles, for control experiments.

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
        """Number of rectangles."""
        return self.rows * self.cols

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Return int64 labels, counted row by row; ``features`` are not used."""
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        batch, _, height, width = images.shape
        row = torch.arange(height, device=images.device) * self.rows // height
        col = torch.arange(width, device=images.device) * self.cols // width
        return (row[:, None] * self.cols + col).expand(batch, height, width).contiguous()


def _with_position(maps: Tensor, weight: float) -> Tensor:
    """Return ``(B, C + 2, H*W)``: the maps, then y and x in units of the longer side times ``weight``."""
    batch, _, height, width = maps.shape
    scale = weight / max(height, width)
    y, x = ((torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5) * scale for n in (height, width))
    position = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(batch, 2, height, width)
    return torch.cat([maps, position], dim=1).flatten(2)


def _grid_centers(maps: Float[Tensor, "b c h w"], count: int, weight: float) -> Float[Tensor, "b {count} d"]:
    """Return ``(B, count, C + 2)``: mean channels and centers of ``count`` cells in nearly square rows."""
    height, width = maps.shape[-2:]
    rows = min(count, max(1, round(math.sqrt(count * height / width))))
    bounds = [count * r // rows for r in range(rows + 1)]
    cells = []
    for r in range(rows):
        # Rows may hold different numbers of cells, so that exactly ``count`` of them cover the picture.
        strip = maps[..., height * r // rows : max(height * (r + 1) // rows, height * r // rows + 1), :]
        cols = bounds[r + 1] - bounds[r]
        means = F.adaptive_avg_pool2d(strip, (1, cols))[:, :, 0]
        y = means.new_full((cols,), (r + 0.5) / rows * height)
        x = (torch.arange(cols, device=maps.device) + 0.5) * (width / cols)
        position = torch.stack([y, x]) * (weight / max(height, width))
        cells.append(torch.cat([means, position.expand(len(maps), 2, cols)], dim=1))
    return torch.cat(cells, dim=2).transpose(1, 2)


def _standardize(features: Tensor) -> Tensor:
    """Return float64 maps of mean 0 and deviation ``1 / sqrt(C)`` per picture and channel; 0 where constant."""
    features = features.double()
    mean = features.mean(dim=(-2, -1), keepdim=True)
    deviation = (features - mean).square().mean(dim=(-2, -1), keepdim=True).sqrt()
    flat = deviation <= _FLAT * features.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, deviation))
    return (features - mean) * scale / math.sqrt(features.shape[1])


def _whole(x: Tensor) -> Tensor:
    return (x * _LEVELS).round()


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Return the index ``(B, N)`` of the nearest of ``centers`` ``(B, K, D)`` to ``points`` ``(B, D, N)``."""
    # Written out per axis and not as a matrix product, whose rounding could change with the batch size.
    distance = (points[:, None, 0] - centers[:, :, 0, None]).square()
    for d in range(1, points.shape[1]):
        offset = points[:, None, d] - centers[:, :, d, None]
        distance.addcmul_(offset, offset)
    return _lowest(distance)


def _distances(points: Tensor, centers: Tensor) -> Tensor:
    """Return ``(B, K, N)``: squared distances, less the square of the point, which all centers share."""
    return centers.square().sum(dim=-1, keepdim=True) - 2 * (centers @ points)


def _lowest(distance: Tensor) -> Tensor:
    """Return the lowest index along axis 1 at the minimum; the last one for NaN."""
    # The result of argmin, whose CPU kernel for an inner axis takes six times as long.
    last = distance.shape[1] - 1
    index = torch.arange(last + 1, device=distance.device, dtype=torch.int32).view(1, -1, *[1] * (distance.ndim - 2))
    return torch.where(distance <= distance.amin(dim=1, keepdim=True), index, last).amin(dim=1).long()


def _region_sums(points: Tensor, labels: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """Return the sum ``(B, K, D)`` of each region's whole-number ``points`` ``(B, D, N)`` and their number."""
    index = torch.arange(regions, device=points.device)
    member = (labels[:, None] == index[None, :, None]).to(points.dtype)
    return member @ points.transpose(1, 2), member.sum(dim=-1, keepdim=True)
