"""Output of a knowledge bank, the protocols of banks and region sources, and the bank without features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.ops.checks import check_count, check_tensor


class SemanticPriors(NamedTuple):
    """Hold frozen knowledge about a batch of pictures: feature maps and regions.

    Attributes:
        features: four maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, coarse to fine (strides 16, 8, 4, 2).
        masks: ``(B, R, H, W)`` bool, one mask per region.
        labels: ``(B, H, W)`` int64, the same regions as an index per pixel, -1 for no region; None if regions may
            overlap.
        valid: ``(B, R)`` bool, True for regions with at least one pixel.
    """

    features: list[Tensor]
    masks: Bool[Tensor, "b r h w"]
    labels: Int[Tensor, "b h w"] | None
    valid: Bool[Tensor, "b r"]


@runtime_checkable
class RegionSource(Protocol):
    """Describe the interface of a region source: a callable with an attribute ``num_regions``.

    It maps RGB pictures ``(B, 3, H, W)`` in [0, 1] and the bank's feature maps, coarse to fine, to int64 labels
    ``(B, H, W)`` in [-1, ``num_regions``), without gradient. The bank freezes an ``nn.Module``; the ``repr`` of any
    other source must show its options, because the bank's ``fingerprint`` includes it.
    """

    @property
    def num_regions(self) -> int:
        """Number of regions that a picture can have."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor], /) -> Int[Tensor, "b h w"]:
        """Return the label of every pixel."""
        ...


@runtime_checkable
class KnowledgeBank(Protocol):
    """Describe the interface of a bank; every ``nn.Module`` with these three members is one."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, coarse to fine."""
        ...

    @property
    def reduction(self) -> tuple[int, ...]:
        """Stride of each feature map, coarse to fine, such as (16, 8, 4, 2)."""
        ...

    def __call__(self, tonemapped: Float[Tensor, "b 3 h w"], /) -> SemanticPriors:
        """Describe tone-mapped RGB pictures in [0, 1], without gradients."""
        ...


def priors_from_labels(
    features: Sequence[Tensor], labels: Integer[Tensor, "b h w"], num_regions: int
) -> SemanticPriors:
    """Build ``SemanticPriors`` from a label map: disjoint masks, valid where not empty.

    Args:
        features: the feature maps, coarse to fine; returned as they are.
        labels: ``(B, H, W)`` integers; values outside [0, ``num_regions``) mean "no region" and become -1.
        num_regions: R, the number of masks.

    Raises:
        TypeError, ValueError: if ``labels`` are not integers of three axes, or ``num_regions`` is not >= 1.

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
    check_count("num_regions", num_regions, 1)
    labels = labels.long()
    labels = torch.where((labels >= 0) & (labels < num_regions), labels, -1)
    index = torch.arange(num_regions, device=labels.device)
    masks = labels[:, None] == index[None, :, None, None]
    return SemanticPriors(list(features), masks, labels, masks.flatten(2).any(dim=-1))


def priors_from_masks(features: Sequence[Tensor], masks: Bool[Tensor, "b r h w"]) -> SemanticPriors:
    """Build ``SemanticPriors`` from masks that may overlap; ``labels`` is None.

    Args:
        features: the feature maps, coarse to fine; returned as they are.
        masks: ``(B, R, H, W)`` bool; empty ones are not valid. A pixel may be in several masks or in none.

    Raises:
        TypeError, ValueError: if ``masks`` is not bool with four axes and at least one mask.

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


class EmptyBank(nn.Module):
    """Return no features and one region per picture: the ablation "without FastSAM".

    Use it with :class:`SPGRM` with ``prior_channels=()``, which is a plain second stage. L_color then compares
    histograms of whole pictures.

    Example:
        >>> priors = EmptyBank()(torch.rand(1, 3, 4, 4))
        >>> len(priors.features), priors.labels.unique().tolist(), priors.valid.tolist()
        (0, [0], [[True]])

    Reference:
        Table 3 of the paper.
    """

    channels: tuple[int, ...] = ()
    reduction: tuple[int, ...] = ()
    fingerprint = "no-knowledge"

    @torch.no_grad()
    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Return no features, and the whole of each picture ``(B, 3, H, W)`` as region 0."""
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, 3, H, W)", channels=3)
        return priors_from_labels([], torch.zeros_like(tonemapped[:, 0], dtype=torch.long), 1)


def describe_region_source(regions: object) -> str:
    """Return a text that identifies a region source, frozen or not: its ``fingerprint``, or else its ``repr``.

    Raises:
        ValueError: if a module has no ``fingerprint``, because its ``repr`` may not show its options; or if the
            ``repr`` contains a memory address.
    """
    while isinstance(regions, Frozen):
        regions = regions.network
    named = getattr(regions, "fingerprint", None)
    if isinstance(named, str):
        return named
    if regions is not None and (hasattr(regions, "state_dict") or " at 0x" in repr(regions)):
        raise ValueError(
            f"region source {type(regions).__name__} must have an attribute fingerprint: a str that identifies its "
            "options and weights, so that stored priors of different sources are not mixed"
        )
    return repr(regions)


def check_region_source(regions: object) -> int:
    """Return the number of regions of a source; raise TypeError unless it is a :class:`RegionSource`."""
    count = getattr(regions, "num_regions", None)
    if not callable(regions) or isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"regions must be callable and have an int num_regions, got {type(regions).__name__}")
    return count
