"""The folders that the study of the boost and its tests import from."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "boost"), str(BENCHMARKS), str(Path(__file__).parent)]
