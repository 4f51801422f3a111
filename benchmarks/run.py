"""Everything worth measuring on a machine, in one command: GPU tests, kernels, training step, training comparison.

python benchmarks/run.py                         # writes benchmarks/results/suite--<device>.json
python benchmarks/run.py --steps 2000 --seeds 3  # a longer comparison
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import banks
import torch
import tyro
from timing import environment, write_result

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """Measure this machine."""

    steps: int = 300
    """Steps of the training comparison; 0 leaves it out."""
    seeds: int = 1
    """Seeds of the training comparison."""
    rounds: int = 7
    """Interleaved rounds of each timing."""
    histogram: bool = True
    """Also run benchmarks/test_histogram.py, which writes a file of its own; minutes."""
    train_step: bool = True
    """Also run benchmarks/test_train_step.py, which writes a file of its own for each bank; an hour on a CPU."""
    banks: bool = True
    """Also time the knowledge banks; minutes on a CPU."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""


def gpu_tests() -> str:
    """Closing line of the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]
    command.append(str(ROOT / "benchmarks" / "test_train_step.py"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:])
    return done.stdout.strip().splitlines()[-1]


def training_comparison(steps: int, seed: int) -> dict[str, float]:
    """Final validation of the network in the framework and bare, from `examples/train_full.py --compare`."""
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, str(ROOT / "examples" / "train_full.py"), "--compare"]
        options = ["--steps", str(steps), "--seed", str(seed), "--out", f"{folder}/run"]
        done = subprocess.run([*script, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    print(done.stdout)
    final = {line["run"]: line["validation"]["ORM"]["PSNR-mu"] for line in lines if "validation" in line}
    gain = re.search(r"paired gain over 1 seed and \d+ pictures: ([+-][\d.]+)", done.stdout)
    assert gain is not None, done.stdout
    return {"seed": seed, "steps": steps, **final, "paired_gain_db": float(gain[1])}


def main(options: Options) -> None:
    """Measure, print, write."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    result: dict[str, object] = {
        "command": " ".join(["python benchmarks/run.py", *sys.argv[1:]]),
        **environment(device),
    }
    result["gpu_tests"] = gpu_tests() if cuda else "no GPU"
    if options.histogram:
        command = [sys.executable, str(ROOT / "benchmarks" / "test_histogram.py"), "--rounds", str(options.rounds)]
        for extra in ([], ["--profile"]) if cuda else ([],):
            subprocess.run([*command, "--out", str(options.out), *extra], check=True)
    if options.train_step:
        command = [sys.executable, str(ROOT / "benchmarks" / "test_train_step.py"), "--rounds", str(options.rounds)]
        for bank in ("lite0", "fastsam"):
            subprocess.run([*command, "--bank", bank, "--out", str(options.out)], check=True)
    if options.banks:
        batches = (1, 4, 16) if cuda else (1, 4)
        result["knowledge_banks"] = banks.measure(banks.Options(batches=batches, rounds=options.rounds), device)
    if options.steps:
        result["training"] = [training_comparison(options.steps, seed) for seed in range(options.seeds)]
    write_result(options.out, "suite", result)


if __name__ == "__main__":
    main(tyro.cli(Options))
