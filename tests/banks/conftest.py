"""FastSAM as ultralytics writes and runs it, made once in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ORACLE = Path(__file__).with_name("ultralytics_oracle.py")


def _run_oracle(variant: str, folder: Path) -> Path:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("needs ultralytics, the oracle: pip install ultralytics-opencv-headless")
    quiet = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_VERBOSE": "0", "YOLO_CONFIG_DIR": str(folder)}
    command = [sys.executable, str(ORACLE), variant, str(folder)]
    done = subprocess.run(command, env={**os.environ, **quiet}, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The oracle's number of threads: sums of several round differently, which a random network amplifies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fastsam_s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with FastSAM-s.pt, seeded random weights in the official format, and reference.pt."""
    return _run_oracle("s", tmp_path_factory.mktemp("fastsam_s"))


@pytest.fixture(scope="session")
def fastsam_x(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of FastSAM-x."""
    return _run_oracle("x", tmp_path_factory.mktemp("fastsam_x"))
