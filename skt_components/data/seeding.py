"""Randomness that depends on what a sample is, never on who draws it."""

from __future__ import annotations

import hashlib
import math

import torch


def make_generator(split: str, *key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by the key; training and validation never share a seed.

    Torch's CPU generator keeps 32 bits of the seed; the lowest of them is the split, so the two streams are
    disjoint whatever the hash gives.

    Args:
        split: ``"val"`` takes the odd seeds, any other name the even ones.
        key: what identifies the sample, such as seed, epoch and index.
    """
    return torch.Generator().manual_seed((hash_key(*key) & ~1) | (split == "val"))


def hash_key(*key: int | str) -> int:
    """Return 32 bits that depend on the key alone, the same in every process and run."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def log_uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high), uniform in its logarithm."""
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw one whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


class SharedEpoch:
    """An epoch number in shared memory, so that persistent loader workers see it change."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self._value = state["_value"].share_memory_()  # a copy made by plain pickle is private

    def get(self) -> int:
        """Return the epoch that was set last; 0 at first."""
        return int(self._value.item())

    def set(self, epoch: int) -> None:
        """Set the epoch for this process and its loader workers."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be a whole number >= 0, got {epoch!r}")
        self._value.fill_(epoch)


def check_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels; raise ValueError unless both are whole numbers of at least 8."""
    pair = (size, size) if isinstance(size, int) else size
    try:
        height, width = pair
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number or (height, width), got {size!r}") from None
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 8 for v in (height, width)):
        raise ValueError(f"{name} must be whole numbers of at least 8 pixels, got {size!r}")
    return height, width
