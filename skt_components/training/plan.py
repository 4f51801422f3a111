"""What a training run will take, before it starts: parameters, operations, memory, steps, files."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skt_components.banks.frozen import Frozen
from skt_components.banks.registry import check_bank_weights
from skt_components.data.sample import HDRSample
from skt_components.framework.semantic_transfer import SemanticKnowledgeTransfer
from skt_components.training.config import TrainConfig
from skt_components.training.engine import mixed_precision, pick_device

# What is left of the activations in half precision: the convolutions' own half, while norms and losses stay float32.
_HALF_PRECISION = 0.6
# A CPU's memory in full: glibc's malloc holds on to pieces between tensors. With AHDRNet and HDRTransformer at 128 and
# 256 pixels the process grew by 1.33 to 1.45 times what was alive, and by 1.0 with a malloc that gives all back.
_CPU_ALLOCATOR = 1.35


class _Cost(NamedTuple):
    """What one sample at the training crop costs."""

    network_macs: float
    framework_macs: float
    activation_bytes: float


def describe_plan(
    config: TrainConfig,
    framework: SemanticKnowledgeTransfer,
    sample: HDRSample,
    *,
    samples_per_epoch: int | None = None,
    processes: int = 1,
) -> str:
    """Say what a run will take: parameters, multiply-adds, memory, steps, and what it will write.

    Multiply-adds and memory are measured in one training step of a copy on a small piece of the sample, and scaled by
    the number of pixels. Multiply-adds are those of convolutions, products and attention in one forward pass. The
    memory is an estimate: what tensors hold at the peak of a step and, on a CPU, what malloc adds; without what Python
    and the libraries take for themselves, some 0.9 GiB on a CPU.

    Args:
        config: the options of the run.
        framework: the framework as it will be trained, on any device, before ``torch.compile``; it is not changed.
        sample: a training sample, or any other with pictures of its kind.
        samples_per_epoch: length of the data; None where it has no end.
        processes: how many train together.

    Returns:
        The text, a line for each thing.

    Raises:
        FileNotFoundError: a file or folder that ``config`` names is not there.
        TypeError: ``sample`` is not a sample.
        ValueError: ``samples_per_epoch`` or ``processes`` is below 1, or there is no such device.

    Example:
        >>> print(describe_plan(config, framework, data[0], samples_per_epoch=len(data)))  # doctest: +SKIP
        parameters   1,441,283 network + 914,904 teacher + 664,704 SKAMs trained; 700,768 bank frozen
        ...
    """
    if not isinstance(sample, HDRSample):
        raise TypeError(f"sample must be an HDRSample, got {type(sample).__name__}")
    for name, value in (("samples_per_epoch", samples_per_epoch), ("processes", processes)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    check_files(config)
    cost = _measure(config, framework, sample)
    lines = {
        "parameters": _describe_parameters(framework),
        "operations": _describe_operations(config, cost),
        "memory": _describe_memory(config, framework, cost),
        "steps": _describe_steps(config, samples_per_epoch, processes),
        "writes": _describe_files(config, framework),
    }
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())


def check_files(config: TrainConfig) -> None:
    """Raise unless every file and folder that the options name is there, and the bank's weights are.

    Raises:
        FileNotFoundError: one is not; the message names the option.
    """
    if config.root is not None and not config.root.is_dir():
        raise FileNotFoundError(f"--root {config.root} is no folder")
    if config.resume is not None and not (config.resume / "config.toml").is_file():
        raise FileNotFoundError(f"--resume {config.resume} is no run folder: it has no config.toml")
    if config.perceptual not in (None, "bank", "pretrained") and not Path(str(config.perceptual)).is_file():
        raise FileNotFoundError(f"--perceptual {config.perceptual} is neither bank, pretrained nor a file")
    check_bank_weights(config.knowledge_bank, config.weights, download=config.download)
    named = config.knowledge_bank != "fastsam" and config.weights not in (None, "pretrained", "random")
    if named and not Path(str(config.weights)).expanduser().is_file():
        raise FileNotFoundError(f"--weights {config.weights} is no file")


def _measure(config: TrainConfig, framework: SemanticKnowledgeTransfer, sample: HDRSample) -> _Cost:
    from torch.utils.flop_counter import FlopCounterMode  # which loads triton

    model = copy.deepcopy(framework).train()  # gradients and running statistics are the copy's
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    scale = sample.target.shape[-1] // sample.bracket.shape[-1]
    side = min(config.crop, 32 * config.scale if config.domain == "raw" else 64, *sample.target.shape[-2:])
    bracket = sample.bracket[None, ..., : side // scale, : side // scale].to(device)
    target = sample.target[None, ..., :side, :side].to(device)
    metadata = {key: value[None].to(device) for key, value in sample.metadata.items()} if config.metadata else {}
    area = config.crop**2 / target[0, 0].numel()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with torch.no_grad(), FlopCounterMode(display=False) as alone:
            model.forward_orm(model.orm, bracket)
        for parameter in model.parameters():
            if parameter.requires_grad:  # a gradient that is kept would count as an activation
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with _LiveBytes(_tensors(model)) as live:
            with FlopCounterMode(display=False) as whole:
                loss = model(bracket, target, metadata=metadata).total
            loss.backward()
    flops = [counter.get_total_flops() for counter in (alone, whole)]
    return _Cost(flops[0] / 2 * area, flops[1] / 2 * area, live.peak * area)


class _LiveBytes(TorchDispatchMode):
    """Follow how many bytes are alive in what operations return, but for the storages of ``known`` tensors."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, also of networks in :class:`Frozen`."""
    yield from module.parameters()
    yield from module.buffers()
    for child in module.modules():
        if isinstance(child, Frozen):
            yield from _tensors(child.network)


def _count(module: nn.Module, *, frozen: bool = False) -> int:
    """Parameters that are trained; or all of them, if ``frozen``."""
    parameters = {id(p): p for p in _tensors(module) if isinstance(p, nn.Parameter)}.values()
    return sum(p.numel() for p in parameters if frozen or p.requires_grad)


def _trained(framework: SemanticKnowledgeTransfer) -> dict[str, int]:
    parts = {"network": framework.orm, "teacher": framework.spgrm, "SKAMs": framework.skams}
    return {name: _count(part) for name, part in parts.items()}


def _describe_parameters(framework: SemanticKnowledgeTransfer) -> str:
    trained = " + ".join(f"{count:,} {name}" for name, count in _trained(framework).items())
    return f"{trained} trained; {_count(framework.bank, frozen=True):,} bank frozen"


def _describe_operations(config: TrainConfig, cost: _Cost) -> str:
    network, framework = cost.network_macs / 1e9, cost.framework_macs / 1e9
    return (
        f"{network:.4g} GMACs forward per {config.crop} x {config.crop} sample for the network alone, "
        f"{framework:.4g} GMACs for the whole framework ({framework / max(network, 1e-9):.2f} times)"
    )


def _describe_memory(config: TrainConfig, framework: SemanticKnowledgeTransfer, cost: _Cost) -> str:
    weights, state = _state_bytes(config, framework)
    device = pick_device(config.device)
    half = mixed_precision(config.precision, device) != "no"
    factor = (_HALF_PRECISION if half else 1) * (_CPU_ALLOCATOR if device.type == "cpu" else 1)
    activations = cost.activation_bytes * config.batch_size * factor
    return (
        f"an estimate of {_size(weights + state + activations)} per process: {_size(activations)} activations of "
        f"{_samples(config.batch_size)}{' in half precision' if half else ''}, {_size(weights)} weights, "
        f"{_size(state)} gradients and moments"
    )


def _state_bytes(config: TrainConfig, framework: SemanticKnowledgeTransfer) -> tuple[int, int]:
    """Bytes of all weights, with those of the bank and of the average; of the gradients and Adam's two moments."""
    own = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(framework)}
    average = 4 * _count(framework.orm) if config.ema_decay > 0 else 0
    return sum(own.values()) + average, 3 * 4 * sum(_trained(framework).values())


def _describe_steps(config: TrainConfig, samples_per_epoch: int | None, processes: int) -> str:
    batch = config.batch_size * config.accumulate * processes
    samples = config.steps * batch
    factors = [_samples(config.batch_size)]
    factors += [f"{config.accumulate} passes"] * (config.accumulate > 1) + [f"{processes} processes"] * (processes > 1)
    epochs = "" if samples_per_epoch is None else f", {samples / samples_per_epoch:.4g} epochs of {samples_per_epoch:,}"
    runs = config.seeds * (1 + config.compare)
    again = f"; {runs} runs of them" if runs > 1 else ""
    return f"{config.steps:,} of {' x '.join(factors)}: {samples:,} samples{epochs}{again}"


def _describe_files(config: TrainConfig, framework: SemanticKnowledgeTransfer) -> str:
    checkpoints = -(-config.steps // config.checkpoint_every)
    validations = -(-config.steps // config.validate_every) + 1
    network, trained = 4 * _count(framework.orm, frozen=True), 4 * sum(_trained(framework).values())
    size = 3 * trained + (network if config.ema_decay > 0 else 0)
    kept = min(checkpoints, config.keep) + 1  # the newest, and the best
    runs = config.seeds * (1 + config.compare)
    each = f"for each of {runs} runs " * (runs > 1)
    return (
        f"{each}{checkpoints:,} checkpoints of {_size(size)}, of which {kept} stay: {_size(kept * size)}; "
        f"{validations:,} validations; {_size(network)} weights of the network at the end, as much of the best"
    )


def _samples(count: int) -> str:
    return f"{count:,} sample{'s' * (count != 1)}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
