"""Output four times as large (BracketIRE+): a bilinear path, and a learned one that starts at zero."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PixelShufflePack(nn.Module):
    """Turn the channels of a 3x3 convolution into ``scale`` x ``scale`` pixels."""

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.upsample_conv = nn.Conv2d(in_channels, out_channels * scale**2, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o sh sw"]:
        """Return the enlarged map."""
        return F.pixel_shuffle(self.upsample_conv(x), self.scale)


class UpscaleHead(nn.Module):
    """Give the head of TMRNet+ to networks whose authors had none (our adaptation)."""

    def __init__(self, features: int, skip_channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip_channels, features, 3, padding=1)
        self.upsample1 = PixelShufflePack(features, features, 2)
        self.upsample2 = PixelShufflePack(features, features, 2)
        self.weight = nn.Parameter(torch.zeros(1, features, 1, 1))

    def forward(
        self, body: Float[Tensor, "b f h w"], reference: Float[Tensor, "b s h w"]
    ) -> Float[Tensor, "b f _h _w"]:
        """Return the features at four times the size."""
        return upscale_x4(body, self.skip(reference), self.upsample1, self.upsample2, self.weight)


def upscale_x4(body: Tensor, skip: Tensor, upsample1: nn.Module, upsample2: nn.Module, weight: Tensor) -> Tensor:
    """Return bilinear ``body + skip`` at four times the size, plus ``weight`` times the shuffled body."""

    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True)

    shuffled = F.leaky_relu(upsample2(F.leaky_relu(upsample1(body), 0.1)), 0.1)
    return enlarge(body) + enlarge(skip) + weight * shuffled
