"""The plan of a run before it starts: parameters, operations, steps and files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.banks.registry import check_bank_weights
from skt_components.data.sample import HDRSample
from skt_components.framework import SemanticKnowledgeTransfer
from skt_components.ops.checks import check_count
from skt_components.training.config import TrainConfig

_SIDE = 64  # of the piece of the sample on which multiply-adds are counted, in pixels


def describe_plan(
    config: TrainConfig,
    framework: SemanticKnowledgeTransfer,
    sample: HDRSample,
    *,
    samples_per_epoch: int | None = None,
    processes: int = 1,
) -> str:
    """Describe a run: parameters, multiply-adds, steps, and the files that it will write.

    Multiply-adds of convolutions, matrix products and attention are counted in one forward pass on a small piece of
    the sample, and scaled by the number of pixels.

    Args:
        config: the options of the run.
        framework: the framework as it will be trained, before ``torch.compile``; it is not changed.
        sample: a training sample, or another sample of its kind.
        samples_per_epoch: length of the data; None if it has no end.
        processes: number of processes that train together.

    Returns:
        A line for each of these.

    Raises:
        FileNotFoundError: a file or folder that ``config`` names does not exist.
        TypeError: ``sample`` is not a sample.
        ValueError: ``samples_per_epoch`` or ``processes`` is below 1.

    Example:
        >>> print(describe_plan(config, framework, data[0], samples_per_epoch=len(data)))  # doctest: +SKIP
        parameters   1,441,283 network + 914,904 teacher + 664,704 SKAMs trained; 700,768 bank frozen
        ...
    """
    if not isinstance(sample, HDRSample):
        raise TypeError(f"sample must be an HDRSample, got {type(sample).__name__}")
    check_count("processes", processes, 1)
    if samples_per_epoch is not None:
        check_count("samples_per_epoch", samples_per_epoch, 1)
    check_files(config)
    trained, bank = _trained_parameters(framework), _count(framework.bank, frozen=True)
    lines = {
        "parameters": f"{' + '.join(f'{n:,} {name}' for name, n in trained.items())} trained; {bank:,} bank frozen",
        "operations": _describe_operations(config, framework, sample),
        "steps": _describe_steps(config, samples_per_epoch, processes),
        "writes": _describe_files(config, framework),
    }
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())


def check_files(config: TrainConfig) -> None:
    """Raise FileNotFoundError if a file or folder that the options name, or the bank's weights, does not exist."""
    if config.root is not None and not config.root.is_dir():
        raise FileNotFoundError(f"root={config.root} is not a folder")
    if config.resume is not None and not (config.resume / "config.toml").is_file():
        raise FileNotFoundError(f"resume={config.resume} is not a run folder: it has no config.toml")
    if config.perceptual not in (None, "bank", "pretrained") and not Path(str(config.perceptual)).is_file():
        raise FileNotFoundError(f"perceptual={config.perceptual} is neither bank, pretrained nor a file")
    check_bank_weights(config.knowledge_bank, config.weights, download=config.download)
    named = config.knowledge_bank != "fastsam" and config.weights not in (None, "pretrained", "random")
    if named and not Path(str(config.weights)).expanduser().is_file():
        raise FileNotFoundError(f"weights={config.weights} is not a file")


def format_bytes(count: float) -> str:
    """Return a number of bytes with its binary unit.

    Example:
        >>> format_bytes(3 * 2**20)
        '3 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def _describe_operations(config: TrainConfig, framework: SemanticKnowledgeTransfer, sample: HDRSample) -> str:
    from torch.utils.flop_counter import FlopCounterMode  # which loads triton

    model = copy.deepcopy(framework).train()  # running statistics change in the copy alone
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    scale = sample.target.shape[-1] // sample.bracket.shape[-1]
    side = min(config.crop, _SIDE // 2 * config.scale if config.domain == "raw" else _SIDE, *sample.target.shape[-2:])
    bracket = sample.bracket[None, ..., : side // scale, : side // scale].to(device)
    target = sample.target[None, ..., :side, :side].to(device)
    metadata = {key: value[None].to(device) for key, value in config.rendering_metadata(sample).items()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        with FlopCounterMode(display=False) as alone:
            model.forward_orm(model.orm, bracket)
        with FlopCounterMode(display=False) as whole:
            model(bracket, target, metadata=metadata)
    area = config.crop**2 / target[0, 0].numel()
    network, everything = (counter.get_total_flops() / 2e9 * area for counter in (alone, whole))
    return (
        f"{network:.4g} GMACs forward per {config.crop} x {config.crop} sample for the network alone, "
        f"{everything:.4g} GMACs for the whole framework ({everything / max(network, 1e-9):.2f} times)"
    )


def _describe_steps(config: TrainConfig, samples_per_epoch: int | None, processes: int) -> str:
    samples = config.steps * config.batch_size * config.accumulate * processes
    factors = [f"{config.batch_size:,} sample{'s' * (config.batch_size != 1)}"]
    factors += [f"{config.accumulate} passes"] * (config.accumulate > 1) + [f"{processes} processes"] * (processes > 1)
    epochs = "" if samples_per_epoch is None else f", {samples / samples_per_epoch:.4g} epochs of {samples_per_epoch:,}"
    runs = config.seeds * (1 + config.compare)
    again = f"; {runs} runs of them" if runs > 1 else ""
    return f"{config.steps:,} of {' x '.join(factors)}: {samples:,} samples{epochs}{again}"


def _describe_files(config: TrainConfig, framework: SemanticKnowledgeTransfer) -> str:
    checkpoints = -(-config.steps // config.checkpoint_every)
    validations = -(-config.steps // config.validate_every) + 1
    network, trained = 4 * _count(framework.orm, frozen=True), 4 * sum(_trained_parameters(framework).values())
    size = 3 * trained + (network if config.ema_decay > 0 else 0)
    kept = min(checkpoints, config.keep) + 1  # the newest, and the best
    runs = config.seeds * (1 + config.compare)
    each = f"for each of {runs} runs " * (runs > 1)
    return (
        f"{each}{checkpoints:,} checkpoints of {format_bytes(size)}, of which {kept} stay: {format_bytes(kept * size)};"
        f" {validations:,} validations; {format_bytes(network)} weights of the network at the end, as much of the best"
    )


def _trained_parameters(framework: SemanticKnowledgeTransfer) -> dict[str, int]:
    parts = {"network": framework.orm, "teacher": framework.spgrm, "SKAMs": framework.skams}
    return {name: _count(part) for name, part in parts.items()}


def _count(module: nn.Module, *, frozen: bool = False) -> int:
    """Return the number of trained parameters, or of all parameters if ``frozen``."""
    parameters = {id(p): p for p in _parameters(module)}.values()
    return sum(p.numel() for p in parameters if frozen or p.requires_grad)


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters of a module, and of networks that :class:`Frozen` hides."""
    yield from module.parameters()
    for child in module.modules():
        if isinstance(child, Frozen):
            yield from _parameters(child.network)
