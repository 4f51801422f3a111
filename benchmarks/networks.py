"""Measure the networks: parameters, operations, time and memory of a training step and of a whole picture.

python benchmarks/networks.py                  # writes benchmarks/results/networks--<device>.json, prints a table
python benchmarks/networks.py --picture 0 0    # without the whole picture
The weights are random; cost does not depend on them. Packed RAW has half the sides, four channels, five exposures.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from timing import environment, synchronize, write_result
from torch.utils.flop_counter import FlopCounterMode

import skt_components as skt

ROOT = Path(__file__).parents[1]
NETWORKS = {network.__name__: network for network in skt.models.NETWORK_CLASSES.values()}


@dataclass(frozen=True)
class Options:
    """Measure this machine."""

    crop: int = 256
    """Side of the training crop in pixels of the bracket (packed ones for RAW: 128 then)."""
    picture: tuple[int, int] = (1000, 1500)
    """Height and width of the whole picture (500 x 750 packed); 0 0 to skip it."""
    rounds: int = 3
    """Timed repetitions, after one warm-up; a whole picture on a CPU is timed once."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Names of the networks to measure."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""
    one: str = ""
    """For internal use: "NAME,step or picture,checkpointing" in a process of its own."""


def bracket_of(
    network: skt.models.ReconstructionNetwork, height: int, width: int, device: torch.device
) -> torch.Tensor:
    """Make a random bracket; packed RAW has half the sides."""
    shrink = 2 if network.in_channels == 4 else 1
    shape = (1, network.num_frames, network.in_channels, height // shrink, width // shrink)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process so far in MiB; on a GPU, of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_one(name: str, what: str, checkpointing: bool, options: Options) -> dict[str, float]:
    """Measure time and memory of a training step or a whole picture in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = NETWORKS[name](checkpointing=checkpointing).to(device)
    size = (options.crop, options.crop) if what == "step" else options.picture
    bracket = bracket_of(network, *size, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    network.train(what == "step")

    def step() -> None:
        if what == "picture":
            with torch.no_grad():
                network(bracket)
            return
        optimizer.zero_grad(set_to_none=True)
        network(bracket).square().mean().backward()
        optimizer.step()

    before = peak_memory(device)
    times = []
    warmup = 0 if what == "picture" and device.type == "cpu" else 1  # minutes
    for _ in range(options.rounds + warmup if warmup else 1):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return {
        "seconds": round(statistics.median(times[warmup:]), 4),
        "peak_mib_beyond_start": round(peak_memory(device) - before, 1),
    }


def operations(name: str) -> dict[str, float]:
    """Count parameters, and multiply-adds in one forward pass of a 256 x 256 bracket (packed for RAW)."""
    # The recurrent networks take half a minute a pass on a CPU, so they are counted on the meta device. The window
    # attention pads its heads there, so the other networks are counted on the CPU.
    with torch.device("meta" if name.startswith("TMRNet") else "cpu"):
        network = NETWORKS[name]().eval()
        bracket = torch.empty(1, network.num_frames, network.in_channels, 256, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(bracket)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "gmacs_256": round(counter.get_total_flops() / 2e9, 1),
    }


def child(name: str, what: str, checkpointing: bool, options: Options) -> dict[str, float]:
    """Call :func:`measure_one` in a fresh process, so that the memory is its own."""
    sizes = ["--crop", str(options.crop), "--picture", *map(str, options.picture), "--rounds", str(options.rounds)]
    command = [sys.executable, __file__, "--one", f"{name},{what},{int(checkpointing)}", *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(options: Options) -> None:
    """Measure all networks, print and write the results."""
    if options.one:
        name, what, checkpointing = options.one.split(",")
        print(json.dumps(measure_one(name, what, checkpointing == "1", options)))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: dict[str, dict] = {}
    for name in options.networks:
        row: dict[str, object] = dict(operations(name))
        row["training step"] = child(name, "step", False, options)
        row["training step, checkpointing"] = child(name, "step", True, options)
        if all(options.picture):
            row["whole picture"] = child(name, "picture", False, options)
        rows[name] = row
        print(name, json.dumps(row, indent=1), flush=True)
    result = {"command": " ".join(["python benchmarks/networks.py", *sys.argv[1:]]), **environment(device)}
    write_result(
        options.out, "networks", {**result, "crop": options.crop, "picture": options.picture, "networks": rows}
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
