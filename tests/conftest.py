"""Shared fixtures: the HDR photographs, the device, determinism."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


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
