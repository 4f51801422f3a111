"""Swin blocks, and the base of the networks that are made of them: HDRTransformer and SCTNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.models.network import ReconstructionNetwork
from skt_components.models.upscale import UpscaleHead
from skt_components.models.window_attention import WindowAttention


class DropPath(nn.Module):
    """Drop a residual branch for a random share ``rate`` of the samples in training, and scale up the others.

    Reference:
        G. Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the branch, zero for the dropped samples."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class Mlp(nn.Module):
    """Two linear layers over the last axis with a GELU between them."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """Return the tensor with its channels mixed."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and an MLP on maps ``(B, H, W, C)``, each behind a layer norm and beside a residual.

    H and W are multiples of the window.
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
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attn = WindowAttention(features, num_heads, window_size, shift)
        self.norm2 = nn.LayerNorm(features)
        self.mlp = Mlp(features, int(features * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the refined map."""
        return self._refine(x, self.norm1(x))

    def _refine(self, x: Tensor, normed: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ResidualGroup(nn.Module):
    """Blocks on maps ``(B, H, W, C)``, one after another."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the refined map."""
        return self.blocks(x)


class SwinStage(nn.Module):
    """Swin blocks, every other one with shifted windows, a convolution and a residual, on maps ``(B, C, H, W)``.

    The map may have any size. ``drop_path`` has the rate of each block.
    """

    block: ClassVar[type[SwinBlock]] = SwinBlock
    convolution: ClassVar[str] = "conv"
    dilation: ClassVar[int] = 1

    def __init__(
        self, features: int, num_heads: int, mlp_ratio: float, window_size: int, drop_path: Sequence[float]
    ) -> None:
        super().__init__()
        self.window_size = window_size
        shifts = (0, window_size // 2)
        blocks = [
            self.block(features, num_heads, mlp_ratio, window_size, shift=shifts[index % 2], drop_path=rate)
            for index, rate in enumerate(drop_path)
        ]
        self.residual_group = ResidualGroup(blocks)
        conv = nn.Conv2d(features, features, 3, padding=self.dilation, dilation=self.dilation)
        self.add_module(self.convolution, conv)
        initialize(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the refined map."""
        height, width = x.shape[-2:]
        padded = to_pixels(pad_to_windows(x, self.window_size))
        refined = to_planes(padded) + getattr(self, self.convolution)(to_planes(self.residual_group(padded)))
        return refined[..., :height, :width]


class SwinNetwork(ReconstructionNetwork):
    """Base of the networks made of Swin stages.

    If the sides of a bracket are not multiples of the window, it is padded by reflection at the bottom and at the
    right, and the output is cropped. ``{encoder}{k}`` encodes frame k, counted from 1. Each frame except the reference
    has a branch. With three frames the branches have the authors' names, ``{branch}{three_frames[0]}`` and
    ``{branch}{three_frames[1]}``. Otherwise the name is ``{branch}{k}``.

    The constructors share these arguments:

    - ``depths``: blocks of each stage.
    - ``num_heads``: heads of each stage's window attention; they divide ``features``.
    - ``mlp_ratio``: hidden channels of the MLPs per channel.
    - ``window_size``: side of a window in pixels.
    - ``drop_path``: probability of dropping a residual branch in training; grows from 0 to this over the blocks.

    Raises:
        ValueError: ``depths`` and ``num_heads`` differ in length, heads do not divide ``features``, or as for
            :class:`ReconstructionNetwork`.
    """

    stage: ClassVar[type[SwinStage]] = SwinStage
    encoder: ClassVar[str]
    branch: ClassVar[str]
    three_frames: ClassVar[tuple[str, str]]
    _training_size: ClassVar[int]  # side of the crops that the authors' masks are for

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        depths, num_heads = tuple(config["depths"]), tuple(config["num_heads"])
        if len(depths) != len(num_heads):
            raise ValueError(f"depths and num_heads must be of one length, got {depths} and {num_heads}")
        self.size_multiple = config["window_size"]

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        rates = drop_path_rates(self.config["drop_path"], self.config["depths"][:1])[0]
        return self._make_stage(self.config["num_heads"][0], rates)

    def _make_stages(self) -> nn.ModuleList:
        rates = drop_path_rates(self.config["drop_path"], self.config["depths"])
        return nn.ModuleList(map(self._make_stage, self.config["num_heads"], rates))

    def _make_stage(self, num_heads: int, drop_path: Sequence[float]) -> SwinStage:
        return self.stage(self.features, num_heads, self.config["mlp_ratio"], self.size_multiple, drop_path)

    def _branches(self) -> dict[int, str]:
        """Name of each moving frame's branch."""
        moving = self.moving_frames
        names = self.three_frames if self.num_frames == 3 else [str(frame + 1) for frame in moving]
        return {frame: f"{self.branch}{name}" for frame, name in zip(moving, names, strict=True)}

    def _encode(self, frames: Sequence[Tensor]) -> list[Tensor]:
        return [
            getattr(self, f"{self.encoder}{index + 1}")(pad_to_windows(frame, self.size_multiple))
            for index, frame in enumerate(frames)
        ]

    def _to_hdr(self, body: Tensor, reference: Tensor, upscale: UpscaleHead | None, last: nn.Module) -> Tensor:
        """Turn features into the output, cropped to the size of the ``reference`` frame times ``scale``."""
        height, width = reference.shape[-2:]
        if upscale is not None:  # the resampling depends on the size, so the padding is cropped first
            body = upscale(body[..., :height, :width], reference)
        hdr = torch.sigmoid(last(body)) * self.peak
        return hdr[..., : self.scale * height, : self.scale * width]

    def _derived_buffers(self) -> dict[str, Tensor]:
        return {
            f"{name}.{buffer}": tensor
            for name, block in self.named_modules()
            if isinstance(block, SwinBlock)
            for buffer, tensor in block.attn.official_buffers(self._training_size).items()
        }


def to_pixels(x: Tensor) -> Tensor:
    """Return a map ``(B, C, H, W)`` as ``(B, H, W, C)``, contiguous; without a copy if it is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()


def to_planes(x: Tensor) -> Tensor:
    """Return a map ``(B, H, W, C)`` as ``(B, C, H, W)``, without a copy."""
    return x.permute(0, 3, 1, 2)


def pad_to_windows(x: Tensor, window_size: int) -> Tensor:
    """Pad at the bottom and right to multiples of the window: by reflection, or replication where too small."""
    height, width = -x.shape[-2] % window_size, -x.shape[-1] % window_size
    if height:
        x = F.pad(x, (0, 0, 0, height), mode="reflect" if height < x.shape[-2] else "replicate")
    if width:
        x = F.pad(x, (0, width, 0, 0), mode="reflect" if width < x.shape[-1] else "replicate")
    return x


def initialize(network: nn.Module) -> None:
    """Initialize the linear layers like the Swin Transformer; convolutions keep PyTorch's initialization."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return rates that grow from 0 to ``rate`` over all blocks, by stage."""
    last = max(1, sum(depths) - 1)
    return [[rate * (sum(depths[:stage]) + i) / last for i in range(depth)] for stage, depth in enumerate(depths)]
