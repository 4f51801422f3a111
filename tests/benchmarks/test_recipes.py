"""The search for a recipe, and the scores of the pretrained networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout


def test_a_search_ends_with_finalists_and_continues(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    search = [BENCHMARKS / "recipes.py", "--seconds", 3, "--trials", 4, "--seeds", 2, "--samples", 6, "--out", out]
    shown = run(*search)
    found = json.loads(out.read_text(encoding="utf-8"))
    levels = [key.split("/")[0] for key in found["runs"]]
    assert levels.count("0") == 4
    assert levels.count("2") >= 4, "two finalists at least, the plain recipe and the default, with two seeds"
    assert set(found["baselines"]) == {"reference exposure", "exposure merge"}
    assert '"start": "random"' in shown
    assert "level" not in run(*search), "nothing is trained again"
    assert json.loads(out.read_text(encoding="utf-8"))["runs"] == found["runs"]


def test_pretrained_networks_are_scored_beside_the_baselines(tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    shown = run(BENCHMARKS / "pretrained.py", "--networks", "ahdrnet-small", "--out", out)
    rows = {row["network"]: row["means"]["PSNR-mu"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["reference exposure", "exposure merge", "ahdrnet-small"]
    assert rows["ahdrnet-small"] > rows["reference exposure"] + 1
    assert "| procedural scenes, sRGB | exposure merge |" in shown
