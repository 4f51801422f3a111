"""AHDRNet, the convolutional baseline of the paper."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.models.network import ReconstructionNetwork
from skt_components.models.upscale import UpscaleHead
from skt_components.modules.fusion import DilatedResidualDenseBlock
from skt_components.ops.checks import check_choice


class AHDRNet(ReconstructionNetwork):
    """Attention-guided HDR reconstruction: encode each frame, attend to the reference, fuse with three DRDBs.

    Any number of frames works: each frame but the reference has an attention branch of its own, ``att{frame}1`` and
    ``att{frame}2``, counted from 1. For packed RAW (BracketIRE): ``AHDRNet(5, 4, 4, reference=0, peak=16)``; this and
    ``scale`` are our adaptations.

    Args:
        num_frames: exposures N in the bracket.
        in_channels: channels per exposure: 6 for sRGB (linear RGB, then LDR RGB), 4 for packed RAW in [0, peak].
        out_channels: channels of the output: 3 for sRGB, 4 for packed RAW.
        features: width of the network.
        num_layers: dilated convolutions per DRDB.
        growth: channels that each of them adds.
        reference: index of the reference exposure; the middle one when None.
        peak: the sigmoid's output is multiplied by it (1 for sRGB data, 16 for BracketIRE).
        scale: 1, or 4 for an output four times as large (BracketIRE+).
        unused_layers: have the two convolutions ``attConv1`` and ``attConv3`` that the authors' state dict holds but
            their network never runs; frozen.
        checkpointing: activation checkpointing of the DRDBs while training.

    Raises:
        ValueError: ``reference`` is not an index of the bracket, or a number is out of range.

    Example:
        >>> import torch
        >>> AHDRNet(features=8, num_layers=2, growth=4)(torch.rand(1, 3, 6, 16, 16)).shape
        torch.Size([1, 3, 16, 16])

    Reference:
        Q. Yan et al., "Attention-guided network for ghost-free high dynamic range imaging", CVPR 2019.
    """

    fusion_taps = ("RDB1", "RDB2", "RDB3")
    official_options: ClassVar = {"unused_layers": True}
    _input_layers, _input_order = ("conv1",), (3, 4, 5, 0, 1, 2)  # theirs takes the LDR first

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
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            config,
            num_frames=num_frames,
            in_channels=in_channels,
            reference=reference,
            peak=peak,
            checkpointing=checkpointing,
        )
        check_choice("scale", scale, (1, 4))
        self.conv1 = nn.Conv2d(self.frame_channels, features, 3, padding=1)
        for frame in self._moving_frames():
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

    def forward(self, bracket: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b o sh sw"]:
        """Return linear HDR in [0, peak] of a bracket, at ``scale`` times its size.

        Raises TypeError when the bracket is no floating-point tensor, ValueError when it has other frames or channels
        than the constructor said.
        """
        frames = self.frames(bracket)
        encoded = [F.leaky_relu(self.conv1(frame)) for frame in frames]
        reference = encoded[self.reference]
        for frame in self._moving_frames():
            encoded[frame] = encoded[frame] * self._attention(frame, encoded[frame], reference)
        fused = self.conv2(torch.cat(encoded, dim=1))
        first = self.run(self.RDB1, fused)
        second = self.run(self.RDB2, first)
        third = self.run(self.RDB3, second)
        body = self.GFF_3x3(self.GFF_1x1(torch.cat([first, second, third], dim=1))) + reference
        if self.upscale is not None:
            body = self.upscale(body, frames[self.reference])
        return torch.sigmoid(self.conv3(self.conv_up(body))) * self.peak

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        layers = self.RDB1.dense_layers
        return DilatedResidualDenseBlock(self.features, len(layers), self.RDB1.growth)

    def _derived_buffers(self) -> dict[str, Tensor]:
        # Not derived, but never run: zeros serve, and whatever a file has can be left out.
        features = self.conv1.weight.new_zeros(self.features, self.features, 3, 3)
        names = [f"attConv{frame + 1}" for frame in self._moving_frames() if not hasattr(self, f"attConv{frame + 1}")]
        weights = {f"{name}.weight": features.clone() for name in names}
        return weights | {f"{name}.bias": features.new_zeros(self.features) for name in names}

    def _moving_frames(self) -> list[int]:
        return [frame for frame in range(self.num_frames) if frame != self.reference]

    def _attention(self, frame: int, moving: Tensor, reference: Tensor) -> Tensor:
        first, second = getattr(self, f"att{frame + 1}1"), getattr(self, f"att{frame + 1}2")
        return torch.sigmoid(second(F.leaky_relu(first(torch.cat([moving, reference], dim=1)))))
