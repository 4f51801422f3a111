"""Feature pyramid over the semantic features p_f."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.ops.checks import check_count, check_sides


class FeaturePyramid(nn.Module):
    """Combine the levels of p_f, coarse to fine, at one width (before eq. 3).

    This is the usual top-down pyramid. Each level passes a 1x1 convolution. The coarser level is upsampled by nearest
    neighbor and added. A 3x3 convolution follows.

    Args:
        in_channels: channels of each level, coarse to fine.
        out_channels: channels of every output level.
        levels: indices of the levels to return; None: all. Layers that only other levels need are not made, so every
            parameter contributes to the output.

    Raises:
        TypeError: ``in_channels`` is not a sequence.
        ValueError: ``in_channels`` is empty, a width is not a whole number >= 1, or a level of ``levels`` does not
            exist.

    Example:
        >>> import torch
        >>> pyramid = FeaturePyramid([64, 32], 16)
        >>> [tuple(p.shape) for p in pyramid([torch.rand(1, 64, 4, 4), torch.rand(1, 32, 8, 8)])]
        [(1, 16, 4, 4), (1, 16, 8, 8)]

    Reference:
        T.-Y. Lin et al., "Feature pyramid networks for object detection", CVPR 2017.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(in_channels, Sequence) or isinstance(in_channels, str):
            raise TypeError(f"in_channels must be a sequence of widths, coarse to fine, got {in_channels!r}")
        if not in_channels:
            raise ValueError("in_channels must have the width of one level at least, got none")
        for width in in_channels:
            check_count("in_channels", width, 1)
        check_count("out_channels", out_channels, 1)
        count = len(in_channels)
        wanted = range(count) if levels is None else levels
        if not wanted or not all(-count <= level < count for level in wanted):
            raise ValueError(f"levels must be indices into {count} pyramid levels, got {list(wanted)}")
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.levels = tuple(level % count for level in wanted)
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels[: max(self.levels) + 1])
        self.smooth = nn.ModuleDict(
            {str(level): nn.Conv2d(out_channels, out_channels, 3, padding=1) for level in sorted(set(self.levels))}
        )

    def forward(self, features: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b c _h _w"]]:
        """Return one map for each of ``levels``, at the level's own size; ``features`` are all levels, coarse to fine.

        Raises ValueError unless the channels of all levels are ``in_channels``.
        """
        found = tuple(f.shape[1] for f in features)
        if found != self.in_channels:
            raise ValueError(f"features must have {self.in_channels} channels, coarse to fine, got {found}")
        for index, feature in enumerate(features):
            check_sides(f"features[{index}]", feature)
        levels: list[Tensor] = []
        for lateral, feature in zip(self.lateral, features, strict=False):
            level = lateral(feature)
            if levels:
                level = level + F.interpolate(levels[-1], size=level.shape[-2:], mode="nearest")
            levels.append(level)
        return [self.smooth[str(level)](levels[level]) for level in self.levels]
