"""AHDRNet, the convolutional baseline of the paper."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.models.network import ReconstructionNetwork, run_block
from skt_components.models.upscale import UpscaleHead
from skt_components.modules.fusion import DilatedResidualDenseBlock


class AHDRNet(ReconstructionNetwork):
    """Attention-guided HDR reconstruction: encode each frame, attend to the reference, fuse with three DRDBs.

    Each frame k except the reference has an attention branch, ``att{k}1`` and ``att{k}2``, counted from 1. Use
    ``AHDRNet(5, 4, 4, reference=0, peak=16)`` for packed RAW (BracketIRE). This and ``scale`` are our adaptations.

    Args:
        num_layers: dilated convolutions per DRDB.
        growth: channels that each convolution adds.
        unused_layers: add frozen layers ``attConv{k}``. The authors' network has them, but never runs them.
        num_frames, in_channels, out_channels, features, reference, peak, scale, checkpointing: see
            :class:`ReconstructionNetwork`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> AHDRNet(features=8, num_layers=2, growth=4)(torch.rand(1, 3, 6, 16, 16)).shape
        torch.Size([1, 3, 16, 16])

    Reference:
        Q. Yan et al., "Attention-guided network for ghost-free high dynamic range imaging", CVPR 2019.
    """

    fusion_taps = ("RDB1", "RDB2", "RDB3")
    last_layer = "conv3"
    exact_tiles = True
    official_options: ClassVar = {"unused_layers": True}
    _input_layers, _input_order = ("conv1",), (3, 4, 5, 0, 1, 2)  # LDR first

    def __init__(
        self,
        num_frames: int = 3,
        in_channels: int = 6,
        out_channels: int = 3,
        features: int = 64,
        num_layers: int = 6,
        growth: int = 32,
        reference: int | None = None,
        peak: float = 1.0,
        scale: int = 1,
        unused_layers: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())
        self.conv1 = nn.Conv2d(self.frame_channels, features, 3, padding=1)
        for frame in self.moving_frames:
            setattr(self, f"att{frame + 1}1", nn.Conv2d(2 * features, 2 * features, 3, padding=1))
            setattr(self, f"att{frame + 1}2", nn.Conv2d(2 * features, features, 3, padding=1))
            if unused_layers:
                unused = nn.Conv2d(features, features, 3, padding=1).requires_grad_(False)
                setattr(self, f"attConv{frame + 1}", unused)
        self.conv2 = nn.Conv2d(num_frames * features, features, 3, padding=1)
        self.RDB1 = DilatedResidualDenseBlock(features, num_layers, growth)
        self.RDB2 = DilatedResidualDenseBlock(features, num_layers, growth)
        self.RDB3 = DilatedResidualDenseBlock(features, num_layers, growth)
        self.GFF_1x1 = nn.Conv2d(3 * features, features, 1)
        self.GFF_3x3 = nn.Conv2d(features, features, 3, padding=1)
        self.upscale = UpscaleHead(features, self.frame_channels) if scale == 4 else None
        self.conv_up = nn.Conv2d(features, features, 3, padding=1)
        self.conv3 = nn.Conv2d(features, out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def _reconstruct(self, bracket: Tensor) -> Tensor:
        frames = self.frames(bracket)
        encoded = [F.leaky_relu(self.conv1(frame)) for frame in frames]
        reference = encoded[self.reference]
        for frame in self.moving_frames:
            branch = getattr(self, f"att{frame + 1}1"), getattr(self, f"att{frame + 1}2")
            encoded[frame] = encoded[frame] * reference_attention(encoded[frame], reference, *branch)
        fused = self.conv2(torch.cat(encoded, dim=1))
        first = run_block(self, self.RDB1, fused)
        second = run_block(self, self.RDB2, first)
        third = run_block(self, self.RDB3, second)
        body = self.GFF_3x3(self.GFF_1x1(torch.cat([first, second, third], dim=1))) + reference
        if self.upscale is not None:
            body = self.upscale(body, frames[self.reference])
        return torch.sigmoid(self.conv3(self.conv_up(body))) * self.peak

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        return DilatedResidualDenseBlock(self.features, self.config["num_layers"], self.config["growth"])

    @torch.no_grad()
    def rescale_layers(self) -> None:
        """Scale the last layer of each dense block by 0.1, and the fusion of the three by 0.3."""
        for block in (self.RDB1, self.RDB2, self.RDB3):
            block.conv_1x1.weight.mul_(0.1)
        self.GFF_3x3.weight.mul_(0.3)

    def _derived_buffers(self) -> dict[str, Tensor]:
        # The unused layers, as zeros where this network has none.
        zeros = self.conv1.weight.new_zeros(self.features, self.features, 3, 3)
        names = [name for frame in self.moving_frames if not hasattr(self, name := f"attConv{frame + 1}")]
        weights = {f"{name}.weight": zeros.clone() for name in names}
        return weights | {f"{name}.bias": zeros.new_zeros(self.features) for name in names}


def reference_attention(moving: Tensor, reference: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """Return the weight in [0, 1] of each channel and pixel of a moving frame, given the reference."""
    return torch.sigmoid(second(F.leaky_relu(first(torch.cat([moving, reference], dim=1)))))
