"""Side-by-side timing: methods take turns in one process, so that a busy moment hits all of them."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a timed call has really ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    methods: dict[str, Callable[[], object]], device: torch.device, rounds: int = 7, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every method in every round."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for index in range(warmup + rounds):
        for name, method in methods.items():
            synchronize(device)
            start = time.perf_counter()
            method()
            synchronize(device)
            if index >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(times: dict[str, list[float]], unit: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of each method, and the median over the rounds of its ratio to ``unit``."""
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(values), 3),
            f"ratio_to_{unit}": round(statistics.median(a / b for a, b in zip(values, times[unit], strict=True)), 3),
        }
        for name, values in times.items()
    }


def result_file(folder: Path, suite: str, device: object) -> Path:
    """Return the path ``<suite>--<device>.json``."""
    name = re.sub(r"\W+", "-", str(device)).strip("-").lower()
    return folder / f"{suite}--{name}.json"


def write_result(folder: Path, suite: str, result: dict[str, object]) -> None:
    """Write ``<suite>--<device>.json``, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    file = result_file(folder, suite, result["device"])
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {file}")


def environment(device: torch.device) -> dict[str, object]:
    """Device, versions and commit, to stand beside every number."""
    packages = {}
    for name in ("torch", "triton", "numba", "timm", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "packages": packages,
        "commit": git.stdout.strip() or "unknown",
    }
