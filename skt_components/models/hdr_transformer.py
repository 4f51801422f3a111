"""HDR-Transformer: window attention beside a local context, behind AHDRNet's attention to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.models.ahdrnet import reference_attention
from skt_components.models.network import run_block
from skt_components.models.swin import SwinBlock, SwinNetwork, SwinStage, to_planes
from skt_components.models.upscale import UpscaleHead
from skt_components.modules.fusion import ChannelNorm


class ReferenceAttention(nn.Module):
    """Weight each channel and pixel of a moving frame in [0, 1], given the reference."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.att1 = nn.Conv2d(2 * features, 2 * features, 3, padding=1)
        self.att2 = nn.Conv2d(2 * features, features, 3, padding=1)

    def forward(
        self, moving: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the weights."""
        return reference_attention(moving, reference, self.att1, self.att2)


class LocalContext(nn.Module):
    """A narrow convolutional branch on maps ``(B, H, W, C)`` with channel attention over the whole map."""

    def __init__(self, features: int) -> None:
        super().__init__()
        narrow = max(1, features // 8)
        self.conv = nn.Sequential(
            nn.Conv2d(features, narrow, 1),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.Conv2d(narrow, features, 1),
            nn.LeakyReLU(0.2),
        )
        self.fc = nn.Sequential(
            nn.Linear(features, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, features, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the local context."""
        local = self.conv(to_planes(x)).permute(0, 2, 3, 1)
        return local * self.fc(local.mean((1, 2), keepdim=True))


class ContextAwareBlock(SwinBlock):
    """A :class:`SwinBlock` with a :class:`LocalContext` of its first norm's output added at the end."""

    def __init__(self, features: int, *arguments: Any, **options: Any) -> None:
        super().__init__(features, *arguments, **options)
        self.lce = LocalContext(features)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the refined map."""
        normed = self.norm1(x)
        return self._refine(x, normed) + self.lce(normed)


class ContextAwareTransformer(SwinStage):
    """The stage of HDR-Transformer: context-aware blocks, a dilated convolution and a residual."""

    block, convolution, dilation = ContextAwareBlock, "dilated_conv", 2


class HDRTransformer(SwinNetwork):
    """Ghost-free HDR reconstruction with context-aware transformer blocks.

    Each frame except the reference has an attention branch. Use ``HDRTransformer(5, 4, 4, reference=0, peak=16)`` for
    packed RAW (BracketIRE). This and ``scale`` are our adaptations.

    :class:`ReconstructionNetwork` and :class:`SwinNetwork` explain the arguments. ``fusion_taps`` are the three
    transformers of the published network.

    Raises:
        ValueError: as for :class:`SwinNetwork`.

    Example:
        >>> HDRTransformer(features=8, depths=(2, 2, 2), num_heads=(2, 2, 2))(torch.rand(1, 3, 6, 16, 20)).shape
        torch.Size([1, 3, 16, 20])

    Reference:
        Z. Liu et al., "Ghost-free high dynamic range imaging with context-aware transformer", ECCV 2022.
    """

    fusion_taps = ("layers.0", "layers.1", "layers.2")
    last_layer = "conv_last"
    stage = ContextAwareTransformer
    encoder, branch, three_frames = "conv_f", "att_module_", ("h", "l")
    _input_layers, _input_order = ("conv_f1", "conv_f2", "conv_f3"), (2, 1, 0, 5, 4, 3)  # BGR
    _output_layers, _output_order = ("conv_last",), (2, 1, 0)
    _training_size = 128

    def __init__(
        self,
        num_frames: int = 3,
        in_channels: int = 6,
        out_channels: int = 3,
        features: int = 60,
        depths: Sequence[int] = (6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6),
        mlp_ratio: float = 2.0,
        window_size: int = 8,
        drop_path: float = 0.1,
        reference: int | None = None,
        peak: float = 1.0,
        scale: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())
        for frame in range(num_frames):
            setattr(self, f"conv_f{frame + 1}", nn.Conv2d(self.frame_channels, features, 3, padding=1))
        for name in self._branches().values():
            setattr(self, name, ReferenceAttention(features))
        self.conv_first = nn.Conv2d(num_frames * features, features, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": ChannelNorm(features)})
        self.layers = self._make_stages()
        self.norm = ChannelNorm(features)
        self.conv_after_body = nn.Conv2d(features, features, 3, padding=1)
        self.upscale = UpscaleHead(features, self.frame_channels) if scale == 4 else None
        self.conv_last = nn.Conv2d(features, out_channels, 3, padding=1)

    def _reconstruct(self, bracket: Tensor) -> Tensor:
        frames = self.frames(bracket)
        encoded = self._encode(frames)
        reference = encoded[self.reference]
        for frame, name in self._branches().items():
            encoded[frame] = encoded[frame] * getattr(self, name)(encoded[frame], reference)
        fused = self.conv_first(torch.cat(encoded, dim=1))
        body = self.patch_embed["norm"](fused)
        for layer in self.layers:
            body = run_block(self, layer, body)
        body = self.conv_after_body(self.norm(body) + fused) + reference
        return self._to_hdr(body, frames[self.reference], self.upscale, self.conv_last)
