"""Semantic priors guided reconstruction model, the teacher (eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from skt_components.modules.fusion import SemanticGuidedFusion
from skt_components.modules.pyramid import FeaturePyramid
from skt_components.ops._checks import check_tensor


class SPGRM(nn.Module):
    """Refine a tone-mapped picture under the guidance of semantic features: ``H_s^ = f_e(H_s, p_f)`` (eq. 3).

    A 3x3 convolution, three semantic guided fusion modules, a 3x3 convolution, and a residual on the input. The
    last convolution starts at zero, so that an untrained teacher returns the picture as it is.

    Args:
        prior_channels: channels of the semantic features, coarse to fine (a bank's ``channels``).
        channels: channels of the picture.
        features: width of the network and of its feature pyramid.
        make_fusion: makes the inner fusion module of a stage, ``(B, features, H, W)`` in and out; a dilated
            residual dense block when None. Pass the boosted network's ``make_fusion_module``.
        num_heads: heads of the prior fusion blocks.
        levels: pyramid level that guides each of the three stages; the finest, which has all levels in it, by
            default.

    Raises:
        ValueError: ``levels`` does not name three existing levels, or ``num_heads`` does not divide ``features``.

    Example:
        >>> import torch
        >>> teacher = SPGRM(prior_channels=[32, 16], features=8)
        >>> priors = [torch.rand(1, 32, 4, 4), torch.rand(1, 16, 8, 8)]
        >>> teacher(torch.rand(1, 3, 16, 16), priors).shape
        torch.Size([1, 3, 16, 16])
    """

    fusion_taps = ("stages.0", "stages.1", "stages.2")

    def __init__(
        self,
        prior_channels: Sequence[int],
        channels: int = 3,
        features: int = 64,
        make_fusion: Callable[[], nn.Module] | None = None,
        num_heads: int = 4,
        levels: Sequence[int] = (-1, -1, -1),
    ) -> None:
        super().__init__()
        count = len(prior_channels)
        if len(levels) != 3 or not all(-count <= level < count for level in levels):
            raise ValueError(f"levels must be three indices into {count} pyramid levels, got {tuple(levels)}")
        self.features, self.levels = features, tuple(level % count for level in levels)
        self.pyramid = FeaturePyramid(prior_channels, features, levels=sorted(set(self.levels)))
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.stages = nn.ModuleList(
            SemanticGuidedFusion(features, features, make_fusion() if make_fusion else None, num_heads) for _ in levels
        )
        self.tail = nn.Conv2d(features, channels, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, tonemapped: Float[Tensor, "b c h w"], features: Sequence[Float[Tensor, "b _c _h _w"]]
    ) -> Float[Tensor, "b c h w"]:
        """Return the refined picture, same shape and domain as ``tonemapped``; ``features`` run coarse to fine."""
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, C, H, W)", channels=self.head.in_channels)
        guides = dict(zip(self.pyramid.levels, self.pyramid(features), strict=True))
        x = self.head(tonemapped)
        for stage, level in zip(self.stages, self.levels, strict=True):
            x = stage(x, guides[level])
        return tonemapped + self.tail(x)
