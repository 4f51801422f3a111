"""YOLO11's segmentation network, as plain layers with the names of the official state dict.

Written from the layer graph and the names and shapes of the state dict, without code of the ultralytics package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks.fastsam_architecture import Bottleneck, Conv, SegmentHead, SpatialPyramid, YOLOv8Seg

_HEAD_WIDTH = 64  # channels of an attention head; the shapes do not tell


@dataclass(frozen=True)
class YOLO11SegConfig:
    """Hold the sizes of a YOLO11 segmentation network; the defaults are YOLO11n with 80 classes.

    Args:
        width: channels of the first layer.
        deepest: channels of the stage at stride 32.
        depth: blocks in every stage.
        nested: every stage has nested blocks (the sizes m, l and x); else only the deep ones.
        reg_max: bins of the distribution of a box side.
        num_classes: number of classes.
        coefficients: number of mask prototypes.
        prototype_channels: channels of the prototype branch.
        head_channels: hidden channels of the box, class and coefficient branches.
    """

    width: int = 16
    deepest: int = 256
    depth: int = 1
    nested: bool = False
    reg_max: int = 16
    num_classes: int = 80
    coefficients: int = 32
    prototype_channels: int = 64
    head_channels: tuple[int, int, int] = (64, 80, 32)

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor]) -> YOLO11SegConfig:
        """Derive the sizes from a state dict; raise KeyError if a tensor is missing."""

        def width(name: str, axis: int = 0) -> int:
            return state[f"model.{name}.weight"].shape[axis]

        blocks = {name.split(".")[3] for name in state if name.startswith("model.2.m.")}
        return cls(
            width=width("0.conv"),
            deepest=width("7.conv"),
            depth=len(blocks),
            nested="model.2.m.0.cv3.conv.weight" in state,
            reg_max=width("23.dfl.conv", 1),
            num_classes=width("23.cv3.0.2"),
            coefficients=width("23.cv4.0.2"),
            prototype_channels=width("23.proto.cv1.conv"),
            head_channels=(width("23.cv2.0.0.conv"), width("23.cv3.0.0.1.conv"), width("23.cv4.0.0.conv")),
        )


class YOLO11Seg(YOLOv8Seg):
    """YOLO11's segmentation network of 24 numbered layers, with the methods of :class:`YOLOv8Seg`.

    Example:
        >>> network = YOLO11Seg(YOLO11SegConfig())
        >>> sum(p.numel() for p in network.parameters())
        2876848
    """

    name = "YOLO11"
    strides: ClassVar[dict[int, int]] = {
        **{0: 2, 1: 4, 2: 4, 3: 8, 4: 8, 5: 16, 6: 16, 7: 32, 8: 32, 9: 32, 10: 32},
        **{13: 16, 16: 8, 17: 16, 19: 16, 20: 32, 22: 32},
    }
    levels = (16, 19, 22)
    joins: ClassVar[dict[int, int]] = {12: 6, 15: 4, 18: 13, 21: 10}
    config_class = YOLO11SegConfig

    def __init__(self, config: YOLO11SegConfig | None = None) -> None:
        nn.Module.__init__(self)
        config = config or YOLO11SegConfig()
        c0, c4, n, nested = config.width, config.deepest, config.depth, config.nested
        c1, c2, c3 = 2 * c0, 4 * c0, 8 * c0
        self.config = config  # type: ignore[assignment]
        self.model = nn.ModuleList(
            [
                *[Conv(3, c0, 3, 2), Conv(c0, c1, 3, 2), _C3k2(c1, c2, n, nested, 0.25), Conv(c2, c2, 3, 2)],
                *[_C3k2(c2, c3, n, nested, 0.25), Conv(c3, c3, 3, 2), _C3k2(c3, c3, n, True), Conv(c3, c4, 3, 2)],
                *[_C3k2(c4, c4, n, True), SpatialPyramid(c4), _C2PSA(c4, n)],
                *[nn.Upsample(scale_factor=2), nn.Identity(), _C3k2(c4 + c3, c3, n, nested)],  # Identity: see joins
                *[nn.Upsample(scale_factor=2), nn.Identity(), _C3k2(c3 + c3, c2, n, nested)],
                *[Conv(c2, c2, 3, 2), nn.Identity(), _C3k2(c2 + c3, c3, n, nested)],
                *[Conv(c3, c3, 3, 2), nn.Identity(), _C3k2(c3 + c4, c4, n, True)],
                SegmentHead((c2, c3, c4), config, kind_branch=_kind_branch),
            ]
        )


def _kind_branch(channels: int, hidden: int, classes: int) -> nn.Sequential:
    """Return the branch of the classes: depthwise and pointwise convolutions by turns."""
    return nn.Sequential(
        nn.Sequential(Conv(channels, channels, 3, groups=channels), Conv(channels, hidden, 1)),
        nn.Sequential(Conv(hidden, hidden, 3, groups=hidden), Conv(hidden, hidden, 1)),
        nn.Conv2d(hidden, classes, 1),
    )


class _C3k(nn.Module):
    """Cross-stage partial block of two bottlenecks: half of the channels pass them, half pass one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1, self.cv2 = Conv(channels, half, 1), Conv(channels, half, 1)
        self.cv3 = Conv(2 * half, channels, 1)
        self.m = nn.Sequential(*(Bottleneck(half, True) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


class _C3k2(nn.Module):
    """Cross-stage partial block as YOLOv8's, with nested blocks or narrow bottlenecks."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, nested: bool, share: float = 0.5) -> None:
        super().__init__()
        half = int(out_channels * share)
        self.cv1 = Conv(in_channels, 2 * half, 1)
        self.cv2 = Conv((2 + depth) * half, out_channels, 1)
        self.m = nn.ModuleList(_C3k(half) if nested else Bottleneck(half, True, half // 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class _Attention(nn.Module):
    """Self-attention over all places, with keys half as wide as values, and a depthwise encoding of the position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // _HEAD_WIDTH, 1)
        self.width = channels // self.heads
        self.key = self.width // 2
        self.qkv = Conv(channels, channels + 2 * self.key * self.heads, 1, act=False)
        self.proj = Conv(channels, channels, 1, act=False)
        self.pe = Conv(channels, channels, 3, groups=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).flatten(2).unflatten(1, (self.heads, -1))
        query, key, value = parts.split([self.key, self.key, self.width], dim=2)
        attended = F.scaled_dot_product_attention(
            query.transpose(2, 3), key.transpose(2, 3), value.transpose(2, 3), scale=1 / math.sqrt(self.key)
        )
        return self.proj(attended.transpose(2, 3).reshape(x.shape) + self.pe(value.reshape(x.shape)))


class _AttentionBlock(nn.Module):
    """Attention and a pointwise network of two layers, each with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = _Attention(channels)
        self.ffn = nn.Sequential(Conv(channels, 2 * channels, 1), Conv(2 * channels, channels, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class _C2PSA(nn.Module):
    """Half of the channels pass attention blocks."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1, self.cv2 = Conv(channels, 2 * half, 1), Conv(2 * half, channels, 1)
        self.m = nn.Sequential(*(_AttentionBlock(half) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        kept, attended = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat([kept, self.m(attended)], dim=1))
