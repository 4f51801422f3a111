"""Comparison of metrics with their originals. The largest differences are the table of docs/calibration.md.

SKT_CALIBRATION=benchmarks/results/calibration--cpu-x86_64.json python -m pytest tests/metrics
writes them, with the versions of the originals. Some need SKT_HDRVDP2_DIR or the extras lpips and cvvdp.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from skt_components.files.packages import library_versions, package_versions

ORIGINALS = ("cvvdp", "lpips", "scikit-image", "scipy", "torchvision")
_DIFFERENCES: dict[str, list[float]] = defaultdict(list)


@pytest.fixture
def agrees_with_original() -> Callable[..., None]:
    """Return a function that asserts that a value is the original's, and keeps the difference.

    It takes a name of the comparison, our value, the original's, and as ``abs`` or ``rel`` the allowed difference.
    """

    def check(name: str, found: float, expected: float, **tolerance: float) -> None:
        assert found == pytest.approx(expected, **{"abs": 0, **tolerance})
        _DIFFERENCES[name].append(abs(found - expected) / (abs(expected) or 1 if "rel" in tolerance else 1))

    return check


def pytest_sessionfinish() -> None:
    if path := os.environ.get("SKT_CALIBRATION"):
        rows = {name: {"comparisons": len(d), "largest": max(d)} for name, d in sorted(_DIFFERENCES.items())}
        content = {"versions": library_versions() | package_versions(ORIGINALS), "rows": rows}
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
