"""The search for a recipe, and the scores of the pretrained networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pretrained
import pytest
import recipes
import torch

pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Callable[..., str]]:
    """Return a function ``run(script, *arguments)``. It runs the script in this process and returns its output."""

    def call(script: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def test_a_search_ends_with_finalists_and_continues(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SHAPE", (2, 16)), ("LARGEST_CROP", 16)):
        monkeypatch.setattr(recipes, name, value)
    monkeypatch.setitem(recipes.SPACE, "shape", ((2, 16), (4, 8)))
    out = tmp_path / "found.json"
    search = [recipes, "--seconds", 0.3, "--trials", 4, "--seeds", 2, "--samples", 6, "--val-samples", 2, "--out", out]
    shown = run(*search)
    found = json.loads(out.read_text(encoding="utf-8"))
    levels = [key.split("/")[0] for key in found["runs"]]
    assert levels.count("0") == 4
    assert levels.count("2") >= 4, "two finalists at least, the plain recipe and the default, with two seeds"
    assert set(found["baselines"]) == {"reference exposure", "exposure merge"}
    assert '"start": "random"' in shown
    assert "level" not in run(*search), "nothing is trained again"
    assert json.loads(out.read_text(encoding="utf-8"))["runs"] == found["runs"]


def test_pretrained_networks_are_scored_beside_the_baselines(run: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    shown = run(pretrained, "--networks", "ahdrnet-small", "--out", out)
    rows = {row["network"]: row["means"]["PSNR-mu"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["reference exposure", "exposure merge", "ahdrnet-small"]
    assert rows["ahdrnet-small"] > rows["reference exposure"] + 1
    assert "| procedural scenes, sRGB | exposure merge |" in shown
