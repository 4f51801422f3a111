"""Profile of the histogram loss: a trace, and a table per kernel with its memory traffic."""

from __future__ import annotations

import importlib.util
import time
from collections import defaultdict
from pathlib import Path

import torch
from histograms import BANDWIDTH, BINS, LOSS, LOSS_IN_TORCH, Case, run
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skt_components.histogram import torch_engine
from skt_components.histogram.kernels import Bins


class Meter(TorchDispatchMode):
    """Count calls, seconds and bytes of the arguments and results of every torch operator."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        tensors = {id(x): x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        row = self.rows[str(func.overloadpacket)]
        row[0] += 1
        row[1] += seconds
        row[2] += 0 if func.is_view else sum(x.numel() * x.element_size() for x in tensors.values())
        return result


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    source = torch.ones(1 << 26, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best


def cpu_rows(case: Case) -> dict[str, list[float]]:
    """Return the rows of the operators inside the engine, which is called directly: the custom operator hides them."""
    bins = Bins(BINS, 0.0, 1.0, BANDWIDTH)
    student, teacher, labels, regions = case.student, case.teacher, case.labels, case.masks.shape[1]
    assert labels is not None
    with torch.no_grad(), Meter() as meter:
        table = torch_engine.histogram_difference(student, teacher, labels, regions, bins)
        torch_engine.histogram_gradient(table, student, labels, bins)
    rows = {f"torch: {name}": row for name, row in meter.rows.items()}
    if importlib.util.find_spec("numba"):
        from skt_components.histogram import numba_engine

        moved = student.nbytes + teacher.nbytes + labels.nbytes  # teacher, or gradient
        calls = {
            "numba: forward": lambda: numba_engine.histogram_difference(student, teacher, labels, regions, bins),
            "numba: backward": lambda: numba_engine.histogram_gradient(table, student, labels, bins),
        }
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            rows[name] = [1, time.perf_counter() - start, moved + table.nbytes]
    return rows


def kernel_bytes(name: str, case: Case) -> float:
    """Return the least bytes that a Triton kernel moves; 0 for others."""
    table = case.student.shape[0] * case.masks.shape[1] * case.student.shape[1] * BINS * 8
    picture = case.student.numel() * 4
    assert case.labels is not None
    labels = case.labels.numel()
    least = {
        "plan_kernel": labels * (case.labels.element_size() + 4),
        "difference_kernel": 2 * picture + 4 * labels + table,
        "finish_kernel": 2 * table,
        "gradient_kernel": 2 * picture + labels * case.labels.element_size() + table,
    }
    return least.get(name, 0)


def profile(case: Case, out: Path) -> None:
    """Write ``out``.trace.json and ``out``.md."""
    device = case.student.device
    where = {"labels": case.labels, "num_regions": case.masks.shape[1]}

    def step() -> None:
        run(case.student, lambda x: loss(x, case.teacher, **where))

    # The profiler does not record numba's loops; the table lists them beside the torch engine's operators.
    loss = LOSS if device.type == "cuda" else LOSS_IN_TORCH
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(5):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(f"{out}.trace.json")
    if device.type == "cuda":
        events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
        rows = {
            event.key: [event.count / 5, event.self_device_time_total / 5e6, kernel_bytes(event.key, case)]
            for event in events
        }
    else:
        rows = cpu_rows(case)
    copy = copy_bandwidth(device)
    lines = [f"{tuple(case.student.shape)}, {case.masks.shape[1]} regions; a large copy moves {copy / 1e9:.1f} GB/s\n"]
    lines += ["| kernel | calls | ms | MB | GB/s | of the copy |", "|---|---|---|---|---|---|"]
    for name, (calls, seconds, moved) in sorted(rows.items(), key=lambda row: -row[1][1]):
        if seconds > 0:
            rate = moved / seconds
            traffic = f"{moved / 1e6:.2f} | {rate / 1e9:.1f} | {rate / copy:.0%}" if moved else "| |"
            lines.append(f"| {name} | {calls:.0f} | {1e3 * seconds:.3f} | {traffic} |")
    for engine in ("numba", "torch") if device.type == "cpu" else ("",):
        total = sum(seconds for name, (_, seconds, _) in rows.items() if name.startswith(engine))
        lines.append(f"| {engine or 'all'}, in all | | {1e3 * total:.3f} | | | |")
    Path(f"{out}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
