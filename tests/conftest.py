"""Shared fixtures: the HDR photographs, the device, determinism."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker and for what it starts, before torch makes more
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from skt_components.histogram import checks as _histogram_checks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["numba", "torch"])
def cpu_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """What computes the histograms of pictures on the CPU: with numba, or as if it were not installed."""
    if request.param == "numba":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_histogram_checks._INSTALLED, "numba", request.param == "numba")
        yield request.param


@pytest.fixture(scope="session")
def hdri_dir() -> Path:
    """Folder of real HDR photographs; tests that need it are skipped without it."""
    folder = os.environ.get("SKT_HDRI_DIR")
    if not folder:
        pytest.skip("set SKT_HDRI_DIR to a folder of HDR photographs")
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"SKT_HDRI_DIR={folder} is not a folder")
    return path
