"""The benchmarks of inference and of a GPU, on small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def run(script: str, *arguments: object, status: int = 0) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_ways_of_inference_are_compared_with_the_first(tmp_path: Path) -> None:
    ways = ("whole picture", "tiles, huge pages")
    sizes = ("--size", 64, 96, "--tile", 48, "--overlap", 16)
    run("inference.py", "--networks", "ahdrnet-small", "--ways", *ways, *sizes, "--out", tmp_path)
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text(encoding="utf-8"))["networks"]["ahdrnet-small"]
    assert rows["whole picture"]["times_as_fast"] == 1
    assert rows["whole picture"]["largest_difference"] == 0
    assert rows["tiles, huge pages"]["largest_difference"] > 0, "the overlap is narrower than what the network sees"


def test_a_rehearsal_goes_on_where_the_time_was_over(tmp_path: Path) -> None:
    rehearse = ("gpu.py", "--rehearse", "--stages", "bandwidth", "hdrvdp2", "--out", tmp_path)
    assert "left: bandwidth, hdrvdp2" in run(*rehearse, "--minutes", 0)
    shown = run(*rehearse)
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))["stages"]
    assert found["bandwidth"]["bandwidth"]["copy GB/s"] > 0
    assert found["hdrvdp2"]["batch 1, grad"]["Q"] == found["hdrvdp2"]["batch 1, value"]["Q"]
    assert "batch 1, grad" in shown
    assert "batch" not in run(*rehearse), "nothing is measured again"
    assert json.loads(file.read_text(encoding="utf-8"))["stages"] == found


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    assert "--stages must be of bandwidth, histogram" in run("gpu.py", "--stages", "speed", status=1)
    if not torch.cuda.is_available():
        assert "no CUDA device; --rehearse" in run("gpu.py", "--out", tmp_path, status=1)
    assert not list(tmp_path.iterdir())
