"""Regions and bandwidths for the tests of the soft histogram and its losses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

# Window up to 1/256, moments above (256 bins on [0, 1]).
BANDWIDTHS = (1 / 400, 1 / 256, 1 / 64, 0.05, 0.5)
every_bandwidth = pytest.mark.parametrize("bandwidth", BANDWIDTHS)
both_paths = pytest.mark.parametrize("bandwidth", [1 / 400, 0.5], ids=["window", "moments"])
# For values and gradients, which each engine computes; everything else runs with the one that is installed.
both_engines = pytest.mark.usefixtures("cpu_engine")
seeds = st.integers(0, 10**6)


def regions(batch: int, height: int, width: int, count: int = 4, seed: int = 0) -> Tensor:
    """Overlapping bool masks; the last is empty, the first of the last picture too."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(batch, count, height, width, generator=generator) > 0.6
    masks[:, -1] = masks[-1, 0] = False
    return masks


def region_map(batch: int, height: int, width: int, count: int = 4, seed: int = 0) -> Tensor:
    """Labels in [-1, count]: some below and some above the valid ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, count + 1, (batch, height, width), generator=generator)


def one_hot(labels: Tensor, count: int) -> Tensor:
    return labels[:, None] == torch.arange(count)[:, None, None]
