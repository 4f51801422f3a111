"""Overlapping masks as disjoint atoms: pixels that belong to the same masks form one region.

The histogram of a mask is the sum of the histograms of its atoms, which cost as much as one histogram. Finding them
costs as much again, so they are kept while the masks live unchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_PIXELS = 1 << 16  # at a time: the temporaries stay in the cache
_BITS = 32  # masks per key; the other half of 64 bits is for the number of an atom
_TABLE = 1 << 20  # largest table of atoms, in numbers
_KEPT = 8  # results in memory

T = TypeVar("T")


class Atoms(NamedTuple):
    """Disjoint regions of a batch, and the masks that they form."""

    labels: Tensor  # (B, H, W) int16, -1 where a pixel is in no mask
    members: Tensor  # (B, R, U) bool: the atoms of each mask

    def batches(self, numbers: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield pictures, labels and members in groups whose tables, of ``numbers`` an atom, have a bounded size."""
        step = max(1, _TABLE // (max(self.members.shape[2], 1) * numbers))
        for first in range(0, len(self.labels), step):
            pictures = slice(first, first + step)
            yield pictures, self.labels[pictures], self.members[pictures]


def cached_atoms(masks: Tensor, numbers: int, keep: bool) -> Atoms | None:
    """Return the atoms of ``masks`` (B, R, H, W), or None if they are weights or listing each mask's pixels is cheaper.

    ``numbers`` is the size of one atom's part of the table.
    """
    if masks.dtype != torch.bool or not masks.numel() or not numbers:
        return None
    limit = max(masks.shape[1], min(masks.shape[2] * masks.shape[3] // 32, _TABLE // numbers))
    if not keep:
        return find_atoms(masks, limit)
    return memoize_by_tensor(("atoms", limit), masks, lambda: find_atoms(masks, limit))


def find_atoms(masks: Tensor, limit: int) -> Atoms | None:
    """Return the atoms of bool ``masks`` (B, R, H, W), or None where a picture has more than ``limit``."""
    pictures = []
    for picture in masks.flatten(2):
        found = _find(picture, min(limit, torch.iinfo(torch.int16).max))
        if found is None:
            return None
        pictures.append(found)
    largest = max(members.shape[1] for _, members in pictures)
    padded = [torch.nn.functional.pad(members, (0, largest - members.shape[1])) for _, members in pictures]
    labels = torch.stack([labels for labels, _ in pictures])
    return Atoms(labels.unflatten(1, masks.shape[2:]), torch.stack(padded))


def _find(masks: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
    """Return each pixel's atom (P), -1 for none, and the masks of each atom (R, U), of ``masks`` (R, P)."""
    pixels = masks.shape[1]
    if pixels <= _PIXELS:
        return _find_at_once(masks, limit)
    parts = []
    for part in masks.split(_PIXELS, dim=1):
        found = _find(part, limit)
        if found is None:
            return None
        parts.append(found)
    atoms = torch.cat([members for _, members in parts], dim=1)
    again = _find if atoms.shape[1] <= pixels // 2 else _find_at_once
    merged = again(atoms, limit)  # the atoms of all parts as pixels
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
        if len(kinds) > limit + 1:  # one may stand for the pixels of no mask
            return None
    one_pixel = key.new_empty(len(kinds)).scatter_(0, key, torch.arange(len(key), device=key.device))
    members = masks[:, one_pixel]
    some = members.any(0)
    number = torch.where(some, some.cumsum(0) - 1, -1).to(torch.int16)
    members = members[:, some]
    return (number[key], members) if members.shape[1] <= limit else None


def sum_histograms(members: Tensor, table: Tensor) -> Tensor:
    """Sum the histograms (B, U, C, N) that each row of ``members`` (B, R, U) selects; NaN stays in these rows."""
    members, broken = members.to(table.dtype), table.isnan().any(-1)  # 0 times NaN would be NaN in all rows
    total = members @ table.masked_fill(broken[..., None], 0).flatten(2)
    total = total.unflatten(2, table.shape[2:])
    return total.masked_fill((members @ broken.to(table.dtype) > 0)[..., None], float("nan"))


_memory: dict[tuple, tuple[StorageWeakRef, object]] = {}
_lock = threading.Lock()


def memoize_by_tensor(kind: object, tensor: Tensor, make: Callable[[], T]) -> T:
    """Return ``make()``, or its earlier result for this ``kind`` if torch has not counted a change of ``tensor``."""
    if tensor.is_inference() or torch.compiler.is_compiling():  # no count of changes, no tracing of weak references
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
