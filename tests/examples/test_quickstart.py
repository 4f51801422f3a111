"""The quickstart runs, and its loss falls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_quickstart_learns() -> None:
    script = Path(__file__).parents[2] / "examples" / "quickstart.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    losses = [float(x) for x in re.findall(r"histogram loss (\d+\.\d+)  mean", done.stdout)]
    assert len(losses) == 5
    assert losses[-1] < 0.05 * losses[0]
