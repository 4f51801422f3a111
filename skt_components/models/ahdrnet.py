"""AHDRNet, the convolutional baseline of the paper."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.modules.fusion import DilatedResidualDenseBlock
from skt_components.ops._checks import check_positive


class AHDRNet(nn.Module):
    """Attention-guided HDR reconstruction: encode each frame, attend to the reference, fuse with three DRDBs.

    Layer names are those of the authors' state dict (for three frames), without the two convolutions that theirs
    holds but never runs (``attConv1``, ``attConv3``). Any number of frames works: each frame but the reference has
    an attention branch of its own, ``att{frame}1`` and ``att{frame}2``, counted from 1.

    Args:
        num_frames: exposures N in the bracket.
        in_channels: channels per exposure: 6 for sRGB (linear RGB, then LDR RGB), 4 for packed RAW.
        out_channels: channels of the output: 3 for sRGB, 4 for packed RAW.
        features: width of the network.
        num_layers: dilated convolutions per DRDB.
        growth: channels that each of them adds.
        reference: index of the reference exposure; the middle one when None.
        peak: the sigmoid's output is multiplied by it (1 for sRGB data, 16 for BracketIRE).

    Raises:
        ValueError: ``reference`` is not an index of the bracket, or ``peak`` is not above zero.

    Example:
        >>> import torch
        >>> AHDRNet(features=8, num_layers=2, growth=4)(torch.rand(1, 3, 6, 16, 16)).shape
        torch.Size([1, 3, 16, 16])

    Reference:
        Q. Yan et al., "Attention-guided network for ghost-free high dynamic range imaging", CVPR 2019.
    """

    fusion_taps = ("RDB1", "RDB2", "RDB3")

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
    ) -> None:
        super().__init__()
        self.num_frames, self.in_channels, self.peak = num_frames, in_channels, peak
        self.features = features
        self.reference = num_frames // 2 if reference is None else reference
        if not 0 <= self.reference < num_frames:
            raise ValueError(f"reference must be in [0, {num_frames}), got {reference}")
        check_positive("peak", peak)
        self.conv1 = nn.Conv2d(in_channels, features, 3, padding=1)
        for frame in self._moving_frames():
            setattr(self, f"att{frame + 1}1", nn.Conv2d(2 * features, 2 * features, 3, padding=1))
            setattr(self, f"att{frame + 1}2", nn.Conv2d(2 * features, features, 3, padding=1))
        self.conv2 = nn.Conv2d(num_frames * features, features, 3, padding=1)
        self.RDB1 = DilatedResidualDenseBlock(features, num_layers, growth)
        self.RDB2 = DilatedResidualDenseBlock(features, num_layers, growth)
        self.RDB3 = DilatedResidualDenseBlock(features, num_layers, growth)
        self.GFF_1x1 = nn.Conv2d(3 * features, features, 1)
        self.GFF_3x3 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up = nn.Conv2d(features, features, 3, padding=1)
        self.conv3 = nn.Conv2d(features, out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, bracket: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b o h w"]:
        """Return linear HDR in [0, peak] of a bracket, at the bracket's size.

        Raises ValueError when the bracket has other frames or channels than the constructor said.
        """
        if bracket.ndim != 5 or bracket.shape[1:3] != (self.num_frames, self.in_channels):
            raise ValueError(
                f"bracket must be (B, {self.num_frames}, {self.in_channels}, H, W), got {tuple(bracket.shape)}"
            )
        encoded = [F.leaky_relu(self.conv1(frame)) for frame in bracket.unbind(1)]
        reference = encoded[self.reference]
        for frame in self._moving_frames():
            encoded[frame] = encoded[frame] * self._attention(frame, encoded[frame], reference)
        fused = self.conv2(torch.cat(encoded, dim=1))
        first = self.RDB1(fused)
        second = self.RDB2(first)
        third = self.RDB3(second)
        body = self.GFF_3x3(self.GFF_1x1(torch.cat([first, second, third], dim=1))) + reference
        return torch.sigmoid(self.conv3(self.conv_up(body))) * self.peak

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        layers = self.RDB1.dense_layers
        return DilatedResidualDenseBlock(self.features, len(layers), self.RDB1.growth)

    def _moving_frames(self) -> list[int]:
        return [frame for frame in range(self.num_frames) if frame != self.reference]

    def _attention(self, frame: int, moving: Tensor, reference: Tensor) -> Tensor:
        first, second = getattr(self, f"att{frame + 1}1"), getattr(self, f"att{frame + 1}2")
        return torch.sigmoid(second(F.leaky_relu(first(torch.cat([moving, reference], dim=1)))))
