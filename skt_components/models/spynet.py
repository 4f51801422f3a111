"""SPyNet, the optical flow in TMRNet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.files.weights import check_state_dict
from skt_components.models.alignment import flow_warp
from skt_components.models.network import official_state
from skt_components.ops.checks import check_count, check_same_shape, check_sides, check_tensor, float_dtype

_LEVELS = 6
_STRIDE = 2 ** (_LEVELS - 1)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class _FlowLevel(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((8, features, 2 * features, features, features // 2, 2)):
            layers += [nn.Conv2d(before, after, 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.basic_module(inputs.to(next(self.parameters()).dtype))


class SPyNet(nn.Module):
    """Estimate optical flow from coarse to fine, in six levels of which each corrects the one before.

    Pictures of any size are resized up to multiples of 32 first. Weights start at random, so the flow is meaningless
    before :meth:`load_official` or training.

    Args:
        features: channels of the first layer; 32 in the published network.

    Raises:
        ValueError: ``features`` is below 2.

    Example:
        >>> SPyNet()(torch.rand(1, 3, 20, 36), torch.rand(1, 3, 20, 36)).shape
        torch.Size([1, 2, 20, 36])

    Reference:
        A. Ranjan and M. J. Black, "Optical flow estimation using a spatial pyramid network", CVPR 2017.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        check_count("features", features, 2)
        self.basic_module = nn.ModuleList(_FlowLevel(features) for _ in range(_LEVELS))
        for name, values in _IMAGENET.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(
        self, reference: Float[Tensor, "b 3 h w"], moving: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 2 h w"]:
        """Return the flow with ``moving(p + flow(p)) == reference(p)``, in pixels to the right and down.

        Both are display-encoded RGB in [0, 1]; the flow has float32 at least, also under autocast.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: an argument is not an RGB picture, or their shapes differ.
        """
        check_tensor("reference", reference, ndim=4, layout="(B, 3, H, W)", channels=3)
        check_tensor("moving", moving, ndim=4, layout="(B, 3, H, W)", channels=3)
        check_same_shape("reference", reference, "moving", moving)
        check_sides("reference", reference)
        height, width = reference.shape[-2:]
        rows, columns = -(-height // _STRIDE) * _STRIDE, -(-width // _STRIDE) * _STRIDE
        flow = self._coarse_to_fine(self._pyramid(reference, rows, columns), self._pyramid(moving, rows, columns))
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return torch.stack([flow[:, 0] * (width / columns), flow[:, 1] * (height / rows)], dim=1)

    def load_official(self, weights: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
        """Load trained weights: MMEditing's ``spynet_20210409-c6c1bd09.pth``, or a state dict of this class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds anything but tensors, or keys or shapes do not fit.
        """
        source, state = official_state(weights)
        found = {name: getattr(self, name) for name in _IMAGENET} | {_rename(name): t for name, t in state.items()}
        check_state_dict(source, found, self.state_dict())
        self.load_state_dict(found)

    def _pyramid(self, picture: Tensor, rows: int, columns: int) -> list[Tensor]:
        """Halve the normalized picture at each level; return the levels coarse to fine."""
        picture = picture.to(float_dtype(picture))
        picture = F.interpolate(picture, size=(rows, columns), mode="bilinear", align_corners=False)
        levels = [(picture - self.mean) / self.std]
        for _ in range(_LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], kernel_size=2, stride=2, count_include_pad=False))
        return levels[::-1]

    def _coarse_to_fine(self, references: list[Tensor], movings: list[Tensor]) -> Tensor:
        flow = torch.zeros_like(references[0][:, :2])
        for level, (reference, moving) in enumerate(zip(references, movings, strict=True)):
            if level > 0:
                flow = F.interpolate(flow, size=reference.shape[-2:], mode="bilinear", align_corners=True) * 2.0
            inputs = torch.cat([reference, flow_warp(moving, flow, padding="border"), flow], dim=1)
            flow = flow + self.basic_module[level](inputs)  # in float32 also under autocast
        return flow


def _rename(name: str) -> str:
    """Translate MMEditing's name, which counts convolutions; ours counts the ReLUs between them too."""
    name = name.removeprefix("module.").removeprefix("spynet.")
    match = re.fullmatch(r"(basic_module\.\d+\.basic_module)\.(\d+)\.conv\.(weight|bias)", name)
    return f"{match[1]}.{2 * int(match[2])}.{match[3]}" if match else name
