"""SCTNet: attention over windows, then over the channels of a moving frame and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.models.network import run_block
from skt_components.models.swin import Mlp, SwinNetwork, initialize, to_pixels, to_planes
from skt_components.models.upscale import UpscaleHead
from skt_components.modules.fusion import ChannelNorm
from skt_components.ops.attention import transposed_attention


class ChannelMlp(Mlp):
    """:class:`Mlp` over the channels of a map ``(B, C, H, W)``."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the map with its channels mixed."""
        return to_planes(super().forward(to_pixels(x)))


class CrossChannelAttention(nn.Module):
    """Attend from one map's channels to another map's, in ``num_heads`` groups of channels."""

    def __init__(self, features: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or features % num_heads:
            raise ValueError(f"channel_heads must divide the {features} channels of a frame, got {num_heads}")
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))  # a factor here, not a divisor
        self.q = nn.Conv2d(features, features, 1, bias=False)
        self.k = nn.Conv2d(features, features, 1, bias=False)
        self.v = nn.Conv2d(features, features, 1, bias=False)
        self.project_out = nn.Conv2d(features, features, 1, bias=False)

    def forward(self, query: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return mixtures of the other map's channels, one for each channel of the query."""
        q, k, v, divisor = self.q(query), self.k(other), self.v(other), 1 / self.temperature
        return self.project_out(transposed_attention(q, k, v, temperature=divisor, num_heads=self.num_heads))


class CrossChannelBlock(nn.Module):
    """Cross-channel attention and an MLP, each behind a layer norm and beside a residual: the authors' SCAB."""

    def __init__(self, features: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1_x = nn.ModuleDict({"body": ChannelNorm(features)})
        self.norm1_y = nn.ModuleDict({"body": ChannelNorm(features)})
        self.attn = CrossChannelAttention(features, num_heads)
        self.norm2 = ChannelNorm(features)
        self.ffn = ChannelMlp(features, mlp_ratio * features)

    def forward(self, query: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the query, refined by the other map."""
        refined = query + self.attn(self.norm1_x["body"](query), self.norm1_y["body"](other))
        return refined + self.ffn(self.norm2(refined))


class SCTNet(SwinNetwork):
    """HDR reconstruction by attention over space, then over the channels of semantically alike frames.

    Each frame has ``features / num_frames`` channels in all layers. Each frame except the reference has a branch of
    channel attention. The authors' network keeps the padding of the last windows; this network crops it. Use
    ``SCTNet(5, 4, 4, reference=0, peak=16)`` for packed RAW (BracketIRE). This and ``scale`` are our adaptations.

    :class:`ReconstructionNetwork` and :class:`SwinNetwork` explain the other arguments. ``fusion_taps`` are the last
    three of four stages.

    Args:
        features: a multiple of ``num_frames``.
        channel_heads: heads of the attention over channels; they divide ``features / num_frames``.

    Raises:
        ValueError: as for :class:`SwinNetwork`, or the frames or heads do not divide the features.

    Example:
        >>> SCTNet(features=12, depths=[2] * 4, num_heads=[2] * 4)(torch.rand(1, 3, 6, 16, 20)).shape
        torch.Size([1, 3, 16, 20])

    Reference:
        S. Tel et al., "Alignment-free HDR deghosting with semantics consistent transformer", ICCV 2023.
    """

    fusion_taps = ("mlps.1", "mlps.2", "mlps.3")
    last_layer = "upsample.0"
    encoder, branch, three_frames = "conv", "channel_layers_", ("lm", "rm")
    _input_layers, _input_order = ("conv1", "conv2", "conv3"), (2, 1, 0, 5, 4, 3)  # BGR
    _output_layers, _output_order = ("upsample.0",), (2, 1, 0)
    _training_size = 72

    def __init__(
        self,
        num_frames: int = 3,
        in_channels: int = 6,
        out_channels: int = 3,
        features: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        mlp_ratio: float = 2.0,
        window_size: int = 8,
        channel_heads: int = 4,
        drop_path: float = 0.1,
        reference: int | None = None,
        peak: float = 1.0,
        scale: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())
        if features % num_frames:
            raise ValueError(f"features must be a multiple of num_frames={num_frames}, got {features}")
        narrow = features // num_frames
        for frame in range(num_frames):
            setattr(self, f"conv{frame + 1}", nn.Conv2d(self.frame_channels, narrow, 3, padding=1))
        self.conv_end = nn.Conv2d(narrow, features, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": ChannelNorm(features)})
        self.conv_first = ChannelMlp(features, features)
        self.layers = self._make_stages()
        for name in self._branches().values():
            setattr(self, name, nn.ModuleList(CrossChannelBlock(narrow, channel_heads) for _ in depths))
        self.mlps = nn.ModuleList(ChannelMlp(features, features) for _ in depths)
        self.norm = ChannelNorm(features)
        self.conv_after_body = nn.Conv2d(features, features, 3, padding=1)
        self.upscale = UpscaleHead(features, self.frame_channels) if scale == 4 else None
        self.upsample = nn.Sequential(nn.Conv2d(features, out_channels, 3, padding=1))
        initialize(self)

    @torch.no_grad()
    def rescale_layers(self) -> None:
        """Give the MLPs without a residual, and the features before the last layer, the size of the other features.

        With the authors' initialization these features are so small that one step of Adam changes them completely.
        """
        for mlp in (self.conv_first, *self.mlps):
            for layer in (mlp.fc1, mlp.fc2):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.conv_after_body.weight.mul_(3)
        self.conv_end.weight.mul_(30)

    def _reconstruct(self, bracket: Tensor) -> Tensor:
        frames = self.frames(bracket)
        encoded = self._encode(frames)
        embedded = self.patch_embed["norm"](torch.cat(encoded, dim=1))
        body = self.conv_first(embedded)
        for stage, windows in enumerate(self.layers):
            parts = list((embedded + run_block(self, windows, body)).chunk(self.num_frames, dim=1))
            for frame, name in self._branches().items():
                parts[frame] = run_block(self, getattr(self, name)[stage], parts[self.reference], parts[frame])
            body = self.mlps[stage](torch.cat(parts, dim=1))
        body = self.conv_after_body(self.norm(body)) + self.conv_end(encoded[self.reference])
        return self._to_hdr(body, frames[self.reference], self.upscale, self.upsample)
