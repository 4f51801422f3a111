"""Alignment of features by optical flow: warping, and the deformable convolution that a flow guides."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.ops.checks import check_positive, float_dtype


def flow_warp(
    x: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"], padding: str = "zeros"
) -> Float[Tensor, "b c h w"]:
    """Sample ``x`` bilinearly along the flow: ``out(p) = x(p + flow(p))``.

    Args:
        flow: pixels to the right and down.
        padding: values outside the map: "zeros", or "border" for the nearest pixel.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 1, 4)
        >>> right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> flow_warp(x, right).flatten().tolist()
        [1.0, 2.0, 3.0, 0.0]
    """
    height, width = x.shape[-2:]
    dtype = float_dtype(x)
    flow = flow.to(dtype)
    columns = flow[:, 0] + torch.arange(width, dtype=dtype, device=x.device)
    rows = flow[:, 1] + torch.arange(height, dtype=dtype, device=x.device)[:, None]
    across: Any = torch.sym_max(width - 1, 1)  # without a branch, for torch.export
    down: Any = torch.sym_max(height - 1, 1)
    grid = torch.stack([2.0 * columns / across - 1.0, 2.0 * rows / down - 1.0], dim=-1)
    return F.grid_sample(x.to(dtype), grid, mode="bilinear", padding_mode=padding, align_corners=True).to(x.dtype)


class ModulatedDeformConv2d(nn.Conv2d):
    """A convolution of the same size in and out, with an offset and a weight for each position of its kernel.

    Computes in float32 at least, also under autocast. Takes the arguments of ``torch.nn.Conv2d``.

    Raises:
        ImportError: torchvision is not installed; when it runs.

    Reference:
        X. Zhu et al., "Deformable ConvNets v2: more deformable, better results", CVPR 2019.
    """

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b i h w"], offset: Float[Tensor, "b d h w"], mask: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b o h w"]:
        """Return the convolved features.

        Args:
            x: features.
            offset: pixels down and to the right, for each offset group and kernel position.
            mask: weight of each offset group and kernel position.
        """
        try:
            from torchvision.ops import deform_conv2d
        except ImportError as error:
            raise ImportError('TMRNet needs torchvision: pip install "skt-components[tmrnet]"') from error
        # deform_conv2d takes one dtype, and has no kernel for half precision on the CPU.
        dtype = float_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        geometry = self.stride, self.padding, self.dilation
        out: Tensor = deform_conv2d(
            x.to(dtype), offset.to(dtype), self.weight.to(dtype), bias, *geometry, mask.to(dtype)
        )
        return out.to(x.dtype)


class DeformableAlignment(nn.Module):
    """Align a moving frame's features with the reference by a flow, which convolutions correct.

    Args:
        groups: groups of the deformable convolution; divides ``features``.
        max_residue: largest correction of the flow in pixels.

    Raises:
        ValueError: ``groups`` does not divide ``features``, or a number is out of range.
        ImportError: torchvision is not installed; when it runs.

    Example:
        >>> align = DeformableAlignment(8, groups=2)
        >>> moving, reference = torch.rand(1, 8, 6, 7), torch.rand(1, 8, 6, 7)
        >>> align(moving, reference, torch.zeros(1, 2, 6, 7)).shape
        torch.Size([1, 8, 6, 7])

    Reference:
        K. C. K. Chan et al., "BasicVSR++: improving video super-resolution with enhanced propagation and alignment",
        CVPR 2022.
    """

    def __init__(self, features: int = 64, groups: int = 8, max_residue: float = 10.0) -> None:
        super().__init__()
        if groups < 1 or features % groups:
            raise ValueError(f"features must be a multiple of groups={groups}, got {features}")
        check_positive("max_residue", max_residue)
        self.max_residue = max_residue
        self.deform_conv = ModulatedDeformConv2d(features, features, 3, padding=1, groups=groups)
        layers: list[nn.Module] = []
        for channels in (2 * features + 2, features, features):
            layers += [nn.Conv2d(channels, features, 3, padding=1), nn.LeakyReLU(0.1)]
        # two offsets and a weight per kernel position
        self.conv_offset = nn.Sequential(*layers, nn.Conv2d(features, 3 * 3 * 3 * groups, 3, padding=1))
        for parameter in self.conv_offset[-1].parameters():
            nn.init.zeros_(parameter)  # the flow alone, at first

    def forward(
        self, moving: Float[Tensor, "b f h w"], reference: Float[Tensor, "b f h w"], flow: Float[Tensor, "b 2 h w"]
    ) -> Float[Tensor, "b f h w"]:
        """Return ``moving`` aligned with ``reference``; ``flow`` as for :func:`flow_warp`."""
        inputs = torch.cat([flow_warp(moving, flow), reference, flow.to(moving.dtype)], dim=1)
        first, second, mask = self.conv_offset(inputs).chunk(3, dim=1)
        residue = self.max_residue * torch.tanh(torch.cat([first, second], dim=1))
        offset = residue + flow.flip(1).repeat(1, residue.shape[1] // 2, 1, 1)
        return self.deform_conv(moving, offset, torch.sigmoid(mask))
