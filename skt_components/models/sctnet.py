"""SCTNet: attention over windows, then over the channels of a moving frame and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.models.network import ReconstructionNetwork
from skt_components.models.upscale import UpscaleHead
from skt_components.models.window_attention import (
    ChannelNorm,
    Mlp,
    ResidualGroup,
    SwinBlock,
    drop_path_rates,
    initialize,
    pad_to_windows,
    swin_buffers,
    to_pixels,
    to_planes,
)
from skt_components.ops.attention import transposed_attention
from skt_components.ops.checks import check_choice


class ChannelMlp(Mlp):
    """:class:`Mlp` over the channels of a map ``(B, C, H, W)``.

    Args:
        features: channels in and out.
        hidden: channels between.

    Example:
        >>> ChannelMlp(8, 16)(torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the channels of each pixel mixed."""
        return to_planes(super().forward(to_pixels(x)))


class CrossChannelAttention(nn.Module):
    """Attention of one map's channels to another's.

    Args:
        features: channels of either map.
        num_heads: groups of channels that attend among themselves; divides ``features``.

    Example:
        >>> CrossChannelAttention(8, 2)(torch.rand(1, 8, 5, 7), torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(self, features: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or features % num_heads:
            raise ValueError(f"channel_heads must divide the {features} channels of a frame, got {num_heads}")
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))  # a factor here
        self.q = nn.Conv2d(features, features, 1, bias=False)
        self.k = nn.Conv2d(features, features, 1, bias=False)
        self.v = nn.Conv2d(features, features, 1, bias=False)
        self.project_out = nn.Conv2d(features, features, 1, bias=False)

    def forward(self, query: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the other map's channels, mixed as the query's ask for them."""
        q, k, v, divisor = self.q(query), self.k(other), self.v(other), 1 / self.temperature
        return self.project_out(transposed_attention(q, k, v, temperature=divisor, num_heads=self.num_heads))


class CrossChannelBlock(nn.Module):
    """Cross-channel attention and an MLP, each behind a layer norm and beside a residual: the authors' SCAB.

    Args:
        features: channels of either map.
        num_heads: heads of the attention; divides ``features``.
        mlp_ratio: hidden channels of the MLP per channel.

    Example:
        >>> CrossChannelBlock(8, 2)(torch.rand(1, 8, 5, 7), torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(self, features: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1_x = nn.ModuleDict({"body": ChannelNorm(features)})
        self.norm1_y = nn.ModuleDict({"body": ChannelNorm(features)})
        self.attn = CrossChannelAttention(features, num_heads)
        self.norm2 = ChannelNorm(features)
        self.ffn = ChannelMlp(features, mlp_ratio * features)

    def forward(self, query: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the query's map, refined by the other's."""
        refined = query + self.attn(self.norm1_x["body"](query), self.norm1_y["body"](other))
        return refined + self.ffn(self.norm2(refined))


class WindowAttentionGroup(nn.Module):
    """Swin blocks, a convolution and a residual: the authors' GSAB, on maps of any size.

    Args:
        features: channels in and out.
        num_heads: heads of the attention; divides ``features``.
        mlp_ratio: hidden channels of the MLPs per channel.
        window_size: side of a window in pixels.
        drop_path: probability of leaving out a branch while training, for each of the blocks.

    Example:
        >>> WindowAttentionGroup(8, num_heads=2, drop_path=[0.0, 0.0])(torch.rand(1, 8, 9, 20)).shape
        torch.Size([1, 8, 9, 20])
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        mlp_ratio: float = 2.0,
        window_size: int = 8,
        drop_path: Sequence[float] = (0.0,) * 6,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.residual_group = ResidualGroup(SwinBlock, features, num_heads, mlp_ratio, window_size, drop_path)
        self.conv = nn.Conv2d(features, features, 3, padding=1)
        initialize(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the refined features, same shape."""
        height, width = x.shape[-2:]
        padded = to_pixels(pad_to_windows(x, self.window_size))
        refined = to_planes(padded) + self.conv(to_planes(self.residual_group(padded)))
        return refined[..., :height, :width]


class SCTNet(ReconstructionNetwork):
    """HDR reconstruction by attention over space, then over the channels of semantically alike frames.

    Each frame has ``features / num_frames`` channels throughout. Pictures whose sides are no multiples of the window
    are mirrored at the bottom and at the right, and the output is cropped (the authors' network leaves the margin
    in). Any number of frames that divides ``features`` works: frame k, counted from 1, is encoded by ``conv{k}``, and
    each frame but the reference has a branch of its own. Of three frames' two branches the first is
    ``channel_layers_lm`` and the second ``channel_layers_rm``, as the authors call them; otherwise frame k has
    ``channel_layers_{k}``. For packed RAW (BracketIRE): ``SCTNet(5, 4, 4, reference=0, peak=16)``; this and ``scale``
    are our adaptations.

    Args:
        num_frames: exposures N in the bracket.
        in_channels: channels per exposure: 6 for sRGB (linear RGB, then LDR RGB), 4 for packed RAW in [0, peak].
        out_channels: channels of the output: 3 for sRGB, 4 for packed RAW.
        features: width of the network; a multiple of N.
        depths: window attention blocks of each stage; the last three of four make the stages of ``fusion_taps``.
        num_heads: heads of each stage's window attention; they divide ``features``.
        mlp_ratio: hidden channels of the MLPs per channel.
        window_size: side of a window in pixels.
        channel_heads: heads of the attention over channels; they divide ``features / num_frames``.
        drop_path: probability of leaving out a branch while training; grows from 0 to this over the blocks.
        reference: index of the reference exposure; the middle one when None.
        peak: the sigmoid's output is multiplied by it (1 for sRGB data, 16 for BracketIRE).
        scale: 1, or 4 for an output four times as large (BracketIRE+).
        checkpointing: activation checkpointing of the attention while training.

    Raises:
        ValueError: ``reference`` is not an index of the bracket, ``depths`` and ``num_heads`` differ in length, frames
            or heads do not divide the features, or a number is out of range.

    Example:
        >>> SCTNet(features=12, depths=[2] * 4, num_heads=[2] * 4)(torch.rand(1, 3, 6, 16, 20)).shape
        torch.Size([1, 3, 16, 20])

    Reference:
        S. Tel et al., "Alignment-free HDR deghosting with semantics consistent transformer", ICCV 2023.
    """

    fusion_taps = ("mlps.1", "mlps.2", "mlps.3")
    _input_layers, _input_order = ("conv1", "conv2", "conv3"), (2, 1, 0, 5, 4, 3)  # theirs takes BGR
    _output_layers, _output_order = ("upsample.0",), (2, 1, 0)
    _training_size: ClassVar[int] = 72  # side of the pictures that the authors' masks are for

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
        if len(depths) != len(num_heads):
            raise ValueError(f"depths and num_heads must be of one length, got {tuple(depths)} and {tuple(num_heads)}")
        if features % num_frames:
            raise ValueError(f"features must be a multiple of num_frames={num_frames}, got {features}")
        self.scale, self.size_multiple = scale, window_size
        narrow = features // num_frames
        for frame in range(num_frames):
            setattr(self, f"conv{frame + 1}", nn.Conv2d(self.frame_channels, narrow, 3, padding=1))
        self.conv_end = nn.Conv2d(narrow, features, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": ChannelNorm(features)})
        self.conv_first = ChannelMlp(features, features)
        self.layers = nn.ModuleList(
            WindowAttentionGroup(features, heads, mlp_ratio, window_size, rates)
            for heads, rates in zip(num_heads, drop_path_rates(drop_path, depths), strict=True)
        )
        for name in self._branches().values():
            setattr(self, name, nn.ModuleList(CrossChannelBlock(narrow, channel_heads) for _ in depths))
        self.mlps = nn.ModuleList(ChannelMlp(features, features) for _ in depths)
        self.norm = ChannelNorm(features)
        self.conv_after_body = nn.Conv2d(features, features, 3, padding=1)
        self.upscale = UpscaleHead(features, self.frame_channels) if scale == 4 else None
        self.upsample = nn.Sequential(nn.Conv2d(features, out_channels, 3, padding=1))
        initialize(self)

    def forward(self, bracket: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b o sh sw"]:
        """Return linear HDR in [0, peak] of a bracket, at ``scale`` times its size.

        Raises TypeError when the bracket is no floating-point tensor, ValueError when it has other frames or channels
        than the constructor said.
        """
        frames = self.frames(bracket)
        height, width = bracket.shape[-2:]
        encoded = [
            getattr(self, f"conv{index + 1}")(pad_to_windows(frame, self.size_multiple))
            for index, frame in enumerate(frames)
        ]
        embedded = self.patch_embed["norm"](torch.cat(encoded, dim=1))
        body = self.conv_first(embedded)
        for stage in range(len(self.layers)):
            body = self._stage(stage, body, embedded)
        body = self.conv_after_body(self.norm(body)) + self.conv_end(encoded[self.reference])
        if self.upscale is not None:  # the resampling depends on the size: without the padding
            body = self.upscale(body[..., :height, :width], frames[self.reference])
        hdr = torch.sigmoid(self.upsample(body)) * self.peak
        return hdr[..., : self.scale * height, : self.scale * width]

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        options = self.config
        rates = drop_path_rates(options["drop_path"], options["depths"][:1])[0]
        return WindowAttentionGroup(
            options["features"], options["num_heads"][0], options["mlp_ratio"], options["window_size"], rates
        )

    def _stage(self, stage: int, body: Tensor, embedded: Tensor) -> Tensor:
        """Attend within windows, then let each frame answer the reference."""
        parts = list((embedded + self.run(self.layers[stage], body)).chunk(self.num_frames, dim=1))
        for frame, name in self._branches().items():
            parts[frame] = self.run(getattr(self, name)[stage], parts[self.reference], parts[frame])
        return self.mlps[stage](torch.cat(parts, dim=1))

    def _derived_buffers(self) -> dict[str, Tensor]:
        return swin_buffers(self, self._training_size)

    def _branches(self) -> dict[int, str]:
        """Channel attention blocks of each moving frame."""
        moving = [frame for frame in range(self.num_frames) if frame != self.reference]
        names = ("lm", "rm") if self.num_frames == 3 else [str(frame + 1) for frame in moving]
        return {frame: f"channel_layers_{name}" for frame, name in zip(moving, names, strict=True)}
