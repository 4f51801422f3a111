"""Crops of stored pictures, rotated and mirrored; a crop of packed RAW keeps the phase of the color filters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skt_components.data.seeding import integer

Array = npt.NDArray[Any]

AUGMENTATIONS = ("none", "dihedral", "planes")


def spread(number: int) -> tuple[float, float]:
    """Return point ``number`` of a fixed sequence that fills the unit square evenly (Roberts' R2)."""
    plastic = 1.32471795724474602596
    return (0.5 + number / plastic) % 1, (0.5 + number / plastic**2) % 1


@dataclasses.dataclass(frozen=True)
class Window:
    """A place in a picture and one of the eight symmetries of the square.

    With ``mosaic`` the symmetry applies to the mosaic of packed RAW: a flip then needs one more row or column,
    and a transposition exchanges Gr and Gb.
    """

    top: int
    left: int
    height: int  # of the result
    width: int
    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False  # after the flips
    mosaic: bool = False

    def times(self, scale: int) -> Window:
        """Return the same place in a picture ``scale`` times as large."""
        places = {name: scale * getattr(self, name) for name in ("top", "left", "height", "width")}
        return dataclasses.replace(self, **places)

    def source(self) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the region that :meth:`cut` reads."""
        height, width = (self.width, self.height) if self.transpose else (self.height, self.width)
        height += self.mosaic and self.flip_rows
        width += self.mosaic and self.flip_columns
        return self.top, self.left, height, width

    def at_origin(self) -> Window:
        """Return the window that cuts from the region :meth:`source` what this one cuts from the whole picture."""
        return dataclasses.replace(self, top=0, left=0)

    def cut(self, picture: Array) -> Array:
        """Return (C, height, width), a view where one is possible."""
        if not self.mosaic:
            return self._symmetric(picture, 0, 0)
        # R, Gr, Gb, B lie on rows 0, 0, 1, 1 and columns 0, 1, 0, 1 of each 2x2 block. Mirrored about one of its even
        # columns, the mosaic has red on even columns again: R[k] comes from R[w - k], Gr[k] from Gr[w - 1 - k].
        planes = [self._symmetric(picture[i], *divmod(i, 2)) for i in range(4)]
        if self.transpose:
            planes[1], planes[2] = planes[2], planes[1]
        return np.stack(planes)

    def _symmetric(self, picture: Array, row: int, column: int) -> Array:
        height, width = (self.width, self.height) if self.transpose else (self.height, self.width)
        top = self.top + (self.mosaic and self.flip_rows and row == 0)
        left = self.left + (self.mosaic and self.flip_columns and column == 0)
        piece = picture[..., top : top + height, left : left + width]
        piece = piece[..., ::-1, :] if self.flip_rows else piece
        piece = piece[..., ::-1] if self.flip_columns else piece
        return np.swapaxes(piece, -1, -2) if self.transpose else piece


def fixed_window(size: tuple[int, int], crop: tuple[int, int], border: int, number: int) -> Window:
    """Return window ``number`` of a sequence that spreads evenly over the picture."""
    rows, columns = (full - 2 * border - part for full, part in zip(size, crop, strict=True))
    u, v = spread(number)
    return Window(border + round(u * rows), border + round(v * columns), *crop)


def random_window(
    size: tuple[int, int],
    crop: tuple[int, int],
    border: int,
    generator: torch.Generator,
    *,
    augment: str,
    mosaic: bool,
    transpose_only: bool = False,
) -> Window:
    """Draw a window, uniform over its positions, with a symmetry that fits into the picture.

    ``mosaic`` is True for packed RAW, whose planes the augmentation "planes" flips as if they were colors.
    """
    flips = [False, False, False]
    if augment != "none":
        flips = [bool(integer(generator, 0, 1)) for _ in range(3)]
        flips[:2] = [flip and not transpose_only for flip in flips[:2]]
    phase = mosaic and augment == "dihedral"
    room = [full - 2 * border for full in size]
    transpose = flips[2] and crop[1] <= room[0] and crop[0] <= room[1]
    taken = crop[::-1] if transpose else crop
    flip_rows, flip_columns = (
        flip and part + phase <= full for flip, part, full in zip(flips[:2], taken, room, strict=True)
    )
    top, left = (
        border + integer(generator, 0, full - part - (phase and flip))
        for full, part, flip in zip(room, taken, (flip_rows, flip_columns), strict=True)
    )
    return Window(top, left, *crop, flip_rows, flip_columns, transpose, phase)
