"""pytest-benchmark suite of the histogram loss: `python -m pytest benchmarks --benchmark-only`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from cases import histogram_methods
from timing import environment, interleave, ratios, synchronize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("regions", [1, 16, 64])
@pytest.mark.parametrize("shape", [(1, 3, 256, 256), (4, 3, 256, 256)], ids=lambda s: "x".join(map(str, s)))
def test_histogram_loss(benchmark, shape: tuple[int, ...], regions: int) -> None:
    methods = histogram_methods(shape, regions, DEVICE)

    def timed() -> None:
        methods["ours"]()
        synchronize(DEVICE)

    benchmark.extra_info |= environment(DEVICE)
    benchmark(timed)


def test_histogram_loss_against_dense(benchmark) -> None:
    methods = histogram_methods((1, 3, 256, 256), 1, DEVICE)
    loss, gradient = methods["ours"]()
    for name, method in methods.items():
        other_loss, other_gradient = method()
        assert torch.allclose(loss, other_loss, rtol=1e-4), name
        assert (gradient - other_gradient).norm() <= 1e-3 * gradient.norm(), name
    times = benchmark.pedantic(interleave, (methods, DEVICE, 3, 1), rounds=1)
    benchmark.extra_info |= {**environment(DEVICE), "methods": ratios(times, "ours")}
    for name, row in benchmark.extra_info["methods"].items():
        print(f"{name}: {row}")
