"""Resize pictures for the network of a bank, and crop its feature maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn import functional as F

from skt_components.ops.checks import float_dtype


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Enlarge pictures bilinearly."""
    return images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until H and W are multiples of ``multiple``."""
    height, width = images.shape[-2:]
    # Not -width % multiple, on which torch.compile with dynamic shapes fails.
    padding = (0, (multiple - width % multiple) % multiple, 0, (multiple - height % multiple) % multiple)
    return F.pad(images, padding, mode="replicate") if any(padding) else images


def crop_maps(maps: Iterable[Tensor], size: tuple[int, int], reduction: Sequence[int]) -> list[Tensor]:
    """Crop maps of strides ``reduction`` to ``ceil(H / s)`` by ``ceil(W / s)``; float32 (float64 if they are)."""
    height, width = size
    return [
        m[..., : -(-height // s), : -(-width // s)].to(float_dtype(m)) for m, s in zip(maps, reduction, strict=True)
    ]
