"""Feature pyramid over the semantic features p_f."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Let the levels of p_f interact, coarse to fine, and bring them to one width (before eq. 3).

    The usual top-down pyramid: a 1x1 convolution per level, each level added to the coarser one upsampled by
    nearest neighbour, then a 3x3 convolution.

    Args:
        in_channels: channels of each level, coarse to fine.
        out_channels: channels of every output level.

    Raises:
        ValueError: ``in_channels`` is empty or a width is below 1.

    Example:
        >>> import torch
        >>> pyramid = FeaturePyramid([64, 32], 16)
        >>> [tuple(p.shape) for p in pyramid([torch.rand(1, 64, 4, 4), torch.rand(1, 32, 8, 8)])]
        [(1, 16, 4, 4), (1, 16, 8, 8)]

    Reference:
        T.-Y. Lin et al., "Feature pyramid networks for object detection", CVPR 2017.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        if not in_channels or min(*in_channels, out_channels) < 1:
            raise ValueError(f"in_channels and out_channels must be >= 1, got {list(in_channels)}, {out_channels}")
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)

    def forward(self, features: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b c _h _w"]]:
        """Return one map per level, coarse to fine, each at its own size.

        Raises ValueError when the number of levels or a level's channels are not those of the constructor.
        """
        found = tuple(f.shape[1] for f in features)
        if found != self.in_channels:
            raise ValueError(f"features must have {self.in_channels} channels, coarse to fine, got {found}")
        levels: list[Tensor] = []
        for lateral, feature in zip(self.lateral, features, strict=True):
            level = lateral(feature)
            if levels:
                level = level + F.interpolate(levels[-1], size=level.shape[-2:], mode="nearest")
            levels.append(level)
        return [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
