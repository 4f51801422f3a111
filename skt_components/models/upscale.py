"""The x4 head of BracketIRE+: a bilinear way, and a learnt one that starts at zero."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PixelShufflePack(nn.Module):
    """A 3x3 convolution whose channels become ``scale`` x ``scale`` pixels.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        scale: factor of both sides.

    Example:
        >>> PixelShufflePack(4, 8, 2)(torch.rand(1, 4, 5, 7)).shape
        torch.Size([1, 8, 10, 14])
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.upsample_conv = nn.Conv2d(in_channels, out_channels * scale**2, 3, padding=1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o sh sw"]:
        """Return the larger features."""
        return F.pixel_shuffle(self.upsample_conv(x), self.scale)


def upscale_x4(
    body: Tensor, skip: Tensor, upsample1: nn.Module, upsample2: nn.Module, weight: Tensor
) -> Float[Tensor, "b f _h _w"]:
    """Return bilinear ``body + skip`` at four times the size, plus ``weight`` times the shuffled body.

    Args:
        body: features ``(B, F, H, W)``.
        skip: features of the reference exposure, same shape.
        upsample1: :class:`PixelShufflePack` by 2.
        upsample2: another.
        weight: per channel, ``(1, F, 1, 1)``; 0 at first.
    """

    def larger(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True)

    shuffled = F.leaky_relu(upsample2(F.leaky_relu(upsample1(body), 0.1)), 0.1)
    return larger(body) + larger(skip) + weight * shuffled


class UpscaleHead(nn.Module):
    """The x4 head for networks whose authors had none: that of TMRNet+ (our adaptation).

    Args:
        features: channels of the body, in and out.
        skip_channels: channels of the reference exposure.

    Example:
        >>> UpscaleHead(8, 4)(torch.rand(1, 8, 5, 7), torch.rand(1, 4, 5, 7)).shape
        torch.Size([1, 8, 20, 28])
    """

    def __init__(self, features: int, skip_channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip_channels, features, 3, padding=1)
        self.upsample1 = PixelShufflePack(features, features, 2)
        self.upsample2 = PixelShufflePack(features, features, 2)
        self.weight = nn.Parameter(torch.zeros(1, features, 1, 1))

    def forward(
        self, body: Float[Tensor, "b f h w"], reference: Float[Tensor, "b s h w"]
    ) -> Float[Tensor, "b f _h _w"]:
        """Return the body's features at four times the size."""
        return upscale_x4(body, self.skip(reference), self.upsample1, self.upsample2, self.weight)
