"""Regions from a bank's own feature maps: batched k-means on features, colour and position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from skt_components.banks.regions import grid_centres, lowest, region_sums, with_position
from skt_components.ops.checks import check_count, check_positive, check_tensor

# Coordinates are whole numbers of 1/4096: products and sums of such numbers are exact in float64, so labels
# depend neither on the order of summation, nor on the rest of the batch, nor on the device.
_LEVELS = 4096.0
_FLAT = 1e-6  # a channel whose deviation is below this share of its size says nothing


@dataclass(frozen=True)
class FeatureKMeans:
    """Cut each picture into regions by k-means on a bank's features, with colour and position beside them.

    Each channel is standardised over its picture and the features are divided by ``sqrt(C)``, so that two places
    that have nothing in common are about sqrt(2) apart, whatever the network. Centres start on a regular grid and
    are fitted at the resolution of the feature map. Then the distances in features are brought to full
    resolution bilinearly, those in colour and position are added pixel by pixel, and each pixel takes the nearest
    centre. No randomness, no weights beside the bank's; ties go to the lower index, a region that runs empty
    keeps its centre and may stay empty, and a picture's labels do not depend on the rest of the batch.

    The regions are places that look alike *to the network*: on photographs an eye, a muzzle, the rim of a cup, a
    helmet, where colour regions follow stripes and highlights. They are still no segmentation: nothing knows what an
    object is, a large object or a plain background falls into parts, equal things at two places may share a region,
    and where colours hardly differ a border is as coarse as the map. The defaults were chosen by eye on photographs
    with ``tf_efficientnet_lite0``; finer maps than the coarsest give scattered edges and textures.

    Args:
        num_regions: K, regions per picture, at least 1.
        iterations: rounds of assignment and update, at least 1.
        level: which of the bank's maps, from 0, the coarsest.
        position_weight: weight of the position, in units of the picture's longer side; 0 leaves it out.
        color_weight: weight of the colour in [0, 1]; 0 leaves it out.

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
        check_count("num_regions", self.num_regions, 1)
        check_count("iterations", self.iterations, 1)
        check_count("level", self.level, 0)
        for name in ("position_weight", "color_weight"):
            if getattr(self, name) != 0:
                check_positive(name, getattr(self, name))

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Label every pixel.

        Args:
            images: ``(B, 3, H, W)``, RGB; values are clamped to [0, 1].
            features: the bank's maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, coarse to fine; strides are
                powers of two.

        Returns:
            int64 labels ``(B, H, W)`` in [0, ``num_regions``).

        Raises:
            TypeError: if ``images`` or the map is not a floating-point tensor.
            ValueError: if there are no features, none of that ``level``, or shapes do not fit.
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        level = self._level_of(features, images)
        height, width = images.shape[-2:]
        stride = _stride(images, level)
        rows, cols = level.shape[-2] * stride, level.shape[-1] * stride
        colors = F.pad(images.float().clamp(0, 1), (0, cols - width, 0, rows - height), mode="replicate")
        colors = colors * self.color_weight
        known = _standardize(level)
        maps = torch.cat([known, F.avg_pool2d(colors, stride).double()], dim=1)
        centres = _whole(grid_centres(maps, self.num_regions, self.position_weight).double())
        points = _whole(with_position(maps, self.position_weight))
        for _ in range(self.iterations):
            labels = lowest(_distances(points, centres)).flatten(1)
            centres = _update(points, labels, centres)
        split = known.shape[1]
        distance = _distances(points[:, :split], centres[..., :split]).view(len(images), -1, *level.shape[-2:])
        distance = F.interpolate(distance, size=(rows, cols), mode="bilinear", align_corners=False)
        fine = _distances(_whole(with_position(colors.double(), self.position_weight)), centres[..., split:])
        return lowest(distance + fine.view_as(distance))[..., :height, :width].contiguous()

    def _level_of(self, features: Sequence[Tensor] | None, images: Tensor) -> Tensor:
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


def _stride(images: Tensor, features: Tensor) -> int:
    """Return s, the power of two for which the map is ``ceil(H / s)`` by ``ceil(W / s)``."""
    ratio = max(images.shape[-2] / features.shape[-2], images.shape[-1] / features.shape[-1])
    return 2 ** math.ceil(math.log2(ratio))


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


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return ``(B, K, N)``: squared distances, less the square of the point, which all centres share."""
    return centres.square().sum(dim=-1, keepdim=True) - 2 * (centres @ points)


def _update(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Return the mean of each region's points as whole numbers; a region without points keeps its centre."""
    total, count = region_sums(points, labels, centres.shape[1])
    mean = (total / count.clamp_min(1)).round()
    return torch.where(count > 0, mean, centres)
