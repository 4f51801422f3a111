"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import skt_components as skt


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(code.strip().splitlines()) <= 12
    small = code.replace("AHDRNet()", "AHDRNet(features=8, num_layers=2, growth=4)").replace("(64, 64)", "(8, 32)")
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "README.md", "exec"), {})
    state = torch.load("network.pt", weights_only=True)
    assert state.keys() == skt.AHDRNet(features=8, num_layers=2, growth=4).state_dict().keys()
