"""One scene as its files hold it, and RGBE labels that are decoded where they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skt_components.data.strips import StripFile
from skt_components.data.windows import Window
from skt_components.files.numpy_files import check_mapped

Array = npt.NDArray[Any]
Info = dict[str, Any]

_RGBE_SCALES = np.array([0.0, *(2.0 ** (e - 136) for e in range(1, 256))], np.float32)


class Stored(NamedTuple):
    """A scene in the numbers of its files.

    Attributes:
        folder: where it lies, for messages.
        frames: N arrays (C, h, w) of uint16, or a file of (N, C, h, w).
        label: (C, H, W) floats, or a file of them or of (4, H, W) uint8 RGBE.
        label_file: for messages.
        info: plain numbers and lists that go with it.
    """

    folder: Path
    frames: Sequence[Array] | StripFile
    label: Array | StripFile
    label_file: Path
    info: Info

    @property
    def frame_shapes(self) -> list[tuple[int, ...]]:
        """Shape (C, h, w) of every exposure."""
        if isinstance(self.frames, StripFile):
            return [self.frames.shape[1:]] * self.frames.shape[0]
        return [frame.shape for frame in self.frames]

    def cut_frames(self, window: Window) -> list[Array]:
        """Return a window (C, height, width) of every exposure."""
        if isinstance(self.frames, StripFile):
            return [window.at_origin().cut(frame) for frame in self.frames.cut(window)]
        for frame in self.frames:
            check_mapped(frame)
        return [window.cut(frame) for frame in self.frames]

    def cut_label(self, window: Window) -> npt.NDArray[np.float32]:
        """Return a window (C, height, width) of the label; ValueError if it holds infinities or NaN."""
        if isinstance(self.label, StripFile):
            piece = window.at_origin().cut(self.label.cut(window))
        else:
            check_mapped(self.label)
            piece = window.cut(self.label)
        if piece.dtype == np.uint8:
            return decode_rgbe(piece)
        with np.errstate(over="ignore"):
            label = np.array(piece, np.float32, order="C")
        if not np.isfinite(label.sum(dtype=np.float64)):
            raise ValueError(f"{self.label_file}: the label holds infinite or NaN values")
        return label


def decode_rgbe(rgbe: Array) -> npt.NDArray[np.float32]:
    """Return (3, H, W) of the bytes (4, H, W), as Radiance's files mean them."""
    return rgbe[:3] * _RGBE_SCALES.take(rgbe[3].astype(np.intp))


def encode_rgbe(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    """Return bytes (4, H, W) that decode to exactly this picture (3, H, W), or None if there are none."""
    _, exponents = np.frexp(picture.max(axis=0))
    exponents = np.where(picture.max(axis=0) > 0, exponents + 128, 0)
    if exponents.min() < 0 or exponents.max() > 255:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        mantissas = np.where(exponents > 0, picture / _RGBE_SCALES[exponents], 0)
    if not (mantissas.min() >= 0 and mantissas.max() <= 255):
        return None
    rgbe = np.concatenate([mantissas, exponents[None]]).astype(np.uint8)
    return rgbe if np.array_equal(decode_rgbe(rgbe), picture) else None
