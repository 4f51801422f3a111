"""Digests of files."""

from __future__ import annotations

import hashlib
import os
from typing import Any

_BLOCK = 2**20  # bytes read at a time


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; raise OSError if it cannot be read."""
    return _digest(path, hashlib.sha256())


def file_checksum(path: str | os.PathLike[str]) -> str:
    """Return the 128-bit BLAKE2b of a file as 32 hexadecimal digits: faster than SHA-256, for large pictures."""
    return _digest(path, hashlib.blake2b(digest_size=16))


def _digest(path: str | os.PathLike[str], digest: Any) -> str:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
