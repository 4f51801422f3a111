"""Bounds that a reader checks before it makes room for what the header of a file promises."""

from __future__ import annotations

from pathlib import Path

MOST_UNPACKED = 1400
"""Largest plausible compression, bytes a byte: LZW and Deflate reach about as much."""


def check_promise(path: Path, promised: int, *, ratio: int = MOST_UNPACKED) -> None:
    """Raise ValueError if a header promises more bytes of pixels than ``ratio`` times the size of the file."""
    size = path.stat().st_size
    if promised > ratio * size:
        raise ValueError(
            f"{path}: its header promises {promised} bytes of pixels, more than {ratio} times the {size} of the file: "
            "it is damaged, or not a picture"
        )
