"""The quickstart runs, and its loss falls."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest


def test_quickstart_learns(call_script: Callable, capsys: pytest.CaptureFixture) -> None:
    call_script("quickstart.py", [])
    losses = [float(x) for x in re.findall(r"histogram loss (\d+\.\d+)  mean", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < 0.05 * losses[0]
