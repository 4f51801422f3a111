"""Shared fixtures: the HDR photographs, FastSAM as ultralytics writes it, the device, determinism."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import subprocess
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker and for what it starts, before torch makes more
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from skt_components.histogram import checks


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while modules are imported, nor later among their objects, which all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _signals() -> None:
    """Handle signals as in a terminal, also where the tests run in the background, which ignores some."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGHUP", "SIGUSR1"):
        if signal.getsignal(getattr(signal, name, signal.SIGTERM)) == signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """A seed, and no memory of what was compiled: sizes seen before make later shapes dynamic, which is slow."""
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(params=["numba", "torch"])
def cpu_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select the engine for histograms on the CPU: numba, or torch as if numba were not installed."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setitem(checks._INSTALLED, "numba", request.param == "numba")
    return request.param


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


@pytest.fixture(scope="session")
def fastsam_s(_ultralytics: Path) -> Path:
    """Folder with FastSAM-s.pt, seeded random weights in the official format, and reference.pt."""
    return _ultralytics / "s"


@pytest.fixture(scope="session")
def yolo11n(_ultralytics: Path) -> Path:
    """Folder with yolo11n-seg.pt, a seeded random YOLO11 of three classes, and reference.pt."""
    return _ultralytics / "11n"


@pytest.fixture(scope="session")
def fastsam_x(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of FastSAM-x."""
    return _make_once(tmp_path_factory, "fastsam_x", lambda folder: _run_oracle(folder, "x")) / "x"


@pytest.fixture(scope="session")
def _ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both small networks, made by one process, whose imports take as long as its work."""
    return _make_once(tmp_path_factory, "ultralytics", lambda folder: _run_oracle(folder, "s", "11n"))


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Share a folder between all tests and worker processes: ``make_once(name, make)`` returns what was filled."""
    return partial(_make_once, tmp_path_factory)


def _make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that ``make(folder)`` filled, once for all worker processes of this test run."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make(folder := factory.mktemp(name))
        return folder
    import fcntl

    folder = factory.getbasetemp().parent / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(unfinished := factory.mktemp(name))
            unfinished.rename(folder)
    return folder


def _run_oracle(folder: Path, *variants: str) -> None:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("needs ultralytics, the oracle: pip install ultralytics-opencv-headless")
    quiet = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_VERBOSE": "0", "YOLO_CONFIG_DIR": str(folder)}
    command = [sys.executable, str(Path(__file__).with_name("ultralytics_oracle.py")), str(folder), *variants]
    done = subprocess.run(command, env={**os.environ, **quiet}, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
