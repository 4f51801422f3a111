"""Regions of a histogram: their check and their areas."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from skt_components.histogram.mask_atoms import memoize_by_tensor
from skt_components.ops.checks import check_count, warn_caller

_MOST_INFERRED = 1 << 16  # regions in a label map without num_regions
_FAR = 8  # times the number of regions below; a label beyond is no region
_SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
_PART = 1 << 18  # numbers of masks or labels to read at a time


def check_regions(
    picture: Tensor,
    masks: Tensor | None,
    labels: Tensor | None,
    num_regions: int | None,
    soft_masks: str | None = "weighted",
) -> tuple[Tensor | None, Tensor | None, int]:
    """Return masks (bool if binary), labels, and the number of regions; raise unless they fit ``picture`` (B, C, H, W).

    Integers become signed: torch computes hardly anything with unsigned ones of more than 8 bits.
    """
    if masks is not None and labels is not None:
        raise ValueError("give masks or labels, not both")
    if num_regions is not None and labels is None:
        raise ValueError(f"num_regions goes with labels, got num_regions={num_regions} without them")
    batch, _, *size = picture.shape
    for name, regions, layout in (("masks", masks, "(B, R, H, W)"), ("labels", labels, "(B, H, W)")):
        if regions is None:
            continue
        if not isinstance(regions, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor {layout}, got {type(regions).__name__}")
        if regions.device != picture.device:
            raise ValueError(f"{name} must be on the pictures' device {picture.device}, got {regions.device}")
        if regions.ndim != len(layout.split(",")) or (regions.shape[0], *regions.shape[-2:]) != (batch, *size):
            raise ValueError(f"{name} must be {layout} with B, H, W = {(batch, *size)}, got {tuple(regions.shape)}")
    masks, labels = (x if x is None else x.to(_SIGNED.get(x.dtype, x.dtype)) for x in (masks, labels))
    if masks is not None:
        if masks.requires_grad and soft_masks != "literal":
            raise ValueError("masks must not require a gradient: it is not computed; pass masks.detach()")
        weights = soft_masks is not None and masks.is_floating_point()
        return (masks if weights or masks.dtype == torch.bool else _to_bool(masks)), None, masks.shape[1]
    if labels is None:
        return None, None, 1
    if labels.dtype == torch.bool or labels.is_floating_point():
        raise TypeError(f"labels must be an integer tensor (B, H, W), got {labels.dtype}")
    if num_regions is not None:
        return None, labels, check_count("num_regions", num_regions, 0)
    return None, labels, _count_regions(labels)


def _count_regions(labels: Tensor) -> int:
    """Return the largest label plus one; a label or two far beyond all others mark pixels to be ignored."""
    if labels.device.type == "meta":
        raise ValueError("num_regions is required with labels on the meta device, where values cannot be read")
    largest = int(labels.max()) if labels.numel() else -1
    if largest == 255 and not (labels == 254).any():
        warn_caller(
            "label 255 counts as a region, although there is no label 254. If 255 marks pixels to ignore, pass "
            "num_regions: labels of num_regions and above belong to no region"
        )
    if largest <= 255:
        return max(largest + 1, 0)
    known = [-1, *labels[labels >= 0].unique().tolist()]
    for below, above in itertools.pairwise(known[-3:]):
        if above > 255 and above >= _FAR * (below + 1):
            warn_caller(
                f"labels of {above} and above are far from the others, which go up to {below}: they probably mark "
                "pixels to ignore, and count in no region. If they are regions, pass num_regions"
            )
            return below + 1
    if largest >= _MOST_INFERRED:
        raise ValueError(f"labels go up to {largest}; if there are so many regions, pass num_regions")
    return largest + 1


def _to_bool(masks: Tensor) -> Tensor:
    """Return binary masks as bool, where values can be read; raise ValueError for other values."""
    unknown = torch.compiler.is_compiling() or masks.device.type == "meta"
    if not (unknown or torch._C._functorch.is_batchedtensor(masks)):
        return memoize_by_tensor("binary", masks, lambda: _verify_binary(masks))
    # Values cannot be read: as weights, masks of 0 and 1 mean the same, and others are not rounded up to 1.
    if masks.is_floating_point():
        return masks
    if masks.dtype != torch.uint8:  # without fullgraph=True the loss then runs uncompiled, and verifies them
        raise ValueError(
            f"masks inside torch.compile and torch.vmap must be bool, floating-point or uint8, got {masks.dtype}: "
            "values cannot be read there, nor on the meta device. Pass masks.bool(), or a label map as labels="
        )
    return masks.bool()


def _verify_binary(masks: Tensor) -> Tensor:
    integers = not masks.is_floating_point()
    # 255 is 1 in mask files; beside 1 it is most likely "ignore".
    one = 255 if integers and any(bool((part == 255).any()) for part in _parts(masks)) else 1
    if all(bool(((part == 0) | (part == one)).all()) for part in _parts(masks)):
        return masks.bool()
    if integers:
        raise ValueError(
            f"masks of {masks.dtype} must hold 0 and 1, or 0 and 255, got {masks.unique()[-8:].tolist()}. "
            "Pass a label map as labels=. Exclude pixels to ignore from all masks. Masks that are weights must be "
            'floating-point, with soft_masks="weighted" or "literal"'
        )
    raise ValueError(
        "masks must hold 0 and 1, got other values. Pass a label map as labels=. For other masks pass masks > 0.5, or "
        'choose soft_masks="weighted" (counts pixels in proportion) or "literal" (multiplies the picture, eq. 10)'
    )


def _parts(regions: Tensor) -> tuple[Tensor, ...]:
    """Split masks (B, R, H, W) or labels (B, H, W) by rows, so that temporaries stay small."""
    if not regions.numel() or torch.compiler.is_compiling():
        return (regions,)
    return regions.split(max(1, _PART * regions.shape[-2] // regions.numel()), dim=-2)


def region_areas(masks: Tensor | None, labels: Tensor | None, num_regions: int, dtype: torch.dtype) -> Tensor:
    """Return the number of pixels, or the sum of the weights, in each region, ``(B, R)``."""
    if masks is not None:
        return torch.stack([part.sum(dim=(-2, -1), dtype=dtype) for part in _parts(masks)]).sum(0)
    assert labels is not None
    area = torch.zeros(labels.shape[0], num_regions + 1, dtype=dtype, device=labels.device)
    for part in _parts(labels):
        index = part.long().flatten(1)
        index = torch.where((index >= 0) & (index < num_regions), index, num_regions)
        area = area.scatter_add(1, index, area.new_ones(()).expand_as(index))
    return area[:, :num_regions]
