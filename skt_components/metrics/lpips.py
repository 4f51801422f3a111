"""LPIPS, the learned perceptual distance, by its authors' package."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from skt_components.files.packages import import_package
from skt_components.files.weights import read_state_dict
from skt_components.metrics._inputs import PAIR, check_display, check_pair
from skt_components.ops.checks import check_choice, no_autocast

_NETWORKS = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}
_SMALLEST = 32  # smaller pictures have no pixel left after a pooling of one of the networks


def lpips(
    prediction: Float[Tensor, "b 3 h w"],
    target: Float[Tensor, "b 3 h w"],
    *,
    peak: float = 1.0,
    network: str = "alex",
    weights: str | os.PathLike[str] | None = None,
) -> Float64[Tensor, " b"]:
    """Compute the learned perceptual distance (LPIPS 0.1) of each picture, 0 for equal ones.

    The package ``lpips`` contains the weights of the distance. The weights of the feature network come from torchvision
    and are in no package. All published HDR tables use AlexNet, trained on ImageNet. Pictures are compared as they are,
    so tone-map HDR pictures first. A loaded network is kept for the next call.

    Args:
        prediction: ``(B, 3, H, W)`` RGB, display-like in [0, peak], at least 32x32; computed in float32.
        target: same.
        peak: value of white.
        network: "alex", "vgg" or "squeeze".
        weights: a file of torchvision's weights (such as alexnet-owt-7be5be79.pth; keys of the classifier are
            ignored), ``"pretrained"`` for torchvision's download, or ``"random"`` for tests. Required.

    Returns:
        ``(B,)`` distances in float64, differentiable in both pictures.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ or are not ``(B, 3, H, W)``, an option is out of range, or the weights are missing or
            do not fit.
        FileNotFoundError: ``weights`` is a path without a file.
        ImportError: ``lpips`` or torchvision is not installed.

    Example:
        >>> picture = torch.rand(2, 3, 64, 64)
        >>> lpips(picture, picture, weights="random").tolist()  # doctest: +SKIP
        [0.0, 0.0]

    Reference:
        Zhang, Isola, Efros, Shechtman, Wang. The unreasonable effectiveness of deep features as a perceptual metric.
        CVPR 2018.
    """
    prediction, target = check_pair(prediction, target, peak)
    check_choice("network", network, _NETWORKS)
    if prediction.shape[1] != 3 or min(prediction.shape[-2:]) < _SMALLEST:
        raise ValueError(
            f"prediction and target must be (B, 3, H, W), at least {_SMALLEST}x{_SMALLEST}, "
            f"got {tuple(prediction.shape)}"
        )
    if weights is None:
        raise ValueError(
            "weights must be given: a file such as torchvision's alexnet-owt-7be5be79.pth (from "
            "https://download.pytorch.org/models/), weights='pretrained' to let torchvision download it, "
            "or weights='random' for tests; got None"
        )
    check_display(PAIR, prediction, target, white=peak)
    distance = _distance(network, os.fspath(weights), prediction.device)
    scaled = [(2 * x / peak - 1).float() for x in (prediction, target)]
    with no_autocast(prediction):
        return distance(*scaled).flatten().double()


@functools.lru_cache(maxsize=4)
def _distance(network: str, weights: str, device: torch.device) -> Any:
    """Return the package's module with all its weights; keep the caller's random state."""
    package = import_package("lpips", "LPIPS needs the packages lpips and torchvision", "lpips")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # the package uses a deprecated call of torchvision
        torch.manual_seed(0)
        distance = package.LPIPS(net=network, version="0.1", pnet_rand=True, verbose=False)
    if weights != "random":
        _load(distance.net, network, weights)
    return distance.requires_grad_(False).eval().to(device)


def _load(trunk: torch.nn.Module, network: str, weights: str) -> None:
    """Fill the package's slices of the network; their last number is the layer's in torchvision's ``features``."""
    state = _download(network) if weights == "pretrained" else read_state_dict(weights)
    features = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    own = trunk.state_dict()
    found = {key: features.get(key.split(".", 1)[1]) for key in own}
    unfit = [key for key, value in found.items() if value is None or value.shape != own[key].shape]
    if unfit:
        raise ValueError(
            f"weights must be torchvision's for network={network!r}, {weights} has not "
            + ", ".join(f"features.{key.split('.', 1)[1]} {tuple(own[key].shape)}" for key in unfit[:3])
        )
    trunk.load_state_dict(found)


def _download(network: str) -> dict[str, Tensor]:
    from torchvision import models

    return dict(getattr(models, _NETWORKS[network]).DEFAULT.get_state_dict(progress=False, check_hash=True))
