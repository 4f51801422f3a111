"""Train an HDR network with semantic knowledge transfer. This file is the whole loop, from top to bottom.

python examples/train_full.py                                          # procedural scenes, a few minutes on a CPU
python examples/train_full.py --data hdr-folder --root PHOTOS          # a folder of .hdr / .exr photographs
python examples/train_full.py --config examples/configs/ahdrnet-tel.toml --root TEL --dry-run  # plan of a paper run
torchrun --nproc-per-node 4 examples/train_full.py --config ...        # four GPUs, or four CPU processes
python examples/train_full.py --camera raw                             # five noisy, blurred RAW exposures
python examples/train_full.py --compare --seeds 3                      # also the bare network, and the paired gain
python examples/train_full.py --orm my_package.nets:MyNet --taps enc body dec
"""

from __future__ import annotations

import copy
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from skt_components import SemanticKnowledgeTransfer
from skt_components.banks import check_bank_weights
from skt_components.framework import BareNetwork
from skt_components.ops import use_huge_pages
from skt_components.training import (
    Engine,
    NonFiniteError,
    ResourceError,
    Run,
    RunData,
    RunFolder,
    Scores,
    TrainConfig,
    Validator,
    build_average,
    build_bank,
    build_data,
    build_losses,
    build_network,
    build_optimizer,
    describe_plan,
    explain,
    framework_options,
    learning_rate,
    name_options,
    parse_options,
    start_network,
    transfer_ramp,
)


class Parts(NamedTuple):
    """Hold the data and the modules of one seed."""

    data: RunData
    framework: SemanticKnowledgeTransfer
    bare: BareNetwork


def build(config: TrainConfig, processes: int) -> Parts:
    """Make the data, the network, the bank, the framework around the network, and a bare copy of the network."""
    data = build_data(config, processes)
    sample = data.validation[0]
    torch.manual_seed(config.seed)
    network, forward = build_network(config)  # from a bracket (B, N, C, H, W) to linear HDR (B, C, H, W)
    start_network(config, network, data.training)
    bank = build_bank(config)  # the frozen network with the semantic knowledge
    org_loss, perceptual = build_losses(config, bank)
    bare = BareNetwork(copy.deepcopy(network), org_loss, forward)
    framework = SemanticKnowledgeTransfer(
        network,
        bank,
        orm_loss=org_loss,
        perceptual=perceptual,
        forward_orm=forward,
        sample=sample.bracket[None],
        **framework_options(config),  # taps, domain, weights of the terms, and which loss trains what
    )
    return Parts(data, framework, bare)


def train(
    config: TrainConfig,
    run_folder: RunFolder,
    folder: Path,
    name: str,
    module: Any,
    data: RunData,
    validator: Validator,
) -> tuple[Scores, nn.Module]:
    """Train the framework or the bare network; return the last scores, and the network to keep."""
    engine, accelerator = run_folder.engine, run_folder.engine.accelerator
    model, optimizer = engine.prepare(module, build_optimizer(config, module), data.training[0])
    average = build_average(config, module.orm)
    run = Run(run_folder, config, folder, name, module, optimizer, average, validator)
    run.resume()
    with run.batches(data.training) as batches:
        for step in run.steps():
            rate, ramp = learning_rate(config, step), transfer_ramp(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for compares in run.passes(step):  # one pass, or several with accumulated gradients
                with accelerator.accumulate(model):
                    forward_backward(config, run, model, next(batches), ramp, compares)
            run.guard(step, accelerator.clip_grad_norm_(module.parameters(), config.clip_grad or math.inf))
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(module.orm)
            run.log(step, rate)
            if run.is_saved(step):
                run.save(step + 1)
            if run.is_validated(step):
                run.validate(step + 1)
            run.stop(step + 1)
    return run.finish()


def forward_backward(config: TrainConfig, run: Run, model: nn.Module, batch: Any, ramp: float, compares: bool) -> None:
    """Compute the losses of network and teacher and their gradients for one pass; free the graph on return."""
    sample, masks = batch
    metadata = config.rendering_metadata(sample)
    output = model(sample.bracket, sample.target, ramp=ramp, generator=masks, metadata=metadata)
    gradients = {}
    if compares and isinstance(run.module, SemanticKnowledgeTransfer):  # the influence of each term on the network
        gradients = run.module.compare_gradients(output, ramp, run.engine.gradient_scale)
    run.engine.accelerator.backward(output.total)
    run.record(sample, output, gradients)


def train_seed(config: TrainConfig, run_folder: RunFolder, folder: Path, parts: Parts) -> dict[str, Scores]:
    """Train with one seed, in the framework, bare or both; write pictures and scores."""
    engine, data = run_folder.engine, parts.data
    framework = parts.framework.to(engine.device, engine.dtype)  # its bank also finds regions for the bare network
    validator = Validator(config, engine, framework, data.validation)
    modules: dict[str, Any] = {} if config.bare else {"framework": framework}
    modules |= {"bare": parts.bare} if config.compare or config.bare else {}
    scores, networks = {}, {}
    for name, module in modules.items():
        scores[name], network = train(config, run_folder, folder, name, module, data, validator)
        networks["ours" if name == "framework" else name] = partial(parts.bare.forward_orm, network)
    run_folder.finish_seed(folder, scores, networks, validator)
    return scores


def main(arguments: list[str]) -> None:
    """Build, train, report."""
    use_huge_pages()
    config = parse_options(arguments)
    check_bank_weights(config.knowledge_bank, config.weights, download=config.download)  # before all other work
    engine = Engine(config)
    for notice in config.unreached_options():
        engine.accelerator.print(name_options(notice), file=sys.stderr)
    with engine.download_in_turn(config):
        parts = build(config, engine.processes)  # before the run folder, so that a mistake leaves no files
    if config.dry_run:
        if engine.is_main:
            print(describe_plan(config, parts.framework, parts.data.training[0], processes=engine.processes))
        return
    run_folder = RunFolder(config, engine)
    results = []
    with run_folder.explain_errors():
        for seeded, folder in run_folder.seed_configs():
            parts = parts if seeded.seed == config.seed else build(seeded, engine.processes)
            results.append(train_seed(seeded, run_folder, folder, parts))
    run_folder.finish(results, parts.data.validation)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (NonFiniteError, ResourceError, OSError, ValueError, ImportError) as error:
        sys.exit(f"train_full.py: {name_options(explain(error))}")
    except KeyboardInterrupt as stop:
        print(f"train_full.py: {name_options(str(stop)) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", 2))
