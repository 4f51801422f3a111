"""Random numbers that depend on the identity of a sample, not on the process that draws it."""

from __future__ import annotations

import hashlib
import math

import torch


def make_generator(split: str, *key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by the key; training and validation never share a seed.

    The key is the identity of the sample, such as seed, epoch and index. Torch's CPU generator keeps 32 bits of the
    seed; the lowest is set for the split "val", so the two streams are disjoint.
    """
    return torch.Generator().manual_seed((hash_key(*key) & ~1) | (split == "val"))


def hash_key(*key: int | str) -> int:
    """Return 32 bits that depend on the key alone, the same in every process and run."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).digest(), "little")


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def log_uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high), uniform in its logarithm."""
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw one whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())
