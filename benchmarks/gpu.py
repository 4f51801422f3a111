"""Measure a machine with a GPU in a given time: kernels, training steps, HDR-VDP-2, networks, a training comparison.

python benchmarks/gpu.py --minutes 12          # writes benchmarks/results/gpu--<device>.json
python benchmarks/gpu.py --minutes 12          # again: goes on where the first one stopped
python benchmarks/gpu.py --rehearse --out DIR  # the same stages with small sizes, on any machine, in two minutes
python benchmarks/gpu.py --stages histogram tests

The stages run in order of their worth, each in a process of its own, so that a fault of the device ends one stage. Each
result is written as soon as it is measured. A stage whose package is missing is left out by name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import banks
import hdrvdp2
import histograms
import test_train_step as train_step
import torch
import tyro
from networks import bracket_of
from timing import environment, interleave, ratios, result_file, synchronize

import skt_components as skt
from skt_components.files.atomic import write_text

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]


@dataclass(frozen=True)
class Options:
    """Measure this machine."""

    minutes: float = 12.0
    """Time for everything; a stage that is not done then goes on at the next start."""
    stages: tuple[str, ...] = ("bandwidth", "histogram", "tests", "step", "picture", "bank", "hdrvdp2", "comparison")
    """Stages to run, in this order."""
    rehearse: bool = False
    """Small sizes, to see that every stage works; its numbers mean nothing."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""
    one: str = ""
    """For internal use: a stage in a process of its own."""
    skip: tuple[str, ...] = ()
    """For internal use: results that are there already."""


def bandwidth(options: Options) -> Rows:
    """Measure the speed of memory and of large matrix products. They limit all other results."""

    def measure() -> Row:
        bytes_moved, side = (2**22, 256) if options.rehearse else (2**31, 8192)
        source = torch.ones(bytes_moved // 2, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        matrices = {name: torch.rand(side, side, device=DEVICE).to(kind) for name, kind in kinds.items()}
        methods: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
        methods |= {name: partial(torch.matmul, matrix, matrix) for name, matrix in matrices.items()}
        seconds = {name: min(values) for name, values in interleave(methods, DEVICE, 5).items()}
        speeds = {f"{name} TFLOP/s": round(2 * side**3 / seconds[name] / 1e12, 2) for name in kinds}
        return {"copy GB/s": round(bytes_moved / seconds["copy"] / 1e9, 1), **speeds}

    yield "bandwidth", measure


def histogram(options: Options) -> Rows:
    """Measure forward and backward of the histogram loss against the traffic that no implementation avoids."""
    shapes = [(1, 3, 256, 256), (16, 3, 256, 256), (1, 3, 4000, 6000)]

    def measure(shape: tuple[int, ...], regions: int) -> Row:
        case = histograms.make_case(shape, regions, DEVICE)
        dense = ("dense, exponent clamped", "dense, compiled") if shape[-1] <= 256 and regions == 1 else ()
        methods = histograms.methods(case)
        kept = {name: methods[name] for name in ("ours", "ours, teacher cached", "ours, torch only", *dense)}
        wanted = kept["ours, torch only"]()
        error = histograms.errors(kept["ours"](), wanted)
        times = ratios(interleave(kept, DEVICE, 3 if options.rehearse else 15), "ours")
        # Two pictures and the labels are read, then the student and the labels again; the gradient is written.
        traffic = (4 * case.student.numel() * 4) + (2 * 8 * case.student[:, 0].numel() if regions > 1 else 0)
        return {"times": times, "error": error, "traffic_bytes": traffic}

    for shape in [(1, 3, 64, 64)] if options.rehearse else shapes:
        for regions in (1, 64):
            yield f"{'x'.join(map(str, shape))}, regions: {regions}", partial(measure, shape, regions)


def tests(options: Options) -> Rows:
    """Run the tests that need a GPU."""

    def measure() -> Row:
        files = [ROOT / "tests" / "test_gpu.py"] if options.rehearse else [ROOT / "tests", train_step.__file__]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return {"result": lines[-1], "failed": failed}

    yield "tests", measure


def step(options: Options) -> Rows:
    """Measure a training step in the framework against the bare network's, in bfloat16, and its parts."""

    def measure(name: str) -> Row:
        if options.rehearse:
            train_step.NETWORKS = train_step.SMALL
        crop, batch, rounds = (64, 1, 1) if options.rehearse else (256, 16, 15)
        wanted = Namespace(bank="lite0", crop=crop, batch=batch, rounds=rounds)
        batch, times = train_step.time_largest_batch(name, wanted)
        return {"batch": batch, "crop": crop, "times": times}

    for name in ["AHDRNet"] if options.rehearse else train_step.NETWORKS:
        yield name, partial(measure, name)


def picture(options: Options) -> Rows:
    """Measure a whole picture of 1000 x 1500 through the plain networks."""

    def measure(name: str) -> Row:
        network = skt.models.NETWORKS[name]().eval().to(DEVICE)
        height, width = (64, 96) if options.rehearse else (1000, 1500)
        bracket = bracket_of(network, height, width, DEVICE)

        def run(kind: torch.dtype | None) -> None:
            with torch.no_grad(), torch.autocast(DEVICE.type, kind, enabled=kind is not None):
                network(bracket)

        methods = {"float32": partial(run, None), "bfloat16": partial(run, torch.bfloat16)}
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = ratios(interleave(methods, DEVICE, 1 if options.rehearse else 5), "float32")
        memory = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else None
        return {"times": times, "peak_mib": memory}

    names = ("ahdrnet", "hdr-transformer", "sctnet", "tmrnet", "tmrnet-plus")
    for name in ["ahdrnet-small"] if options.rehearse else names:
        yield name, partial(measure, name)


def bank(options: Options) -> Rows:
    """Measure the knowledge banks on sixteen pictures of 256 x 256; the goal for FastSAM-s is 15 ms."""

    def measure(name: str) -> Row:
        batch, side = (1, 64) if options.rehearse else (16, 256)
        method = banks.bank_method(banks.BANKS[name], torch.rand(batch, 3, side, side, device=DEVICE))
        times = interleave({name: method}, DEVICE, 1 if options.rehearse else 15)[name]
        return {"batch": batch, "median_ms": round(1e3 * statistics.median(times), 3)}

    for name in list(banks.BANKS)[: 1 if options.rehearse else None]:
        yield name, partial(measure, name)


def vdp(options: Options) -> Rows:
    """Measure HDR-VDP-2, value and gradient, by batch."""

    def measure(batch: int, grad: str) -> Row:
        if options.rehearse:
            hdrvdp2.SIZE = (64, 96)
        case = hdrvdp2.Options(device=DEVICE.type, rounds=3, batch=batch, case=f"3 float32 {grad}")
        return hdrvdp2.measure(case)

    for batch in [1] if options.rehearse else [1, 4]:
        for grad in ("value", "grad"):
            yield f"batch {batch}, {grad}", partial(measure, batch, grad)


def comparison(options: Options) -> Rows:
    """Train a network in the framework and bare, and report the paired gain."""

    def measure() -> Row:
        network = "--orm ahdrnet --crop 128 --batch-size 8 --steps 1000 --precision bf16"
        if options.rehearse:
            network = "--orm ahdrnet-small --val-samples 2 --steps 4 --knowledge-bank none"
        script = ["examples/train_full.py", "--compare", *network.split()]
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *script, "--out", f"{folder}/run"]
            start = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        scores = {line["run"]: line["validation"]["ORM"]["PSNR-mu"] for line in lines if "validation" in line}
        gain = re.search(r"paired gain over 1 seed and \d+ pictures: ([+-][\d.]+)", done.stdout)
        assert gain is not None, done.stdout
        seconds = round(time.perf_counter() - start, 1)
        return {"command": " ".join(script), **scores, "paired_gain_db": float(gain[1]), "seconds": seconds}

    yield "ahdrnet", measure


STAGES: dict[str, tuple[Callable[[Options], Rows], tuple[str, ...]]] = {  # and the packages that they need
    "bandwidth": (bandwidth, ()),
    "histogram": (histogram, ("triton",) if DEVICE.type == "cuda" else ()),
    "tests": (tests, ("pytest", "hypothesis")),
    "step": (step, ("timm",)),
    "picture": (picture, ()),
    "bank": (bank, ("timm",)),
    "hdrvdp2": (vdp, ()),
    "comparison": (comparison, ("accelerate", "tyro", "matplotlib")),
}


def measure_one(options: Options) -> None:
    """Measure a stage in this process; print a line of JSON for every result."""
    for name, measure in STAGES[options.one][0](options):
        if name in options.skip:
            continue
        try:
            row = measure()
        except Exception as error:  # a stage goes on after a fault of one case
            row = {"failed": f"{type(error).__name__}: {error}"[:500]}
        synchronize(DEVICE)
        print(json.dumps({name: row}), flush=True)


def run_stage(name: str, options: Options, found: Row, write: Callable[[], None], seconds: float) -> bool:
    """Collect the results of a stage; return False if the time is over."""
    done = [row for row, value in found.items() if "failed" not in value]
    command = [sys.executable, __file__, "--one", name, *(["--rehearse"] if options.rehearse else [])]
    command += ["--skip", *done] if done else []
    pipes: Row = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:

        def end() -> None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that the stage has started

        timer = threading.Timer(seconds, end)
        timer.start()
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or []))
        reader.start()
        try:
            for line in process.stdout or []:
                if line.startswith("{"):
                    found |= json.loads(line)
                    write()
                    print(f"{name}: {line.strip()[:300]}", flush=True)
            reader.join()
        finally:
            end()
    in_time = timer.is_alive()
    timer.cancel()
    if in_time and process.returncode:
        found["stage"] = {"failed": "".join(errors).strip()[-500:]}
        print(f"{name}: {found['stage']}", flush=True)
        write()
    return in_time


def main(options: Options) -> None:
    """Run the stages, write, and say what is left."""
    if options.one:
        measure_one(options)
        return
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        raise SystemExit(f"gpu.py: --stages must be of {', '.join(STAGES)}, got {', '.join(unknown)}")
    if DEVICE.type != "cuda" and not options.rehearse:
        raise SystemExit("gpu.py: no CUDA device; --rehearse runs the stages with small sizes on the CPU")
    start, facts = time.monotonic(), environment(DEVICE)
    file = result_file(options.out, "rehearsal" if options.rehearse else "gpu", facts["device"])
    result: Row = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    result |= {"command": "python benchmarks/gpu.py", **facts}
    stages = result.setdefault("stages", {})

    def write() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(result, indent=1) + "\n")

    for index, name in enumerate(options.stages):
        missing = [package for package in STAGES[name][1] if importlib.util.find_spec(package) is None]
        if missing:
            stages[name] = {"left out": f"not installed: {', '.join(missing)}"}
            print(f"{name}: {stages[name]}", flush=True)
            write()
            continue
        stages[name] = {key: value for key, value in stages.get(name, {}).items() if isinstance(value, dict)}
        left = 60 * options.minutes - (time.monotonic() - start)
        if left <= 0 or not run_stage(name, options, stages[name], write, left):
            print(f"the time is over; left: {', '.join(options.stages[index:])}; the same command goes on", flush=True)
            break
    write()
    print(f"wrote {file}")


if __name__ == "__main__":
    main(tyro.cli(Options))
