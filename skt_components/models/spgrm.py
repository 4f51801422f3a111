"""Semantic priors guided reconstruction model, the teacher (eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.models.network import run_block
from skt_components.modules.fusion import DilatedResidualDenseBlock, SemanticGuidedFusion
from skt_components.modules.pyramid import FeaturePyramid
from skt_components.ops.checks import check_batch, check_count, check_sides, check_tensor


class SPGRM(nn.Module):
    """Refine a tone-mapped picture under the guidance of semantic features: ``H_s^ = f_e(H_s, p_f)`` (eq. 3).

    A 3x3 convolution, three semantic guided fusion modules, a 3x3 convolution, and a residual on the input. The
    last convolution starts at zero, so that an untrained teacher returns its input.

    Args:
        prior_channels: channels of the semantic features, coarse to fine (``channels`` of a bank). If empty, the stages
            are the fusion modules alone, and ``num_heads`` and ``levels`` have no effect.
        channels, features: channels of the picture; width of the network and of its feature pyramid.
        make_fusion: function that makes the fusion module of a stage, such as ``make_fusion_module`` of the ORM. None:
            dilated residual dense blocks.
        num_heads: heads of the prior fusion blocks; divides ``features``.
        levels: for each of the three stages, the pyramid level that guides it. The default is the finest level for all
            stages, because it contains the other levels.
        stride: side of a block of pixels that becomes the channels of one pixel inside the network. The cost is
            1 / stride^2. In the paper it is 1.
        checkpointing: compute the stages again in the backward pass, as in :class:`ReconstructionNetwork`.

    Raises:
        ValueError: ``levels`` does not name three existing levels, or a number is out of range.

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
        stride: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.checkpointing = check_count("stride", stride, 1), checkpointing
        self.features, self.channels = features, channels
        self.levels: tuple[int, ...] = ()
        self.pyramid: FeaturePyramid | None = None
        if count := len(prior_channels):
            if len(levels) != 3 or not all(-count <= level < count for level in levels):
                raise ValueError(f"levels must be three indices into {count} pyramid levels, got {tuple(levels)}")
            self.levels = tuple(level % count for level in levels)
            self.pyramid = FeaturePyramid(prior_channels, features, levels=sorted(set(self.levels)))
        self.head = nn.Conv2d(channels * stride**2, features, 3, padding=1)
        self.stages = nn.ModuleList(self._make_stage(make_fusion, num_heads) for _ in range(3))
        self.tail = nn.Conv2d(features, channels * stride**2, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, tonemapped: Float[Tensor, "b c h w"], features: Sequence[Float[Tensor, "b _c _h _w"]]
    ) -> Float[Tensor, "b c h w"]:
        """Return the refined picture, same shape and domain as ``tonemapped``; ``features`` run coarse to fine.

        Raises:
            TypeError: ``tonemapped`` is not a floating-point tensor.
            ValueError: wrong axes or channels, an empty batch, or ``features`` of other channels than
                ``prior_channels``.
        """
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, C, H, W)", channels=self.channels)
        check_batch("tonemapped", tonemapped)
        check_sides("tonemapped", tonemapped)
        guides = self._guide(features)
        height, width = tonemapped.shape[-2:]
        padded = tonemapped
        if height % self.stride or width % self.stride:  # inductor takes wrong strides for a padding of zero pixels
            padded = F.pad(padded, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        x = self.head(F.pixel_unshuffle(padded, self.stride))
        for stage, guide in zip(self.stages, guides, strict=True):
            x = run_block(self, stage, x, *guide)
        return tonemapped + F.pixel_shuffle(self.tail(x), self.stride)[..., :height, :width]

    def _make_stage(self, make_fusion: Callable[[], nn.Module] | None, num_heads: int) -> nn.Module:
        fusion = make_fusion() if make_fusion else DilatedResidualDenseBlock(self.features)
        if self.pyramid is None:
            return fusion
        return SemanticGuidedFusion(self.features, self.features, fusion, num_heads)

    def _guide(self, features: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return each stage's inputs besides the picture: its level of the pyramid, or nothing."""
        if self.pyramid is None:
            if len(features) > 0:
                raise ValueError(f"features must be empty without prior_channels, got {len(features)}")
            return [()] * len(self.stages)
        guides = dict(zip(self.pyramid.levels, self.pyramid(features), strict=True))
        return [(guides[level],) for level in self.levels]
