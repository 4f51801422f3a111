"""HDR-Transformer: window attention beside a local context, behind AHDRNet's attention to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.models.network import ReconstructionNetwork
from skt_components.models.upscale import UpscaleHead
from skt_components.models.window_attention import (
    ChannelNorm,
    ResidualGroup,
    SwinBlock,
    drop_path_rates,
    initialize,
    pad_to_windows,
    swin_buffers,
    to_pixels,
    to_planes,
)
from skt_components.ops.checks import check_choice


class ReferenceAttention(nn.Module):
    """How far each channel of a moving frame is believed at each pixel, given the reference.

    Args:
        features: channels of either frame.

    Example:
        >>> ReferenceAttention(8)(torch.rand(1, 8, 5, 7), torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.att1 = nn.Conv2d(2 * features, 2 * features, 3, padding=1)
        self.att2 = nn.Conv2d(2 * features, features, 3, padding=1)

    def forward(
        self, moving: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return factors in [0, 1]."""
        return torch.sigmoid(self.att2(F.leaky_relu(self.att1(torch.cat([moving, reference], dim=1)))))


class LocalContext(nn.Module):
    """A narrow convolutional branch whose channels are weighted by what the whole map holds.

    Args:
        features: channels in and out; an eighth of them inside.

    Example:
        >>> LocalContext(16)(torch.rand(1, 5, 7, 16)).shape
        torch.Size([1, 5, 7, 16])
    """

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
        """Return the local context, same shape."""
        local = self.conv(to_planes(x)).permute(0, 2, 3, 1)
        return local * self.fc(local.mean((1, 2), keepdim=True))


class ContextAwareBlock(SwinBlock):
    """A :class:`SwinBlock` with a :class:`LocalContext` of its first norm's output added at the end.

    Args:
        features: channels.
        num_heads: heads of the attention; divides ``features``.
        mlp_ratio: hidden channels of the MLP per channel.
        window_size: side of a window in pixels.
        shift: how far the windows are moved.
        drop_path: probability of leaving out a branch while training.

    Example:
        >>> ContextAwareBlock(8, num_heads=2, window_size=4)(torch.rand(1, 8, 12, 8)).shape
        torch.Size([1, 8, 12, 8])
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        mlp_ratio: float = 2.0,
        window_size: int = 8,
        shift: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(features, num_heads, mlp_ratio, window_size, shift, drop_path)
        self.lce = LocalContext(features)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the refined map, same shape; H and W are multiples of the window."""
        normed = self.norm1(x)
        return self._refine(x, normed) + self.lce(normed)


class ContextAwareTransformer(nn.Module):
    """Context-aware blocks, a dilated convolution and a residual: the stage of HDR-Transformer, on maps of any size.

    Args:
        features: channels in and out.
        num_heads: heads of the attention; divides ``features``.
        mlp_ratio: hidden channels of the MLPs per channel.
        window_size: side of a window in pixels.
        drop_path: probability of leaving out a branch while training, for each of the blocks.

    Example:
        >>> ContextAwareTransformer(8, num_heads=2, drop_path=[0.0, 0.0])(torch.rand(1, 8, 9, 20)).shape
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
        self.residual_group = ResidualGroup(ContextAwareBlock, features, num_heads, mlp_ratio, window_size, drop_path)
        self.dilated_conv = nn.Conv2d(features, features, 3, padding=2, dilation=2)
        initialize(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the refined features, same shape."""
        height, width = x.shape[-2:]
        padded = to_pixels(pad_to_windows(x, self.window_size))
        refined = to_planes(padded) + self.dilated_conv(to_planes(self.residual_group(padded)))
        return refined[..., :height, :width]


class HDRTransformer(ReconstructionNetwork):
    """Ghost-free HDR reconstruction with context-aware transformer blocks.

    Pictures whose sides are no multiples of the window are mirrored at the bottom and at the right, and the output
    is cropped. Any number of frames works: frame k, counted from 1, is encoded by ``conv_f{k}``, and each frame but
    the reference has an attention branch of its own. Of three frames' two branches the first is ``att_module_h`` and
    the second ``att_module_l``, as the authors call them; otherwise frame k has ``att_module_{k}``. For packed RAW
    (BracketIRE): ``HDRTransformer(5, 4, 4, reference=0, peak=16)``; this and ``scale`` are our adaptations.

    Args:
        num_frames: exposures N in the bracket.
        in_channels: channels per exposure: 6 for sRGB (linear RGB, then LDR RGB), 4 for packed RAW in [0, peak].
        out_channels: channels of the output: 3 for sRGB, 4 for packed RAW.
        features: width of the network.
        depths: blocks of each transformer; three transformers make the three stages of ``fusion_taps``.
        num_heads: heads of each transformer; they divide ``features``.
        mlp_ratio: hidden channels of the MLPs per channel.
        window_size: side of a window in pixels.
        drop_path: probability of leaving out a branch while training; grows from 0 to this over the blocks.
        reference: index of the reference exposure; the middle one when None.
        peak: the sigmoid's output is multiplied by it (1 for sRGB data, 16 for BracketIRE).
        scale: 1, or 4 for an output four times as large (BracketIRE+).
        checkpointing: activation checkpointing of the transformers while training.

    Raises:
        ValueError: ``reference`` is not an index of the bracket, ``depths`` and ``num_heads`` differ in length, heads
            do not divide ``features``, or a number is out of range.

    Example:
        >>> HDRTransformer(features=8, depths=(2, 2, 2), num_heads=(2, 2, 2))(torch.rand(1, 3, 6, 16, 20)).shape
        torch.Size([1, 3, 16, 20])

    Reference:
        Z. Liu et al., "Ghost-free high dynamic range imaging with context-aware transformer", ECCV 2022.
    """

    fusion_taps = ("layers.0", "layers.1", "layers.2")
    _input_layers, _input_order = ("conv_f1", "conv_f2", "conv_f3"), (2, 1, 0, 5, 4, 3)  # theirs takes BGR
    _output_layers, _output_order = ("conv_last",), (2, 1, 0)
    _training_size: ClassVar[int] = 128  # side of the pictures that the authors' masks are for

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
        self.scale, self.size_multiple = scale, window_size
        for frame in range(num_frames):
            setattr(self, f"conv_f{frame + 1}", nn.Conv2d(self.frame_channels, features, 3, padding=1))
        for name in self._branches().values():
            setattr(self, name, ReferenceAttention(features))
        self.conv_first = nn.Conv2d(num_frames * features, features, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": ChannelNorm(features)})
        self.layers = nn.ModuleList(
            ContextAwareTransformer(features, heads, mlp_ratio, window_size, rates)
            for heads, rates in zip(num_heads, drop_path_rates(drop_path, depths), strict=True)
        )
        self.norm = ChannelNorm(features)
        self.conv_after_body = nn.Conv2d(features, features, 3, padding=1)
        self.upscale = UpscaleHead(features, self.frame_channels) if scale == 4 else None
        self.conv_last = nn.Conv2d(features, out_channels, 3, padding=1)

    def forward(self, bracket: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b o sh sw"]:
        """Return linear HDR in [0, peak] of a bracket, at ``scale`` times its size.

        Raises TypeError when the bracket is no floating-point tensor, ValueError when it has other frames or channels
        than the constructor said.
        """
        frames = self.frames(bracket)
        height, width = bracket.shape[-2:]
        encoded = [
            getattr(self, f"conv_f{index + 1}")(pad_to_windows(frame, self.size_multiple))
            for index, frame in enumerate(frames)
        ]
        reference = encoded[self.reference]
        for frame, name in self._branches().items():
            encoded[frame] = encoded[frame] * getattr(self, name)(encoded[frame], reference)
        fused = self.conv_first(torch.cat(encoded, dim=1))
        body = self.patch_embed["norm"](fused)
        for layer in self.layers:
            body = self.run(layer, body)
        body = self.conv_after_body(self.norm(body) + fused) + reference
        if self.upscale is not None:  # the resampling depends on the size: without the padding
            body = self.upscale(body[..., :height, :width], frames[self.reference])
        hdr = torch.sigmoid(self.conv_last(body)) * self.peak
        return hdr[..., : self.scale * height, : self.scale * width]

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        options = self.config
        rates = drop_path_rates(options["drop_path"], options["depths"][:1])[0]
        return ContextAwareTransformer(
            options["features"], options["num_heads"][0], options["mlp_ratio"], options["window_size"], rates
        )

    def _derived_buffers(self) -> dict[str, Tensor]:
        return swin_buffers(self, self._training_size)

    def _branches(self) -> dict[int, str]:
        """Attention branch of each moving frame."""
        moving = [frame for frame in range(self.num_frames) if frame != self.reference]
        names = ("h", "l") if self.num_frames == 3 else [str(frame + 1) for frame in moving]
        return {frame: f"att_module_{name}" for frame, name in zip(moving, names, strict=True)}
