"""What the framework adds to a training step: time and memory beside the bare network's, and every part's share.

python benchmarks/test_train_step.py                    # writes results/train-step--<device>.json, prints a table
python benchmarks/test_train_step.py --bank fastsam     # writes results/train-step-fastsam--<device>.json
python -m pytest benchmarks/test_train_step.py          # the gradients, and short timings of small networks
Random weights: they cost what real ones cost. Memory is that of a process which does nothing else. On a GPU the step
runs under bfloat16 autocast, and the batch is halved until it fits.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, interleave, ratios, synchronize, write_result

import skt_components as skt

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE.type == "cuda"
Network = skt.models.ReconstructionNetwork
_NAMES = {"AHDRNet": "ahdrnet", "HDRTransformer": "hdr-transformer", "SCTNet": "sctnet", "TMRNet": "tmrnet"}
NETWORKS: dict[str, Callable[..., Network]] = {name: skt.models.NETWORKS[key] for name, key in _NAMES.items()}
SMALL: dict[str, Callable[..., Network]] = {name: skt.models.NETWORKS[f"{key}-small"] for name, key in _NAMES.items()}
BANKS: dict[str, Callable[[], nn.Module]] = {
    "lite0": skt.TimmFeatureExtractor,
    "fastsam": partial(skt.FastSAMFeatureExtractor, "random", layers="fast"),
}
METHODS = ("bare step", "framework step")
STEP_GOALS = {"AHDRNet": 1.6, "HDRTransformer": 1.6, "TMRNet": 1.25}  # at 256 x 256 pixels
MEMORY_GOAL = 1.5
NO_TRANSFER = skt.LossWeights(content_weight=0, color_weight=0, alignment_weight=0, perceptual_weight=0)
Loss = Callable[[Tensor, Tensor], Tensor]


def is_raw(network: Network) -> bool:
    return network.in_channels == 4


def data_of(network: Network, crop: int, batch: int) -> tuple[Tensor, Tensor]:
    """Bracket and target of procedural scenes; packed RAW has half the sides."""
    camera = skt.RawCamera() if is_raw(network) else skt.Camera()
    scenes = skt.SyntheticScenes(batch, crop // 2 if is_raw(network) else crop, camera=camera)
    sample = torch.utils.data.default_collate([scenes[index] for index in range(batch)])
    return sample.bracket.to(DEVICE), sample.target.to(DEVICE)


def framework_of(network: Network, bank: str, **options: object) -> skt.SemanticKnowledgeTransfer:
    """The framework around a copy of the network."""
    domain = "raw" if is_raw(network) else "srgb"
    return skt.SemanticKnowledgeTransfer(copy.deepcopy(network), BANKS[bank](), domain=domain, **options).to(DEVICE)


def bare_loss(module: Network) -> Loss:
    """L_org of a network that trains alone."""
    loss = skt.MuL1Loss(peak=16.0 if is_raw(module) else 1.0)
    return lambda bracket, target: loss(module(bracket).float(), target)


def framework_loss(module: skt.SemanticKnowledgeTransfer) -> Loss:
    """All the framework's terms."""
    return lambda bracket, target: module(bracket, target).total


def precision() -> torch.autocast:
    """What the step computes in."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA)


def step_of(module: nn.Module, loss: Loss) -> Callable[[Tensor, Tensor], None]:
    """A training step: forward, backward, Adam."""
    optimizer = torch.optim.Adam(module.train().parameters(), lr=1e-5, fused=True)

    def step(bracket: Tensor, target: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            value = loss(bracket, target)
        value.backward()
        optimizer.step()

    return step


def largest_error(network: Network, bank: str, weights: skt.LossWeights) -> float:
    """Largest difference of the network's gradient inside and outside the framework, relative to the largest value."""
    bracket, target = data_of(network, 64, 1)
    framework = framework_of(network, bank, weights=weights, joint=weights is not NO_TRANSFER)
    bare = copy.deepcopy(network).to(DEVICE)
    for loss in (framework_loss(framework), bare_loss(bare)):
        torch.manual_seed(0)  # the same branches are dropped in both
        loss(bracket, target).backward()
    wanted = [p.grad for p in bare.parameters() if p.grad is not None]
    got = [p.grad for p in framework.orm.parameters() if p.grad is not None]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True) if b.any())


def gradient_of(compute: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Forward and backward of one part, in the step's precision."""

    def call() -> object:
        with precision():
            value = compute()
        return torch.autograd.grad(value, inputs)

    return call


def parts_of(framework: skt.SemanticKnowledgeTransfer, bracket: Tensor, target: Tensor) -> dict[str, Callable]:
    """Every part of the framework alone, on what it gets in a step of a network that has learnt something."""
    taps, teacher_taps = framework.taps.capture(framework.orm), framework.teacher_taps.capture(framework.spgrm)
    with torch.no_grad(), precision(), taps as student, teacher_taps as teacher:
        framework(bracket, target)
    truth = framework.transfer(target)
    picture, refined = ((truth + 0.02 * torch.randn_like(truth)).clamp(0, 1) for _ in range(2))
    with precision():
        priors = framework.bank(picture)
    size = (bracket.shape[-2], bracket.shape[-1])
    maps = [skt.modules.stage_layout.as_feature_map(stage, size).detach().requires_grad_() for stage in student]
    spgrm, skams = list(framework.spgrm.parameters()), list(framework.skams.parameters())
    leaf, hdr = picture.clone().requires_grad_(), target.clone().requires_grad_()
    regions: dict = {"labels": priors.labels, "num_regions": priors.valid.shape[1]}
    if priors.labels is None:
        regions = {"masks": priors.masks}

    def refine() -> Tensor:
        return (framework.spgrm(picture, priors.features).float() - truth).abs().mean()

    def align() -> Tensor:
        return torch.stack(
            [skam(*pair).loss for skam, *pair in zip(framework.skams, maps, teacher, strict=True)]
        ).mean()

    def describe() -> object:
        with torch.no_grad(), precision():
            return framework.bank(picture)

    def tonemap() -> object:
        framework.transfer(target)
        return torch.autograd.grad(framework.transfer(hdr).mean(), hdr)

    def color() -> Tensor:
        return framework.color_loss(leaf, refined, valid=priors.valid, **regions)

    return {
        "bank, with regions": describe,
        "SPGRM, with its pyramid": gradient_of(refine, spgrm),
        "SKAMs": gradient_of(align, [*maps, *skams]),
        "color loss": gradient_of(color, [leaf]),
        "content loss": gradient_of(lambda: skt.content_loss(leaf, refined), [leaf]),
        "domain transfer": tonemap,
        "Adam of SPGRM and SKAMs": adam_of([*spgrm, *skams]),
    }


def adam_of(parameters: list[Tensor]) -> Callable[[], object]:
    """The optimizer's step of as many weights, with gradients that leave them as they are."""
    copies = [torch.zeros_like(p, requires_grad=True) for p in parameters]
    for p in copies:
        p.grad = torch.zeros_like(p)
    return torch.optim.Adam(copies, lr=1e-5, fused=True).step


def time_steps(name: str, bank: str, crop: int, batch: int, rounds: int) -> dict[str, dict]:
    """Both steps and all parts take turns, after a check that the framework leaves the network's gradient alone."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    error = largest_error(network, bank, NO_TRANSFER)
    assert error <= (1e-3 if CUDA else 1e-6), (name, error)
    bracket, target = data_of(network, crop, batch)
    bare, framework = copy.deepcopy(network).to(DEVICE), framework_of(network, bank)
    steps = [step_of(bare, bare_loss(bare)), step_of(framework, framework_loss(framework))]
    methods = {method: partial(step, bracket, target) for method, step in zip(METHODS, steps, strict=True)}
    methods |= parts_of(framework, bracket, target)
    return ratios(interleave(methods, DEVICE, rounds, warmup=3 if CUDA else 1), METHODS[0])


def time_largest_batch(name: str, options: argparse.Namespace) -> tuple[int, dict[str, dict]]:
    """The largest batch that fits, from the wanted one downwards, and its times."""
    batch = options.batch
    while True:
        gc.collect()
        try:
            return batch, time_steps(name, options.bank, options.crop, batch, options.rounds)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2
        torch.cuda.empty_cache()


def peak(reset: bool = False) -> float:
    """MiB at the peak since the last reset; on a GPU, of its tensors."""
    if CUDA:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def peak_memory(name: str, method: str, bank: str, crop: int, batch: int) -> float:
    """MiB of one step with its module and optimizer, in this process alone."""
    torch.manual_seed(0)
    small = framework_of(SMALL["AHDRNet"](), bank)
    step_of(small, framework_loss(small))(*data_of(small.orm, 64, 1))  # loads what is needed
    network = NETWORKS[name]()
    first, data = data_of(network, 64, 1), data_of(network, crop, batch)
    del small, network
    gc.collect()
    before = peak(reset=True)
    if method == METHODS[0]:
        bare = NETWORKS[name]().to(DEVICE)
        step = step_of(bare, bare_loss(bare))
    else:
        framework = framework_of(NETWORKS[name](), bank)
        step = step_of(framework, framework_loss(framework))
    step(*first)  # makes Adam's state
    step(*data)
    return round(peak() - before, 1)


def child(name: str, method: str, options: argparse.Namespace) -> float:
    """The same in a fresh process whose malloc gives back at once."""
    command = [sys.executable, __file__, "--memory", name, method, "--bank", options.bank]
    command += ["--crop", str(options.crop), "--batch", str(options.batch)]
    extra = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=os.environ | extra, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Everything about one network."""
    batch, times = time_largest_batch(name, options)
    torch.cuda.empty_cache()
    memory = {method: child(name, method, argparse.Namespace(**vars(options) | {"batch": batch})) for method in METHODS}
    ratio = f"ratio_to_{METHODS[0]}"
    parts = {part: row[ratio] for part, row in times.items() if part not in METHODS}
    return {
        "batch": batch,
        "step": {method: times[method] for method in METHODS},
        "parts": {part: times[part] for part in parts},
        "sum of the parts": round(sum(parts.values()), 3),
        "memory in MiB": memory,
        "goals": {
            "step": goal(times[METHODS[1]][ratio], STEP_GOALS.get(name)),
            "memory": goal(round(memory[METHODS[1]] / memory[METHODS[0]], 3), MEMORY_GOAL),
        },
    }


def goal(ratio: float, wanted: float | None) -> dict[str, object]:
    """A ratio of framework to bare, and whether it is small enough."""
    return {"ratio": ratio, "goal": wanted, "met": None if wanted is None else ratio <= wanted}


def table(rows: dict[str, dict]) -> str:
    """Networks by line: time, memory, and the parts' shares of the bare step."""
    verdict = {True: "met", False: "missed", None: "no goal"}
    parts = list(next(iter(rows.values()))["parts"])
    head = ["network", "batch", "bare", "framework", "ratio", "goal", "memory", "framework", "ratio", "goal"]
    lines = [[*head, *parts]]
    for name, row in rows.items():
        line = [name, str(row["batch"])]
        seconds = [f"{row['step'][method]['median_ms'] / 1e3:.3f} s" for method in METHODS]
        mib = [f"{row['memory in MiB'][method]:.0f} MiB" for method in METHODS]
        for kind, values in (("step", seconds), ("memory", mib)):
            found = row["goals"][kind]
            line += [*values, f"{found['ratio']:.2f}", f"{found['goal'] or ''} {verdict[found['met']]}".strip()]
        lines.append(line + [f"{row['parts'][part]['ratio_to_bare step']:.3f}" for part in parts])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=256, help="side of the picture; packed RAW has half of it")
    parser.add_argument("--batch", type=int, default=16 if CUDA else 1, help="samples per step")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which ones")
    parser.add_argument("--rounds", type=int, default=15 if CUDA else 5, help="interleaved rounds of each timing")
    parser.add_argument("--bank", choices=BANKS, default="lite0", help="EfficientNet-Lite0, or FastSAM-s fast")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = parse()
    if options.memory:
        print(peak_memory(*options.memory, options.bank, options.crop, options.batch))
        return
    command = " ".join(["python benchmarks/test_train_step.py", *sys.argv[1:]])
    result: dict[str, object] = {"command": command, **environment(DEVICE)}
    result |= {"bank": options.bank, "crop": options.crop, "precision": "bfloat16 autocast" if CUDA else "float32"}
    rows: dict[str, dict] = {}
    for name in options.networks:
        rows[name] = measure(name, options)
        print(name, json.dumps(rows[name], indent=1), flush=True)
    print(table(rows))
    suite = "train-step" if options.bank == "lite0" else f"train-step-{options.bank}"
    write_result(options.out, suite, {**result, "networks": rows})


@pytest.mark.parametrize("name", SMALL)
def test_the_framework_leaves_the_gradient_of_l_org_as_it_is(name: str) -> None:
    network = SMALL[name]()
    assert largest_error(network, "lite0", NO_TRANSFER) <= (1e-3 if CUDA else 1e-6)
    assert largest_error(network, "lite0", skt.LossWeights.recommended()) > 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SMALL)
def test_train_step(benchmark, name: str, method: str) -> None:
    torch.manual_seed(0)
    network = SMALL[name]().to(DEVICE)
    bracket, target = data_of(network, 64, 1)
    if method == METHODS[0]:
        step = step_of(network, bare_loss(network))
    else:
        framework = framework_of(network, "lite0")
        step = step_of(framework, framework_loss(framework))

    def timed() -> None:
        step(bracket, target)
        synchronize(DEVICE)

    benchmark.extra_info |= environment(DEVICE)
    benchmark.pedantic(timed, rounds=3, warmup_rounds=1)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("name", SMALL)
def test_a_step_does_not_wait_for_the_device(name: str, bank: str) -> None:
    framework = framework_of(SMALL[name](), bank)
    step = step_of(framework, framework_loss(framework))
    bracket, target = data_of(framework.orm, 64, 2)
    step(bracket, target)  # makes Adam's state and compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(bracket, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
