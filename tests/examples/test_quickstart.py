"""The quickstart runs, and its loss falls."""

from __future__ import annotations

import re
from collections.abc import Callable


def test_quickstart_learns(run_script: Callable) -> None:
    done = run_script("quickstart.py", timeout=120)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"histogram loss (\d+\.\d+)  mean", done.stdout)]
    assert len(losses) == 5
    assert losses[-1] < 0.05 * losses[0]
