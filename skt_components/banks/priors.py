"""What a knowledge bank gives the training loop, and what a bank and a region source must offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from skt_components.banks.frozen import Frozen


class SemanticPriors(NamedTuple):
    """Frozen knowledge about a batch of pictures: feature maps and regions.

    Attributes:
        features: four maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, coarse to fine (strides 16, 8, 4, 2).
        masks: ``(B, R, H, W)`` bool, one mask per region.
        labels: ``(B, H, W)`` int64, the region of each pixel, -1 where there is none; the masks say the same. None
            where regions may overlap, which a label map cannot say: then only the masks count.
        valid: ``(B, R)`` bool, whether the region has any pixel in that picture.
    """

    features: list[Tensor]
    masks: Bool[Tensor, "b r h w"]
    labels: Int[Tensor, "b h w"] | None
    valid: Bool[Tensor, "b r"]


@runtime_checkable
class RegionSource(Protocol):
    """Anything that cuts pictures into regions: a callable with the number of regions it may use.

    It maps RGB pictures ``(B, 3, H, W)`` in [0, 1] and the bank's feature maps, coarse to fine, to int64 labels
    ``(B, H, W)`` in [-1, ``num_regions``), without gradient. It may ignore the features. One that is an
    ``nn.Module`` is frozen by the bank; one of another kind should tell its options in its ``repr``, which the
    bank's ``fingerprint`` reads.
    """

    @property
    def num_regions(self) -> int:
        """How many regions a picture can have."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor], /) -> Int[Tensor, "b h w"]:
        """Label every pixel."""
        ...


@runtime_checkable
class KnowledgeBank(Protocol):
    """The whole interface of a bank; any ``nn.Module`` with these three members is one.

    Attributes:
        channels: the channels of the four feature maps, coarse to fine.
        reduction: their strides, coarse to fine, such as (16, 8, 4, 2).
    """

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, coarse to fine."""
        ...

    @property
    def reduction(self) -> tuple[int, ...]:
        """Stride of each feature map, coarse to fine."""
        ...

    def __call__(self, tonemapped: Float[Tensor, "b 3 h w"], /) -> SemanticPriors:
        """Describe tone-mapped RGB pictures in [0, 1]; no gradient flows back to them."""
        ...


def priors_from_labels(
    features: Sequence[Tensor], labels: Integer[Tensor, "b h w"], num_regions: int
) -> SemanticPriors:
    """Build ``SemanticPriors`` from a label map: disjoint one-hot masks, and which regions are not empty.

    Args:
        features: the feature maps, coarse to fine; passed through.
        labels: ``(B, H, W)`` integers; values outside [0, ``num_regions``) mean "no region" and become -1.
        num_regions: R, the number of masks.

    Returns:
        The priors, on the labels' device, made without waiting for that device.

    Raises:
        TypeError: if ``labels`` is not an integer tensor or ``num_regions`` not an int.
        ValueError: if ``labels`` has not three axes or ``num_regions`` is below 1.

    Example:
        >>> priors = priors_from_labels([], torch.tensor([[[0, 0], [2, -1]]]), num_regions=3)
        >>> priors.valid.tolist()
        [[True, False, True]]
        >>> priors.masks.sum(dim=1).tolist()
        [[[1, 1], [1, 0]]]
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor (B, H, W), got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be an integer tensor, got {labels.dtype}")
    if labels.ndim != 3:
        raise ValueError(f"labels must have 3 axes (B, H, W), got shape {tuple(labels.shape)}")
    if isinstance(num_regions, bool) or not isinstance(num_regions, int):
        raise TypeError(f"num_regions must be an int, got {type(num_regions).__name__}")
    if num_regions < 1:
        raise ValueError(f"num_regions must be at least 1, got {num_regions}")
    labels = labels.long()
    labels = torch.where((labels >= 0) & (labels < num_regions), labels, -1)
    index = torch.arange(num_regions, device=labels.device)
    masks = labels[:, None] == index[None, :, None, None]
    return SemanticPriors(list(features), masks, labels, masks.flatten(2).any(dim=-1))


def priors_from_masks(features: Sequence[Tensor], masks: Bool[Tensor, "b r h w"]) -> SemanticPriors:
    """Build ``SemanticPriors`` from masks that may overlap; ``labels`` is None.

    Args:
        features: the feature maps, coarse to fine; passed through.
        masks: ``(B, R, H, W)`` bool; empty ones are not valid. A pixel may be in several masks or in none.

    Returns:
        The priors, on the masks' device, made without waiting for that device.

    Raises:
        TypeError: if ``masks`` is not a bool tensor.
        ValueError: if it has not four axes or no mask at all.

    Example:
        >>> priors = priors_from_masks([], torch.tensor([[[[True, True]], [[False, True]], [[False, False]]]]))
        >>> priors.valid.tolist(), priors.labels
        ([[True, True, False]], None)
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        raise TypeError(
            f"masks must be a bool tensor (B, R, H, W), got {getattr(masks, 'dtype', type(masks).__name__)}"
        )
    if masks.ndim != 4 or masks.shape[1] < 1:
        raise ValueError(f"masks must be (B, R, H, W) with R >= 1, got shape {tuple(masks.shape)}")
    return SemanticPriors(list(features), masks, None, masks.flatten(2).any(dim=-1))


def describe_region_source(regions: object) -> str:
    """Return what tells one region source from another: its ``fingerprint``, or else its ``repr``, also if frozen.

    Raises:
        ValueError: a module without ``fingerprint``, whose options need not be in its ``repr``; a ``repr`` that
            names a place in memory, which another run gives to something else.
    """
    while isinstance(regions, Frozen):
        regions = regions.network
    named = getattr(regions, "fingerprint", None)
    if isinstance(named, str):
        return named
    if regions is not None and (hasattr(regions, "state_dict") or " at 0x" in repr(regions)):
        raise ValueError(
            f"the region source {type(regions).__name__} needs an attribute fingerprint: a str that tells its options "
            "and weights, or priors of different ones would be taken for each other"
        )
    return repr(regions)


def check_region_source(regions: object) -> int:
    """Return how many regions a source can give; raise TypeError if it is none (see :class:`RegionSource`)."""
    count = getattr(regions, "num_regions", None)
    if not callable(regions) or isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"regions must be callable and have an int num_regions, got {type(regions).__name__}")
    return count
