"""Overlapping masks as disjoint atoms: pixels that belong to the same masks form one region.

The histogram of a mask is the sum of those of its atoms, exactly, and disjoint regions cost no more than one. Finding
the atoms costs about as much as one histogram, so they are kept as long as the masks live unchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_PIXELS = 1 << 16  # at a time: the temporaries stay in the cache
_BITS = 32  # masks per key; the other half of 64 bits is for the number of an atom
_KEPT = 8  # results that are remembered

T = TypeVar("T")


class Atoms(NamedTuple):
    """Disjoint regions of a batch, and the masks they make up."""

    labels: Tensor  # (B, P) int16, -1 where a pixel is in no mask
    members: Tensor  # (B, R, U) bool: which atoms a mask consists of


def find_atoms(masks: Tensor, limit: int) -> Atoms | None:
    """Return the atoms of ``masks`` (B, R, P) bool, or None where a picture has more than ``limit``."""
    pictures = []
    for picture in masks:
        found = _find(picture, min(limit, torch.iinfo(torch.int16).max))
        if found is None:
            return None
        pictures.append(found)
    largest = max(members.shape[1] for _, members in pictures)
    padded = [torch.nn.functional.pad(members, (0, largest - members.shape[1])) for _, members in pictures]
    return Atoms(torch.stack([labels for labels, _ in pictures]), torch.stack(padded))


def _find(masks: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
    """Return each pixel's atom (P), -1 for none, and the masks of each atom (R, U), of ``masks`` (R, P)."""
    pixels = masks.shape[1]
    if pixels <= _PIXELS:
        return _find_at_once(masks, limit)
    parts = []
    for share in masks.split(_PIXELS, dim=1):
        found = _find(share, limit)
        if found is None:
            return None
        parts.append(found)
    atoms = torch.cat([members for _, members in parts], dim=1)
    again = _find if atoms.shape[1] <= pixels // 2 else _find_at_once
    merged = again(atoms, limit)  # the atoms of all shares as pixels
    if merged is None:
        return None
    labels = torch.empty(pixels, dtype=torch.int16, device=masks.device)
    numbers = merged[0].split([members.shape[1] for _, members in parts])
    for target, (local, _), number in zip(labels.split(_PIXELS), parts, numbers, strict=True):
        target.copy_(torch.cat([number, number.new_tensor([-1])])[local.long()])  # -1 takes the last
    return labels, merged[1]


def _find_at_once(masks: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
    key = torch.zeros(masks.shape[1], dtype=torch.int64, device=masks.device)
    for group in masks.split(_BITS):
        key <<= _BITS
        for bit, mask in enumerate(group):
            key.add_(mask, alpha=1 << bit)
        kinds, key = torch.unique(key, return_inverse=True)
        if len(kinds) > limit + 1:  # maybe one for the pixels of no mask
            return None
    one_pixel = key.new_empty(len(kinds)).scatter_(0, key, torch.arange(len(key), device=key.device))
    members = masks[:, one_pixel]
    some = members.any(0)
    number = torch.where(some, some.cumsum(0) - 1, -1).to(torch.int16)
    members = members[:, some]
    return (number[key], members) if members.shape[1] <= limit else None


_memory: dict[tuple, tuple[StorageWeakRef, object]] = {}
_lock = threading.Lock()


def remember(kind: object, tensor: Tensor, make: Callable[[], T]) -> T:
    """Return ``make()``, from memory where it was made for this ``tensor`` and torch has not changed it since.

    Changes that torch does not count (through NumPy, ``.data``, or by a kernel of one's own) go unnoticed.
    """
    if tensor.is_inference() or torch.compiler.is_compiling():  # torch counts no changes, or traces no weak references
        return make()
    storage = StorageWeakRef(tensor.untyped_storage())  # holds the address, not the memory
    place = (storage.cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    key = (kind, *place, tensor._version)
    with _lock:
        for old in [old for old, (ref, _) in _memory.items() if ref.expired()]:
            del _memory[old]
        found = _memory.pop(key, None)
    result = make() if found is None else found[1]
    with _lock:
        _memory[key] = (storage, result)
        for old in list(_memory)[:-_KEPT]:
            del _memory[old]
    return result  # type: ignore[return-value]
