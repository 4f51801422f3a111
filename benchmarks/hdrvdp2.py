"""Measure time and memory of HDR-VDP-2 for a picture of 1500 x 1000.

python benchmarks/hdrvdp2.py                   # writes benchmarks/results/hdrvdp2--<device>.json, prints a table
python benchmarks/hdrvdp2.py --device cuda
The published MATLAB code took 17.4 s (one channel) and 16.6 s (three channels) under GNU Octave 7.3 with its compiled
pyramid, best of two, on two shared cores of a server CPU. Ratios to these seconds are comparable on such a CPU only.
Every case runs in its own process, to measure its own peak memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from timing import environment, synchronize, write_result

import skt_components.metrics as metrics

ROOT = Path(__file__).parents[1]
SIZE = (1000, 1500)
OCTAVE = {1: 17.42, 3: 16.59}
ENCODINGS = {1: "luminance", 3: "rgb-bt.709"}


@dataclass(frozen=True)
class Options:
    """Measure this machine."""

    device: str = "cpu"
    """Device to measure."""
    rounds: int = 5
    """Rounds; the median is reported."""
    batch: int = 1
    """Pictures in a call."""
    threads: int = 0
    """Threads on a CPU, 0 for as many as PyTorch takes."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""
    case: str = ""
    """Run one case only, ``channels dtype grad``, and print its numbers; used by the main process."""


def pictures(channels: int, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a ramp of seven stops with noise, and the same with an error of five percent."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, *SIZE)
    ramp = torch.linspace(0, 6, SIZE[1]).expand(shape)
    reference = (4 * torch.rand(shape, generator=generator) + ramp).exp()
    test = reference * (1 + 0.05 * torch.randn(shape, generator=generator)).clamp(min=0.1)
    return test.to(device), reference.to(device)


def peak_mib(device: torch.device) -> float:
    """Return the peak memory of this process so far: of the device, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(options: Options) -> dict[str, float]:
    """Measure seconds and memory of one case in this process."""
    channels, dtype, grad = options.case.split()
    device = torch.device(options.device)
    test, reference = pictures(int(channels), options.batch, device)
    viewing = {
        "color_encoding": ENCODINGS[int(channels)],
        "pixels_per_degree": 30.0,
        "dtype": getattr(torch, dtype),
    }
    loss = metrics.HDRVDP2Loss(**viewing)

    def call() -> float:
        if grad == "grad":
            value = loss(test.requires_grad_(), reference)
            value.backward()
            return 100 - value.item()
        with torch.no_grad():
            return metrics.hdr_vdp2(test, reference, **viewing).Q.mean().item()

    before = peak_mib(device)
    wall, cpu = [], []
    for _ in range(options.rounds + 1):  # the first computes the cached constants
        synchronize(device)
        start, start_cpu = time.perf_counter(), time.process_time()
        quality = call()
        synchronize(device)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    middle = len(wall[1:]) // 2
    return {
        "Q": quality,
        "seconds_first": wall[0],
        "seconds_median": sorted(wall[1:])[middle],
        "seconds_best": min(wall[1:]),
        "cpu_seconds_median": sorted(cpu[1:])[middle],
        "peak_mib_above_inputs": peak_mib(device) - before,
    }


def in_own_process(options: Options, case: str) -> dict[str, float]:
    """Measure a case in a fresh process."""
    arguments = {"device": options.device, "rounds": options.rounds, "batch": options.batch}
    arguments |= {"threads": options.threads, "case": case}
    command = [sys.executable, __file__, *(text for k, v in arguments.items() for text in (f"--{k}", str(v)))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {line.split("=")[0]: float(line.split("=")[1]) for line in lines}


def main(options: Options) -> None:
    """Measure all cases and write the results."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.case:
        print(*(f"{name}={value!r}" for name, value in measure(options).items()), sep="\n")
        return
    cases = [f"{c} {d} {g}" for c in (1, 3) for d in ("float64", "float32") for g in ("value", "grad")]
    print("channels dtype grad          median s   CPU s   Octave's s / ours   peak MiB")
    results = {}
    for case in cases:
        row = in_own_process(options, case)
        ratio = OCTAVE[int(case[0])] * options.batch / row["seconds_median"]
        results[case] = {name: round(value, 6) for name, value in row.items()} | {"ratio_to_octave": round(ratio, 2)}
        times = f"{row['seconds_median']:10.3f} {row['cpu_seconds_median']:7.2f}"
        print(f"{case:26s} {times} {ratio:19.1f} {row['peak_mib_above_inputs']:10.0f}", flush=True)
    facts = {"size": SIZE, "batch": options.batch, "rounds": options.rounds, "octave_seconds": OCTAVE}
    write_result(options.out, "hdrvdp2", environment(torch.device(options.device)) | facts | {"cases": results})


if __name__ == "__main__":
    main(tyro.cli(Options))
