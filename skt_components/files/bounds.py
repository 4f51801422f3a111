"""Bounds that a reader checks before it makes room for what the header of a file promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

MOST_UNPACKED = 1400
"""Largest plausible compression, bytes a byte: LZW and Deflate reach about as much."""


def check_promise(path: Path, promised: int, *, ratio: int = MOST_UNPACKED) -> None:
    """Raise ValueError if a header promises more bytes of pixels than ``ratio`` times the size of the file."""
    size = path.stat().st_size
    if promised > ratio * size:
        raise ValueError(
            f"{path}: its header promises {promised} bytes of pixels, more than {ratio} times the {size} bytes of the "
            "file: it is damaged, or not a picture"
        )


def check_picture_size(path: Path) -> None:
    """Raise ValueError if the header of a PNG or JPEG file promises more pixels than the file can hold."""
    for width, height, bits in _sizes(path.read_bytes()):
        check_promise(path, math.ceil(width * height * bits / 8))


def _sizes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield width, height and bits of a pixel for a PNG file, and for each frame of a JPEG file."""
    if data.startswith(b"\x89PNG") and len(data) >= 26:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(data[25], 4)
        yield int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), channels * data[24]
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            yield width, height, data[at + 4] * data[at + 9]
        if marker == 0xDA:  # the pixels follow
            return
        at += 1 if marker == 0xFF else 2 + length
