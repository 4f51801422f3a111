"""Layouts of tapped stages: the output of any layer as a map (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens
_MOST_PADDING = 128  # a network may pad its picture to a multiple of up to this


class StageLayout(NamedTuple):
    """State how the output of a layer becomes a map ``(B, C, H, W)``.

    Attributes:
        axes: "BCHW", "BHWC", tokens "BLC", or of 3-D convolutions "BCNHW" (also B, N, C, H, W) and "BNHWC".
        frames: rows of the batch per sample; more than 1 if a network folds its exposures into the batch.
        frames_first: the rows are (N, B) and not (B, N).
        prefix: leading tokens that are no part of the picture, such as class and register tokens.
    """

    axes: str = "BCHW"
    frames: int = 1
    frames_first: bool = False
    prefix: int = 0

    @property
    def is_plain(self) -> bool:
        """True for one map ``(B, C, H, W)`` or ``(B, H, W, C)``, or the tokens of one picture alone."""
        return len(self.axes) <= 4 and self.frames == 1 and self.prefix == 0

    def count_channels(self, shape: Sequence[int]) -> int:
        """Return the channels of the map that an output of this shape becomes."""
        sizes = dict(zip(self.axes, shape, strict=True))
        return self.frames * sizes.get("N", 1) * sizes["C"]


def find_layouts(shape: Sequence[int], size: tuple[int, int], batch: int, frames: int = 1) -> list[StageLayout]:
    """Return the layouts that an output of this shape can have, the most probable first; none if it is no stage.

    Args:
        shape: shape of the output.
        size: height and width of the picture.
        batch: number of pictures.
        frames: exposures of each; a network may fold them, or all but the reference, into the batch.
    """
    if shape[:1] == (batch,):
        return [StageLayout(axes, prefix=prefix) for axes, prefix in _find_axes(shape[1:], size)]
    folded = {number * batch: number for number in (frames - 1, frames) if number > 1}
    if not shape or shape[0] not in folded:
        return []
    orders = (False, True)
    found = _find_axes(shape[1:], size)
    return [StageLayout(axes, folded[shape[0]], first, prefix) for axes, prefix in found for first in orders]


def is_certain(layouts: Sequence[StageLayout]) -> bool:
    """Return True if there is one layout, and it is a map of one picture."""
    return len(layouts) == 1 and layouts[0].is_plain and layouts[0].axes != "BLC"


def agree(
    layouts: Sequence[StageLayout], shape: Sequence[int], halved: Sequence[StageLayout], halved_shape: Sequence[int]
) -> list[StageLayout]:
    """Return the layouts that also fit the output for a picture of half the height.

    The channels must be the same, and tokens fewer: learned queries are as many as before.

    Args:
        layouts, shape: of a layer's output for a picture.
        halved, halved_shape: of its output for a picture of half the height.
    """
    both = [layout for layout in layouts if layout in halved]
    both = [layout for layout in both if layout.count_channels(shape) == layout.count_channels(halved_shape)]
    return [layout for layout in both if layout.axes != "BLC" or halved_shape[1] < shape[1]]


def halve_and_double(sample: Tensor) -> Tensor:
    """Return the first sample of a batch twice, at half its height: shapes of stages that scale with it are certain."""
    return torch.cat([sample[:1, ..., : sample.shape[-2] // 2, :]] * 2)


def as_feature_map(feature: Tensor, size: tuple[int, int], layout: StageLayout | None = None) -> Tensor:
    """Return a stage's output as ``(B, C, H, W)``; frames become channels.

    Args:
        feature: a map ``(B, C, H, W)``, which is returned unchanged; a channels-last map ``(B, H, W, C)``; tokens
            ``(B, L, C)`` in row-major order; or a map with an axis of frames.
        size: height and width of the picture. The sides of tokens and channels-last maps are the picture's, divided by
            a whole number and rounded up, also after padding the picture to a multiple.
        layout: layout of the stage; None takes the most probable one, ``(B, C, H, W)`` if both fit.

    Raises:
        ValueError: the output is none of these.
    """
    if layout is None:
        found = find_layouts(feature.shape, size, len(feature))
        layout = next((layout for layout in found if layout.is_plain), StageLayout(axes=""))
    axes = layout.axes if len(layout.axes) == feature.ndim else ""
    if axes == "BLC":
        tokens = feature[:, layout.prefix :]
        grid = next((grid for grid in _all_grids(size) if grid[0] * grid[1] == tokens.shape[1]), None)
        feature_map = None if grid is None else tokens.transpose(1, 2).unflatten(2, grid)
    elif axes == "BHWC":
        feature_map = feature.permute(0, 3, 1, 2)
    elif axes == "BCNHW":
        feature_map = feature.flatten(1, 2)
    elif axes == "BNHWC":
        feature_map = feature.permute(0, 1, 4, 2, 3).flatten(1, 2)
    else:
        feature_map = feature if axes == "BCHW" else None
    if feature_map is None or len(feature_map) % layout.frames:
        raise ValueError(
            "the output of a tapped layer must be a map (B, C, H, W) or (B, H, W, C), or tokens (B, L, C) that cover "
            f"the picture {size}, got {tuple(feature.shape)}"
        )
    if layout.frames == 1:
        return feature_map
    if layout.frames_first:
        return feature_map.unflatten(0, (layout.frames, -1)).transpose(0, 1).flatten(1, 2)
    return feature_map.unflatten(0, (-1, layout.frames)).flatten(1, 2)


def _find_axes(shape: Sequence[int], size: tuple[int, int]) -> list[tuple[str, int]]:
    """Return the axes, and the number of leading tokens, that an output of this shape without the batch can have."""
    shape, exact = tuple(shape), set(_grids(size))
    if 0 in shape:
        return []
    if len(shape) == 2:
        lengths, padded = ({height * width for height, width in grids} for grids in (exact, _padded_grids(size)))
        found = [("BLC", prefix) for prefix in range(_MOST_PREFIX_TOKENS + 1) if shape[0] - prefix in lengths]
        return found if ("BLC", 0) in found or shape[0] not in padded else [*found, ("BLC", 0)]
    if len(shape) == 3:
        first, last = shape[1:] in exact, shape[:2] in exact
        if not first and not last:  # convolutions without padding, or a padded picture
            last = shape[:2] in _padded_grids(size) and not _has_aspect(shape[1:], size)
            first = not last and _has_aspect(shape[1:], size)
        return [("BCHW", 0)] * first + [("BHWC", 0)] * last
    if len(shape) == 4:
        return [("BCNHW", 0)] * (shape[2:] in exact) + [("BNHWC", 0)] * (shape[1:3] in exact)
    return []


def _has_aspect(sides: Sequence[int], size: tuple[int, int]) -> bool:
    """Return True if the strides of a map along height and width differ by a factor of 2 at most."""
    return 0.5 <= size[0] * sides[1] / (size[1] * sides[0]) <= 2


def _all_grids(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    yield from _grids(size)
    yield from _padded_grids(size)


@lru_cache(maxsize=256)
def _grids(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the size of the picture divided by 1, 2, 3, ... and rounded up."""
    return tuple((-(-size[0] // stride), -(-size[1] // stride)) for stride in range(1, max(size) + 1))


@lru_cache(maxsize=256)
def _padded_grids(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the size of the picture padded to a multiple, divided by a divisor of it; small multiples first.

    A side is padded to less than twice its length.
    """
    grids = []
    for multiple in range(2, min(_MOST_PADDING, 2 * min(size)) + 1):
        height, width = (-(-side // multiple) * multiple for side in size)
        if height < 2 * size[0] and width < 2 * size[1]:
            grids += [(height // stride, width // stride) for stride in range(1, multiple) if multiple % stride == 0]
    return tuple(grids)
