"""The table of reconstruction networks, and their weight files."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from skt_components.data.sample import RAW_PEAK
from skt_components.files.weights import check_state_dict, read_safetensors_metadata, read_state_dict, write_safetensors
from skt_components.models.ahdrnet import AHDRNet
from skt_components.models.hdr_transformer import HDRTransformer
from skt_components.models.network import ReconstructionNetwork, official_state
from skt_components.models.sctnet import SCTNet
from skt_components.models.tmrnet import TMRNet, TMRNetPlus
from skt_components.ops.checks import check_choice

_COMPILED = "_orig_mod."  # in names of compiled modules
_MOST_CALLS = 100  # of torch's functions, to make a weight; our networks take up to 14

ForwardORM = Callable[..., Tensor]


def _tmrnet(*, scale: int = 1, **options: Any) -> TMRNet:
    """Make TMRNet, or TMRNetPlus for ``scale`` 4."""
    return (TMRNetPlus if scale == 4 else TMRNet)(**options)


def _tmrnet_plus(*, scale: int = 4, **options: Any) -> TMRNetPlus:
    check_choice("scale", scale, (4,))
    return TMRNetPlus(**options)


NETWORK_CLASSES: dict[str, type[ReconstructionNetwork]] = {
    "ahdrnet": AHDRNet,
    "hdr-transformer": HDRTransformer,
    "sctnet": SCTNet,
    "tmrnet": TMRNet,
    "tmrnet-plus": TMRNetPlus,
}
"""Class of each published network by name."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **NETWORK_CLASSES,
    "tmrnet": _tmrnet,
    "tmrnet-plus": _tmrnet_plus,
    "ahdrnet-small": partial(AHDRNet, features=16, num_layers=4, growth=8),
    "hdr-transformer-small": partial(HDRTransformer, features=24, depths=(2,) * 3, num_heads=(4,) * 3, drop_path=0.0),
    "sctnet-small": partial(SCTNet, features=30, depths=(2,) * 4, num_heads=(2,) * 4, channel_heads=2, drop_path=0.0),
    "tmrnet-small": partial(_tmrnet, features=16, num_blocks=(1, 2, 2, 1), flow_features=8),
}
"""Makers by name: the published networks at full size, and small forms for trials. All take ``scale``."""


def bracket_options(domain: str, *, scale: int = 1) -> dict[str, Any]:
    """Return the constructor options of a network for the brackets of a domain.

    Args:
        domain: "srgb" for three exposures with linear and LDR RGB, "raw" for five exposures of packed RAW.
        scale: how many times as large as its bracket the output is, 1 or 4; 4 for RAW only.

    Raises:
        ValueError: an argument is none of these.

    Example:
        >>> bracket_options("srgb")
        {'num_frames': 3, 'in_channels': 6, 'out_channels': 3}
    """
    check_choice("domain", domain, ("srgb", "raw"))
    check_choice("scale", scale, (1, 4) if domain == "raw" else (1,))
    if domain == "srgb":
        return {"num_frames": 3, "in_channels": 6, "out_channels": 3}
    options = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": RAW_PEAK}
    return {**options, "scale": scale}


def load_network(
    name: str, known: Mapping[str, Callable[..., nn.Module]] = NETWORKS, **options: Any
) -> tuple[nn.Module, ForwardORM]:
    """Make a network by a known name or as ``package.module:callable``, with the function that calls it.

    Args:
        name: a key of ``known``, or the import path of a callable without arguments that returns a network, or a
            network and a function ``forward(network, bracket) -> hdr``. The working directory is searched too.
        known: makers by name.
        **options: arguments of a maker in ``known`` only.

    Raises:
        ValueError: the name is unknown, or the callable cannot be imported, needs arguments or returns no network.

    Example:
        >>> network, forward = load_network("ahdrnet-small", **bracket_options("raw", scale=4))
        >>> forward(network, torch.rand(1, 5, 4, 8, 12)).shape
        torch.Size([1, 4, 32, 48])
    """
    if name in known:
        return known[name](**options), call_network
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"the network must be one of {', '.join(known)} or package.module:callable, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        maker = getattr(importlib.import_module(module), attribute)
        with suppress(ValueError):  # the callable has no signature
            inspect.signature(maker).bind()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} does not give a network when called without arguments: {error}") from error
    made = maker()  # outside the try: its own errors keep their traceback
    network, forward = made if isinstance(made, tuple) and len(made) == 2 else (made, call_network)
    if not isinstance(network, nn.Module) or not callable(forward):
        raise ValueError(f"{name} must return an nn.Module, or one and a function, got {type(made).__name__}")
    return network, forward


def load_official(
    weights: str | os.PathLike[str] | Mapping[str, Any], name: str | None = None, **options: Any
) -> ReconstructionNetwork:
    """Make a published network with the weights of its authors.

    Args:
        weights: as for :meth:`ReconstructionNetwork.from_official`, which also names the errors.
        name: a key of ``NETWORK_CLASSES``; None recognizes the network by the names of the weights.
        **options: constructor arguments of the network.

    Raises:
        ValueError: the name is unknown, or the weights are not recognized.

    Example:
        >>> authors = AHDRNet(features=8, num_layers=2, growth=4).to_official()
        >>> type(load_official(authors, features=8, num_layers=2, growth=4)).__name__
        'AHDRNet'
    """
    if name is None:
        name = _recognize(weights)
    if (network := NETWORK_CLASSES.get(name)) is None:
        known = ", ".join(NETWORK_CLASSES)
        raise ValueError(f"the network must be one of {known} to have official weights, got {name!r}")
    if issubclass(network, TMRNet):  # its scale follows from its name
        options.pop("scale", None)
    return network.from_official(weights, **options)


def _recognize(weights: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """Return the name of the published network that shares most names of weights, at least half of all."""
    source, state = official_state(weights)
    found = {key.removeprefix("module.") for key in state}
    shares = {}
    for name in NETWORK_CLASSES:
        own = _official_names(name)
        shares[name] = len(found & own) / len(found | own)
    best = max(shares, key=shares.__getitem__)
    if shares[best] < 0.5:
        known, held = ", ".join(NETWORK_CLASSES), ", ".join(sorted(found)[:4])
        raise ValueError(f"{source} holds the weights of none of the networks {known}: its names are {held}, ...")
    return best


@cache
def _official_names(name: str) -> frozenset[str]:
    """Return the names of the weights that the authors of a network published."""
    network = NETWORK_CLASSES[name]
    with torch.device("meta"):
        return frozenset(network(**network.official_options).to_official())


def call_network(network: nn.Module, bracket: Tensor, **inputs: Any) -> Tensor:
    """Return ``network(bracket, **inputs)``."""
    return network(bracket, **inputs)


def save_weights(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write the model's own state dict as safetensors, atomically.

    Args:
        path: a ``.safetensors`` file. It is replaced if it exists. Its folder must exist.
        model: any module. The names in the file do not depend on compilation, nor on DataParallel,
            DistributedDataParallel and AveragedModel around the module. For a :class:`ReconstructionNetwork` the
            metadata contains its class and constructor arguments, which :func:`load_model` reads.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: the folder does not exist.
        OSError: the disk is full or not writable; the old file is untouched.
    """
    model = _unwrap(model)
    state = {  # clones, because safetensors rejects tensors that share memory, such as tied weights
        name.replace(_COMPILED, ""): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    metadata = None
    if isinstance(model, ReconstructionNetwork):
        metadata = {"network": type(model).__name__, "config": json.dumps(model.config)}
    write_safetensors(path, state, metadata)


def load_model(path: str | os.PathLike[str]) -> ReconstructionNetwork:
    """Load a network of this library from a file of :func:`save_weights`, on the CPU in eval mode.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file does not name its network, or the weights do not fit it.

    Example:
        >>> import tempfile
        >>> from skt_components import AHDRNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/orm.safetensors", AHDRNet(features=8, num_layers=2, growth=4))
        ...     load_model(f"{folder}/orm.safetensors").config["growth"]
        4
    """
    state = read_state_dict(path)  # raises for a damaged file
    metadata = read_safetensors_metadata(path) if Path(path).suffix == ".safetensors" else {}
    classes = {network.__name__: network for network in NETWORK_CLASSES.values()}
    if metadata.get("network") not in classes:
        found = f"names {metadata['network']!r}" if "network" in metadata else "names none"
        raise ValueError(
            f"{path} must name one of the networks {', '.join(sorted(classes))} in its metadata, as files of "
            f"save_weights do, but it {found}: make the network yourself and use load_weights"
        )
    try:
        config = json.loads(metadata["config"])
        largest, held = max(_integers(config), default=0), sum(value.numel() for value in state.values())
        if largest > max(held, 1024):
            raise ValueError(f"it contains the number {largest}, but the file has {held} weights")
        make = partial(classes[metadata["network"]], **config)
        with torch.device("meta"), _CallLimit(_MOST_CALLS * (len(state) + 10)):
            shapes = make().state_dict()
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:  # RecursionError is a RuntimeError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} has a broken config of {metadata['network']}: {reason[:200]}") from error
    check_state_dict(path, state, shapes)  # before a network of any size is made
    network = make()
    network.load_state_dict(state)
    return network.eval()


def _integers(value: Any) -> Iterator[int]:
    """Yield the absolute whole numbers in plain values."""
    if isinstance(value, int):
        yield abs(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _integers(part)


class _CallLimit(TorchFunctionMode):
    """Raise ValueError once, after a number of calls of torch's functions in this thread.

    A config can ask for millions of layers, which take memory without their weights too.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._left -= 1
        if self._left == -1:  # only once: no_grad calls a function at its end too, and must not fail there
            raise ValueError("it asks for many more layers than the file has weights for")
        return function(*args, **(kwargs or {}))


def load_weights(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load a state dict (``.safetensors``, ``.pth`` or ``.pt``) into ``model``: all keys, or none after an error.

    The model may be compiled or wrapped, as for :func:`save_weights`.

    Raises:
        ImportError: a ``.safetensors`` file is given and safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, holds code, or its names or shapes do not fit; the message lists them.
    """
    state, model = read_state_dict(path), _unwrap(model)
    own = model.state_dict()
    names = {name.replace(_COMPILED, ""): name for name in own}
    # first, because load_state_dict stops halfway
    check_state_dict(path, state, {clean: own[name] for clean, name in names.items()})
    model.load_state_dict({names[clean]: tensor for clean, tensor in state.items()}, strict=True)


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(inner := getattr(model, _COMPILED[:-1], None), nn.Module):
            model = inner
        else:
            return model
