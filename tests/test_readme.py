"""The README's Python examples run as they stand, and print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import skt_components as skt

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), flags=re.S)


def test_the_loss_alone_prints_what_the_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLES[0], "README.md", "exec"), {})
    (wanted,) = re.findall(r"print\(.*\)  # (.*)", EXAMPLES[0])
    assert capsys.readouterr().out.strip() == wanted


def test_a_network_trains_in_the_framework_in_a_dozen_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(EXAMPLES[1].strip().splitlines()) <= 12
    small = (
        EXAMPLES[1].replace("AHDRNet()", "AHDRNet(features=8, num_layers=2, growth=4)").replace("(64, 64)", "(8, 32)")
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "README.md", "exec"), {})
    state = torch.load("network.pt", weights_only=True)
    assert state.keys() == skt.AHDRNet(features=8, num_layers=2, growth=4).state_dict().keys()
