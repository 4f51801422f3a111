"""FastSAM's architecture, YOLOv8's segmentation network, as plain layers with the names of the official state dict.

Written from the layer graph and the names and shapes of the state dict, without code of the ultralytics package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.files.weights import check_state_dict
from skt_components.ops.checks import float_dtype

STRIDES = {
    **{0: 2, 1: 4, 2: 4, 3: 8, 4: 8, 5: 16, 6: 16, 7: 32, 8: 32, 9: 32},  # backbone
    **{12: 16, 15: 8, 16: 16, 18: 16, 19: 32, 21: 32},  # neck
}
"""Stride of every layer whose output can be used."""
BATCH_NORM_EPS = 1e-3
_MOST_TENSORS = 5000  # YOLOv8x has 657; a crafted file can name millions of blocks
LEVELS = (15, 18, 21)
"""Layers that feed the head."""
_EXAMPLES = {"YOLOv8": " such as FastSAM-s or FastSAM-x"}
_LEVEL_STRIDES = (8, 16, 32)
_CONCAT = {11: 6, 14: 4, 17: 12, 20: 9}  # these layers join the previous one and this earlier one


@dataclass(frozen=True)
class YOLOv8SegConfig:
    """Hold the sizes of a YOLOv8 segmentation network; the defaults are FastSAM-s.

    Args:
        channels: channels of the five backbone stages, strides 2 to 32.
        depths: blocks in the backbone stages at strides 4 to 32.
        neck_depth: blocks in each stage of the neck.
        reg_max: bins of the distribution of a box side.
        num_classes: 1 for FastSAM.
        coefficients: number of mask prototypes.
        prototype_channels: channels of the prototype branch.
        head_channels: hidden channels of the box, class and coefficient branches.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (1, 2, 2, 1)
    neck_depth: int = 1
    reg_max: int = 16
    num_classes: int = 1
    coefficients: int = 32
    prototype_channels: int = 128
    head_channels: tuple[int, int, int] = (64, 128, 32)

    @classmethod
    def fastsam_x(cls) -> YOLOv8SegConfig:
        """Return the sizes of FastSAM-x, whose boxes have 26 bins instead of YOLOv8's 16."""
        return cls((80, 160, 320, 640, 640), (3, 6, 6, 3), 3, 26, prototype_channels=320, head_channels=(104, 320, 80))

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor]) -> YOLOv8SegConfig:
        """Derive the sizes from a state dict; raise KeyError if a tensor is missing."""

        def width(name: str, axis: int = 0) -> int:
            return state[f"model.{name}.weight"].shape[axis]

        def depth(layer: int) -> int:
            prefix = f"model.{layer}.m."
            return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

        return cls(
            channels=tuple(width(f"{i}.conv") for i in (0, 1, 3, 5, 7)),
            depths=tuple(depth(i) for i in (2, 4, 6, 8)),
            neck_depth=depth(12),
            reg_max=width("22.dfl.conv", 1),
            num_classes=width("22.cv3.0.2"),
            coefficients=width("22.cv4.0.2"),
            prototype_channels=width("22.proto.cv1.conv"),
            head_channels=(width("22.cv2.0.0.conv"), width("22.cv3.0.0.conv"), width("22.cv4.0.0.conv")),
        )


class Detections(NamedTuple):
    """Hold the output of the head before any selection.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the network's input.
        scores: in [0, 1], for the most likely class.
        coefficients: weights of the prototypes.
        prototypes: at stride 4; a mask's logits are their weighted sum.
    """

    boxes: Float[Tensor, "b a 4"]
    scores: Float[Tensor, "b a"]
    coefficients: Float[Tensor, "b a m"]
    prototypes: Float[Tensor, "b m h w"]


class YOLOv8Seg(nn.Module):
    """YOLOv8's segmentation network of 23 numbered layers; it keeps no state between calls.

    Args:
        config: the sizes; default: FastSAM-s.

    Example:
        >>> network = YOLOv8Seg(YOLOv8SegConfig())
        >>> sum(p.numel() for p in network.parameters())
        11790483
        >>> {i: tuple(f.shape[1:]) for i, f in network.run_layers(torch.rand(1, 3, 64, 64), (2, 6)).items()}
        {2: (64, 16, 16), 6: (256, 4, 4)}
    """

    name: ClassVar[str] = "YOLOv8"
    strides: ClassVar[dict[int, int]] = STRIDES
    levels: ClassVar[tuple[int, int, int]] = LEVELS
    joins: ClassVar[dict[int, int]] = _CONCAT
    config_class: ClassVar[Any] = YOLOv8SegConfig

    def __init__(self, config: YOLOv8SegConfig | None = None) -> None:
        super().__init__()
        config = config or YOLOv8SegConfig()
        c0, c1, c2, c3, c4 = config.channels
        d1, d2, d3, d4 = config.depths
        neck = config.neck_depth
        self.config = config
        self.model = nn.ModuleList(
            [
                *[Conv(3, c0, 3, 2), Conv(c0, c1, 3, 2), _C2f(c1, c1, d1, True), Conv(c1, c2, 3, 2)],
                *[_C2f(c2, c2, d2, True), Conv(c2, c3, 3, 2), _C2f(c3, c3, d3, True), Conv(c3, c4, 3, 2)],
                *[_C2f(c4, c4, d4, True), SpatialPyramid(c4)],
                *[nn.Upsample(scale_factor=2), nn.Identity(), _C2f(c4 + c3, c3, neck)],  # Identity: see _CONCAT
                *[nn.Upsample(scale_factor=2), nn.Identity(), _C2f(c3 + c2, c2, neck)],
                *[Conv(c2, c2, 3, 2), nn.Identity(), _C2f(c2 + c3, c3, neck)],
                *[Conv(c3, c3, 3, 2), nn.Identity(), _C2f(c3 + c4, c4, neck), SegmentHead((c2, c3, c4), config)],
            ]
        )

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], source: str) -> YOLOv8Seg:
        """Build the network that a state dict belongs to and load it, in float32 and eval mode.

        Args:
            state: official names (``model.0.conv.weight`` ...); any floating-point dtype.
            source: named in the message.

        Raises:
            ValueError: if it is not the state dict of such a network.
        """
        try:
            if len(state) > _MOST_TENSORS:
                raise ValueError(f"at most {_MOST_TENSORS} are expected")
            config = cls.config_class.from_shapes(state)
            with torch.device("meta"):  # skips the random initialization
                network = cls(config)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else f"the sizes do not fit ({error})"
            raise ValueError(
                f"{source} is not a {cls.name} segmentation network{_EXAMPLES.get(cls.name, '')}: among its "
                f"{len(state)} tensors, {reason}"
            ) from None
        check_state_dict(source, state, network.state_dict())
        # Copies, because a safetensors file stays mapped: overwriting it would change the network or end the process.
        values = {
            name: value.to(torch.int64 if name.endswith("num_batches_tracked") else torch.float32, copy=True)
            for name, value in state.items()
        }
        network.load_state_dict(values, assign=True)
        return network.eval()

    def channels(self, layer: int) -> int:
        """Return the channels of a layer of ``strides``."""
        block = self.model[layer]
        last = block if isinstance(block, Conv) else block.cv2
        return last.conv.out_channels  # type: ignore[union-attr, return-value]

    def run_layers(self, images: Float[Tensor, "b 3 h w"], wanted: Collection[int]) -> dict[int, Tensor]:
        """Run the layers up to the last of ``wanted`` and return the wanted outputs by index.

        Args:
            images: RGB in [0, 1], H and W multiples of 32.
            wanted: indices among ``strides``.
        """
        outputs: dict[int, Tensor] = {}
        x = images
        for index in range(max(wanted) + 1):
            x = torch.cat([x, outputs[self.joins[index]]], dim=1) if index in self.joins else self.model[index](x)
            if index in wanted or index in self.joins.values():
                outputs[index] = x
        return {index: outputs[index] for index in wanted}

    def detect(self, levels: Mapping[int, Tensor]) -> Detections:
        """Run the head on the outputs of ``levels``; boxes and scores are decoded in float32."""
        return self.model[-1]([levels[index] for index in self.levels])


class Conv(nn.Module):
    """Convolution, batch normalization, SiLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalize and activate."""
        x = self.bn(self.conv(x))
        return F.silu(x) if self.act else x


class Bottleneck(nn.Module):
    """Two 3x3 convolutions with an optional shortcut."""

    def __init__(self, channels: int, shortcut: bool, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.cv1, self.cv2 = Conv(channels, hidden, 3), Conv(hidden, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Run both convolutions."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class _C2f(nn.Module):
    """Cross-stage partial block: half of the channels pass bottlenecks, and the output of each is used."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, shortcut: bool = False) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels, 2 * half, 1)
        self.cv2 = Conv((2 + depth) * half, out_channels, 1)
        self.m = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling: three successive max-poolings, all used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1, self.cv2 = Conv(channels, half, 1), Conv(4 * half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool three times."""
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        return self.cv2(torch.cat(parts, dim=1))


class _Proto(nn.Sequential):
    """Mask prototypes, at twice the resolution of the finest level."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden, 3)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, 2, 2)
        self.cv2 = Conv(hidden, hidden, 3)
        self.cv3 = Conv(hidden, out_channels, 1)


class _DistributionFocal(nn.Module):
    """Expectation of the distribution of a box side over the distances in the weight (0, 1, 2, ...)."""

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reg_max, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.copy_(torch.arange(reg_max, dtype=torch.float32).view(1, reg_max, 1, 1))

    def forward(self, logits: Float[Tensor, "b a four_r"]) -> Float[Tensor, "b a 4"]:
        probability = logits.unflatten(-1, (4, -1)).softmax(dim=-1)
        return (probability * self.conv.weight.view(-1).to(logits.dtype)).sum(dim=-1)


class SegmentHead(nn.Module):
    """Head: boxes, scores and mask coefficients at every anchor of three levels, and the prototypes."""

    def __init__(
        self,
        channels: tuple[int, int, int],
        config: Any,
        kind_branch: Callable[[int, int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()

        def plain(c: int, hidden: int, out_channels: int) -> nn.Module:
            return nn.Sequential(Conv(c, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, out_channels, 1))

        def branch(hidden: int, out_channels: int, make: Callable[[int, int, int], nn.Module] = plain) -> nn.ModuleList:
            return nn.ModuleList(make(c, hidden, out_channels) for c in channels)

        box, kind, mask = config.head_channels
        self.cv2 = branch(box, 4 * config.reg_max)
        self.cv3 = branch(kind, config.num_classes, kind_branch or plain)
        self.dfl = _DistributionFocal(config.reg_max)
        self.proto = _Proto(channels[0], config.prototype_channels, config.coefficients)
        self.cv4 = branch(mask, config.coefficients)

    def forward(self, levels: list[Tensor]) -> Detections:
        """Return boxes, scores, coefficients and prototypes of three levels."""

        def anchors_last(branch: nn.ModuleList) -> Tensor:
            maps = [layers(x).flatten(2) for layers, x in zip(branch, levels, strict=True)]
            joined = torch.cat(maps, dim=2).transpose(1, 2)
            return joined.to(float_dtype(joined))

        sides, kinds, coefficients = (anchors_last(branch) for branch in (self.cv2, self.cv3, self.cv4))
        prototypes = self.proto(levels[0])
        # bfloat16 has exact integers up to 256 only: distances, anchors and boxes need float32.
        with torch.autocast(sides.device.type, enabled=False):
            boxes = _boxes(self.dfl(sides), [(x.shape[-2], x.shape[-1]) for x in levels])
            scores = kinds.sigmoid().amax(dim=-1)
        return Detections(boxes, scores, coefficients, prototypes.to(float_dtype(prototypes)))


def _boxes(distances: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Convert distances left, top, right, bottom of the anchors, in cells, to corners in pixels."""
    centers, strides = [], []
    for (height, width), level_stride in zip(sizes, _LEVEL_STRIDES, strict=True):
        y = torch.arange(height, device=distances.device, dtype=distances.dtype) + 0.5
        x = torch.arange(width, device=distances.device, dtype=distances.dtype) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centers.append(torch.stack([grid_x, grid_y], dim=-1).view(-1, 2))
        strides.append(x.new_full((height * width, 1), level_stride))
    center, stride = torch.cat(centers), torch.cat(strides)
    near, far = distances.split(2, dim=-1)
    return torch.cat([center - near, center + far], dim=-1) * stride
