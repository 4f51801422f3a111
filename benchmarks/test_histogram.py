"""The histogram loss against other implementations: time, memory, error.

python benchmarks/test_histogram.py             # the whole menu, a few minutes; writes results/histogram--<device>.json
python benchmarks/test_histogram.py --full      # the slow baselines with 16 regions too
python benchmarks/test_histogram.py --profile   # a trace and a table per kernel instead
python benchmarks/plot.py                       # the figure of the docs, from that JSON
python -m pytest benchmarks --benchmark-only    # a short version under pytest-benchmark
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from histograms import errors, exact, make_case, methods
from timing import environment, interleave, ratios, synchronize, write_result

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
A, B, C, D = (1, 3, 256, 256), (4, 3, 256, 256), (16, 3, 256, 256), (1, 3, 1080, 1920)
REGIONS = [(1, False), (16, False), (64, False), (16, True), (64, True)]
MENU = [(shape, count, overlapping) for shape in (A, B, C, D) for count, overlapping in REGIONS]
if DEVICE.type == "cuda":
    MENU += [((1, 3, 4000, 6000), 1, False), ((1, 3, 4000, 6000), 64, False)]
# glibc's malloc returns large temporaries to the system at once, or keeps them.
ALLOCATORS = {
    "default": {},
    "retained": {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(1 << 28)},
}
MEMORY = [
    *(
        (A, 1, False, name)
        for name in ("ours", "ours, torch only", "dense, exponent clamped", "kornia", "dense, compiled", "class loop")
    ),
    *((A, 64, kind, name) for kind in (False, True) for name in ("ours", "class loop")),
    *((shape, count, kind, "ours") for shape in (C, D) for count, kind in ((1, False), (64, False), (64, True))),
    (D, 64, False, "ours, torch only"),
]


def name_of(shape: tuple[int, ...], count: int, overlapping: bool) -> str:
    kind = "" if count == 1 else ", overlapping" if overlapping else ", disjoint"
    return f"{'x'.join(map(str, shape))}, {count} region{'s' if count > 1 else ''}{kind}"


def fits(method: str, shape: tuple[int, ...], count: int, full: bool) -> bool:
    """Return True if a method is fast enough on a CPU, and small enough on a GPU."""
    if method.startswith("ours"):
        return True
    pixels = shape[0] * shape[2] * shape[3]
    if DEVICE.type == "cuda":
        return pixels <= 1 << 20 and (count <= 16 or full)
    masks = 1 if method == "class loop" else count
    return pixels * masks <= (1 << 20 if full else 1 << 16)


def time_case(shape: tuple[int, ...], count: int, overlapping: bool, rounds: int, full: bool) -> dict:
    """Return the ratios of the methods in one process, after a check of their results."""
    case = make_case(shape, count, DEVICE, overlapping=overlapping)
    kept = {name: method for name, method in methods(case).items() if fits(name, shape, count, full)}
    wanted = exact(case) if shape == A else kept["ours, torch only"]()
    found: dict[str, dict] = {}
    for name, method in kept.items():
        if name != "class loop":
            found[name] = errors(method(), wanted)
            assert found[name]["gradient"] <= 1e-4, (name, found[name])
    assert max(found["ours"].values()) <= 1e-6, found
    for name, row in ratios(interleave(kept, DEVICE, rounds), "ours").items():
        found[name] = row | ({"error": found[name]} if name in found and shape == A else {})
    return found


def regions_against_one(rounds: int) -> dict[str, dict]:
    """Measure the cost of regions in one process: 64 disjoint, 64 overlapping, and a picture of equal values."""
    cases = {
        "1 region": make_case(A, 1, DEVICE),
        "64 disjoint regions": make_case(A, 64, DEVICE),
        "64 overlapping regions": make_case(A, 64, DEVICE, overlapping=True),
        "1 region, saturated": make_case(A, 1, DEVICE, content="saturated"),
    }
    times = interleave({name: methods(case)["ours"] for name, case in cases.items()}, DEVICE, 3 * rounds)
    return ratios(times, "1 region")


def close_pictures() -> dict[str, dict]:
    """Return the errors where the loss is a small difference of large sums."""
    found = {}
    for count, overlapping in REGIONS:
        case = make_case(A, count, DEVICE, overlapping=overlapping, content="close")
        found[name_of(A, count, overlapping)] = errors(methods(case)["ours"](), exact(case))
    assert max(max(row.values()) for row in found.values()) <= 5e-6, found
    return found


def extra_memory(shape: tuple[int, ...], count: int, overlapping: bool, method: str) -> float:
    """Return the peak MiB of one forward and backward pass, beyond the student and its gradient; in its own process."""
    case = make_case(shape, count, DEVICE, overlapping=overlapping)
    call, own = methods(case)[method], 2 * case.student.numel() * 4 / 2**20
    if DEVICE.type == "cuda":
        call()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20 - own
    methods(make_case((1, 3, 32, 32), 2, DEVICE))[method]()  # loads and compiles all code

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    if method == "dense, compiled":
        call()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    call()
    return (peak() - before) / 1024 - own


def child(arguments: list[str], extra: dict[str, str]) -> dict:
    """Run this file with other settings of malloc, and return its last printed line."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=os.environ | extra, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict:
    result: dict = {"command": " ".join(["python benchmarks/test_histogram.py", *sys.argv[1:]]), **environment(DEVICE)}
    shared = ["--rounds", str(options.rounds), *(["--full"] if options.full else [])]
    for allocator, extra in ALLOCATORS.items() if DEVICE.type == "cpu" else [("cuda", {})]:
        rows = {}
        for index, entry in enumerate(MENU):
            if allocator != "retained" or entry[0] == A:
                rows[name_of(*entry)] = child(["--case", str(index), *shared], extra)
                print(allocator, name_of(*entry), json.dumps(rows[name_of(*entry)], indent=1), flush=True)
        rows["regions against one"] = child(["--regions", *shared], extra)
        result[f"time, {allocator} allocator"] = rows
        print(json.dumps(rows["regions against one"], indent=1), flush=True)
    result["close pictures, relative error"] = close_pictures()
    result["extra memory in MiB"] = {}
    for index, (*entry, method) in enumerate(MEMORY):
        found = child(["--memory", str(index)], {"MALLOC_MMAP_THRESHOLD_": "65536"})
        result["extra memory in MiB"][f"{name_of(*entry)}, {method}"] = found
        print(name_of(*entry), method, found, "MiB", flush=True)
    return result


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of each timing")
    parser.add_argument("--full", action="store_true", help="the slow baselines with more regions too")
    parser.add_argument("--profile", action="store_true", help="a trace and a table per kernel instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    for name in ("--case", "--memory"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--regions", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(time_case(*MENU[options.case], options.rounds, options.full)))
    elif options.memory is not None:
        print(json.dumps(round(extra_memory(*MEMORY[options.memory]), 1)))
    elif options.regions:
        print(json.dumps(regions_against_one(options.rounds)))
    else:
        if options.profile:
            from profiling import profile

            options.out.mkdir(parents=True, exist_ok=True)
            device = re.sub(r"\W+", "-", str(environment(DEVICE)["device"])).strip("-").lower()
            for name, entry in {"one-region": (C, 1), "64-regions": (C, 64)}.items():
                profile(make_case(*entry, DEVICE), options.out / f"histogram-{name}--{device}")
            return
        write_result(options.out, "histogram", measure(options))


@pytest.mark.parametrize(("count", "overlapping"), REGIONS)
@pytest.mark.parametrize("shape", [A, B], ids=lambda s: "x".join(map(str, s)))
def test_histogram_loss(benchmark, shape: tuple[int, ...], count: int, overlapping: bool) -> None:
    case = make_case(shape, count, DEVICE, overlapping=overlapping)
    method = methods(case)["ours"]
    if shape == A:
        assert max(errors(method(), exact(case)).values()) <= 1e-6

    def timed() -> None:
        method()
        synchronize(DEVICE)

    benchmark.extra_info |= environment(DEVICE)
    benchmark(timed)


@pytest.mark.parametrize("count", [1, 16])
def test_histogram_loss_against_others(benchmark, count: int) -> None:
    rows = benchmark.pedantic(time_case, (A, count, False, 3, False), rounds=1)
    benchmark.extra_info |= {**environment(DEVICE), "methods": rows}
    for name, row in rows.items():
        print(f"{name}: {row}")


if __name__ == "__main__":
    main()
