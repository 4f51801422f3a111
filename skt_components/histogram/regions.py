"""Regions of a histogram loss: what they may be, and how large they are."""

from __future__ import annotations

import torch
from torch import Tensor

from skt_components.histogram.mask_atoms import remember

_SHARE = 1 << 18  # numbers of masks or labels to look at together


def check_regions(
    masks: Tensor | None, labels: Tensor | None, num_regions: int | None, soft_masks: str | None
) -> Tensor | None:
    """Return the masks, bool where they are binary; raise unless there are either masks or labels."""
    if masks is None and labels is None:
        raise ValueError("semantic_histogram_loss needs masks or labels; histogram_loss has no regions")
    if masks is not None and labels is not None:
        raise ValueError("give masks or labels, not both")
    if masks is None:
        return None
    if num_regions is not None:
        raise ValueError("num_regions goes with labels; masks have as many regions as they say")
    if not isinstance(masks, Tensor):
        raise TypeError(f"masks must be a tensor (B, R, H, W), got {type(masks).__name__}")
    if masks.requires_grad and soft_masks != "literal":
        raise ValueError("masks must not require a gradient: it is not computed; pass masks.detach()")
    if masks.dtype == torch.bool or (soft_masks is not None and masks.is_floating_point()):
        return masks
    if torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(masks):
        # Not looked at: as weights, masks of 0 and 1 mean the same, and others are not rounded up to 1.
        if masks.is_floating_point():
            return masks
        if masks.dtype != torch.uint8:  # without fullgraph=True the loss then runs uncompiled, and verifies them
            raise ValueError(
                f"masks inside torch.compile and torch.vmap must be bool, floating-point or uint8, got {masks.dtype}: "
                "nobody can look there whether they are a label map, which goes into labels=; pass masks.bool()"
            )
        return masks.bool()
    return remember("binary", masks, lambda: _binary(masks))


def _binary(masks: Tensor) -> Tensor:
    integers = not masks.is_floating_point()
    # 255 is 1 in mask files; beside 1 it is most likely "ignore".
    one = 255 if integers and any(bool((part == 255).any()) for part in _shares(masks)) else 1
    for part in _shares(masks):
        if not bool(((part == 0) | (part == one)).all()):
            if integers:
                raise ValueError(
                    f"masks of {masks.dtype} must hold 0 and 1, or 0 and 255, got {masks.unique()[-8:].tolist()}. "
                    "A label map goes into labels=, a pixel to ignore into no mask; masks that are weights must be "
                    'floating-point, with soft_masks="weighted" or "literal"'
                )
            raise ValueError(
                "masks hold values other than 0 and 1. A label map goes into labels=; otherwise pass masks > 0.5, or "
                'say which loss is meant with soft_masks="weighted" (pixels counted in proportion) or "literal" (the '
                "picture multiplied, eq. 10)"
            )
    return masks.bool()


def _shares(regions: Tensor) -> tuple[Tensor, ...]:
    """Return some rows after the other of masks (B, R, H, W) or labels (B, H, W): temporaries stay small."""
    if regions.ndim < 3 or not regions.numel() or torch.compiler.is_compiling():
        return (regions,)
    return regions.split(max(1, _SHARE * regions.shape[-2] // regions.numel()), dim=-2)


def normalize(
    difference: Tensor, student: Tensor, masks: Tensor | None, labels: Tensor | None, normalization: str
) -> Tensor:
    """Return histograms (B, R, C, N) divided by the pixels that they count, as ``normalization`` says."""
    if normalization == "none":
        return difference
    pixels = student.shape[-2] * student.shape[-1]
    if normalization == "pixels" or (masks is None and labels is None):
        return difference / max(pixels, 1)
    if masks is not None:
        area = torch.stack([part.sum(dim=(-2, -1), dtype=difference.dtype) for part in _shares(masks)]).sum(0)
    else:
        assert labels is not None
        batch, regions = difference.shape[:2]
        area = difference.new_zeros(batch, regions + 1)
        for part in _shares(labels):
            index = part.long().flatten(1)
            index = torch.where((index >= 0) & (index < regions), index, regions)
            area = area.scatter_add(1, index, area.new_ones(()).expand_as(index))
        area = area[:, :regions]
    return difference / torch.where(area > 0, area, 1)[:, :, None, None]
