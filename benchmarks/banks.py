"""Measure the cost of a knowledge bank beside the rest of a training step.

python benchmarks/banks.py                       # writes benchmarks/results/banks--<device>.json, prints a table
python benchmarks/banks.py --batches 1 4         # leaves the largest batch out
Random weights cost as much as real ones. The step trains the full AHDRNet in the framework.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from timing import environment, interleave, ratios, write_result
from torch import Tensor, nn

import skt_components as skt

ROOT = Path(__file__).parents[1]
BANKS: dict[str, Callable[[], nn.Module]] = {
    "efficientnet-lite0, 16 color regions": lambda: timm("tf_efficientnet_lite0"),
    "hrnet_w48, 16 color regions": lambda: timm("hrnet_w48"),
    "FastSAM-s fast, 16 masks": lambda: skt.FastSAMFeatureExtractor("random", layers="fast"),
    "FastSAM-s fast, 16 masks in cells": lambda: skt.FastSAMFeatureExtractor(
        "random", layers="fast", full_resolution=False
    ),
    "FastSAM-s paper, 16 masks": lambda: skt.FastSAMFeatureExtractor("random"),
    "FastSAM-s paper, 16 masks in cells": lambda: skt.FastSAMFeatureExtractor("random", full_resolution=False),
    "FastSAM-x fast, 16 masks": lambda: skt.FastSAMFeatureExtractor("random-x", layers="fast"),
    "FastSAM-x paper, 16 masks": lambda: skt.FastSAMFeatureExtractor("random-x"),
}
REST = "rest of the framework's step"


@dataclass(frozen=True)
class Options:
    """Measure this machine."""

    batches: tuple[int, ...] = (1, 4, 16)
    """Batch sizes."""
    largest_step: int = 0
    """Largest batch at which the training step is timed too; 0: 16 on a GPU, 1 on a CPU (half a minute a step)."""
    crop: int = 256
    """Side of the pictures."""
    rounds: int = 5
    """Interleaved rounds of each timing."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""


def timm(name: str) -> nn.Module:
    """Return a timm bank with the number of regions that FastSAM gets."""
    return skt.TimmFeatureExtractor(name, weights="random", regions=skt.ColorPositionKMeans(16))


class FixedBank(nn.Module):
    """Return precomputed priors, so that a step costs everything except the bank."""

    def __init__(self, bank: nn.Module, picture: Tensor) -> None:
        super().__init__()
        self.channels, self.reduction = bank.channels, bank.reduction
        self.priors = bank(picture)

    def forward(self, tonemapped: Tensor) -> skt.SemanticPriors:
        return self.priors


def picture_of(batch: int, crop: int) -> tuple[Tensor, Tensor]:
    """Return bracket and target of procedural scenes."""
    data = skt.SyntheticScenes(batch, crop)
    sample = torch.utils.data.default_collate([data[i] for i in range(batch)])
    return sample.bracket, sample.target


def step_methods(batch: int, crop: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the bare network's step, and the framework's step without its bank."""
    torch.manual_seed(0)
    bracket, target = (x.to(device) for x in picture_of(batch, crop))
    bank = FixedBank(skt.FastSAMFeatureExtractor("random").to(device), skt.DomainTransfer("srgb")(target))
    bare = skt.AHDRNet().to(device)
    framework = skt.SemanticKnowledgeTransfer(skt.AHDRNet(), bank).to(device)
    loss = skt.MuL1Loss()
    networks = {"bare AHDRNet step": bare, REST: framework}
    computes = {
        "bare AHDRNet step": lambda: loss(bare(bracket).float(), target),
        REST: lambda: framework(bracket, target).total,
    }

    def method(name: str) -> Callable[[], object]:
        optimizer = torch.optim.Adam(networks[name].parameters(), lr=1e-5)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                value = computes[name]()
            value.backward()
            optimizer.step()

        return step

    return {name: method(name) for name in networks}


def bank_method(make: Callable[[], nn.Module], tonemapped: Tensor) -> Callable[[], object]:
    """Return a function that calls a bank as the framework does."""
    torch.manual_seed(0)
    bank = make().to(tonemapped.device)

    def call() -> object:
        with torch.autocast(tonemapped.device.type, torch.bfloat16, enabled=tonemapped.is_cuda):
            return bank(tonemapped)

    return call


def peak_mib(method: Callable[[], object], device: torch.device) -> float | None:
    """Return the memory that a call adds on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    method()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)


def measure(options: Options, device: torch.device) -> dict[str, dict]:
    """Return times per batch size; ratios are to the rest of the step where that was timed, else to lite0."""
    largest = options.largest_step or (16 if device.type == "cuda" else 1)
    found = {}
    for batch in options.batches:
        _, target = picture_of(batch, options.crop)
        tonemapped = skt.DomainTransfer("srgb")(target).to(device)
        methods = {name: bank_method(make, tonemapped) for name, make in BANKS.items()}
        unit = next(iter(BANKS))
        if batch <= largest:
            methods |= step_methods(batch, options.crop, device)
            unit = REST
        rows = ratios(interleave(methods, device, options.rounds, warmup=1), unit)
        for name, method in methods.items():
            rows[name]["peak_mib"] = peak_mib(method, device)  # type: ignore[assignment]
        found[f"batch {batch}"] = rows
        print(f"batch {batch}, {options.crop} x {options.crop}")
        for name, row in rows.items():
            print(f"  {name:40}" + "  ".join(f"{key} {value}" for key, value in row.items() if value is not None))
        del methods
        gc.collect()
    return found


def main(options: Options) -> None:
    """Measure, print, write."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, object] = {"command": " ".join(["python benchmarks/banks.py", *sys.argv[1:]])}
    result |= {**environment(device), "crop": options.crop, "knowledge_banks": measure(options, device)}
    write_result(options.out, "banks", result)


if __name__ == "__main__":
    main(tyro.cli(Options))
