"""Frozen VGG19 feature maps for a perceptual loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen, Normalize
from skt_components.files.packages import import_package
from skt_components.files.weights import check_state_dict, read_state_dict
from skt_components.ops.checks import check_tensor, float_dtype

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as torchvision's VGG19 was trained


class VGG19Features(nn.Module):
    """Return chosen feature maps of a frozen VGG19, differentiable with respect to the pictures.

    The map φ(i, j) is the output of the j-th convolution after the i-th max-pooling, after its ReLU. (0, 2) is often
    called relu1_2, and (4, 4) relu5_4. Pictures are normalized by ImageNet's mean and standard deviation, and never
    resized. The network ends at the last of ``layers`` and is stored in :class:`Frozen`.

    Args:
        layers: pairs (i, j), i from 0 and j from 1; the maps come in this order.
        weights: a file in torchvision's layout (``features.0.weight`` ...; classifier keys are ignored),
            ``"pretrained"`` for torchvision's download, or ``"random"`` for tests. There is no default.

    Raises:
        ValueError: if a layer does not exist, or the weights are not given or do not fit.
        FileNotFoundError: if ``weights`` is a path without a file.
        ConnectionError: if ``"pretrained"`` finds neither a network nor an earlier download.
        ImportError: if torchvision is not installed.

    Example:
        >>> vgg = VGG19Features([(0, 2), (1, 2)], weights="random")
        >>> [tuple(f.shape) for f in vgg(torch.rand(1, 3, 32, 48))]
        [(1, 64, 32, 48), (1, 128, 16, 24)]

    Reference:
        K. Simonyan and A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
        ICLR 2015. The φ(i, j) notation: C. Ledig et al., CVPR 2017.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int]] = ((0, 2), (1, 2), (2, 4), (3, 4)),
        *,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if weights is None:
            raise ValueError(
                "weights must be given: a file such as torchvision's vgg19-dcbb9e9d.pth (from "
                "https://download.pytorch.org/models/), weights='pretrained' to let torchvision download it, "
                "or weights='random' for tests; got None"
            )
        self.layers = tuple((int(i), int(j)) for i, j in layers)
        features = _vgg19_features()
        positions = _relu_positions(features, self.layers)
        _initialize(features, weights)
        self.network = Frozen(_SelectedLayers(features[: max(positions) + 1], positions))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return one map ``(B, C, H // 2**i, W // 2**i)`` per layer, in float32 also under autocast.

        Args:
            images: RGB, nominally [0, 1], not clamped; at least ``2**i`` pixels a side for the deepest layer.
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        smallest = 2 ** max(i for i, _ in self.layers)
        if min(images.shape[-2:]) < smallest:
            raise ValueError(f"images must be at least {smallest} pixels a side, got shape {tuple(images.shape)}")
        return [m.to(float_dtype(m)) for m in self.network(images)]

    def extra_repr(self) -> str:
        """Show the layers."""
        return f"layers={self.layers}"


class _SelectedLayers(nn.Module):
    """Normalize the pictures, run layers in a row and return some of their outputs."""

    def __init__(self, layers: nn.Sequential, positions: Sequence[int]) -> None:
        super().__init__()
        self.normalize = Normalize(_MEAN, _STD)
        self.layers = layers
        self.positions = tuple(positions)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.normalize(images)
        outputs = {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.positions:
                outputs[index] = x
        return [outputs[position] for position in self.positions]


def _import_vgg() -> Any:
    return import_package("torchvision.models.vgg", "VGG19Features needs torchvision", "timm")


def _vgg19_features() -> nn.Sequential:
    """Return VGG19's convolutional part with uninitialized weights."""
    vgg = _import_vgg()
    with torch.device("meta"):  # the classifier has 120 million weights
        features = vgg.vgg19(weights=None, init_weights=False).features
    return features.to_empty(device="cpu")


def _relu_positions(features: nn.Sequential, layers: Sequence[tuple[int, int]]) -> list[int]:
    """Return the position of the ReLU behind each wanted convolution."""
    position: dict[tuple[int, int], int] = {}
    pools = convolutions = 0
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            pools, convolutions = pools + 1, 0
        elif isinstance(layer, nn.Conv2d):
            convolutions += 1
            position[pools, convolutions] = index + 1
    unknown = [layer for layer in layers if layer not in position]
    if unknown or not layers:
        raise ValueError(f"layers must be among {sorted(position)}, got {unknown or 'none'}")
    return [position[layer] for layer in layers]


def _initialize(features: nn.Sequential, weights: str | os.PathLike[str]) -> None:
    """Fill the convolutions from a file, torchvision's download or torch's random generator."""
    if weights == "random":
        for layer in features:
            if isinstance(layer, nn.Conv2d):  # as in torchvision
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return
    if weights == "pretrained":
        published = _import_vgg().VGG19_Weights.IMAGENET1K_V1
        try:
            state = dict(published.get_state_dict(progress=False, check_hash=True))
        except OSError as error:  # URLError is one
            raise ConnectionError(
                f"weights='pretrained' of VGG19: {published.url} cannot be downloaded ({error}), and there is no "
                "earlier download. Download it where there is a network and pass weights=FILE"
            ) from error
    else:
        state = read_state_dict(weights, prefix="module.")
    wanted = {f"features.{name}": value for name, value in features.state_dict().items()}
    check_state_dict(str(weights), {k: v for k, v in state.items() if not k.startswith("classifier.")}, wanted)
    features.load_state_dict({name: state[f"features.{name}"] for name in features.state_dict()})
