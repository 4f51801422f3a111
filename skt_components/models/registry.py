"""Reconstruction networks by name, and their files."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.files.weights import check_state_dict, import_safetensors, read_state_dict, write_safetensors
from skt_components.models.ahdrnet import AHDRNet
from skt_components.models.hdr_transformer import HDRTransformer
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.sctnet import SCTNet
from skt_components.models.tmrnet import TMRNet, TMRNetPlus

ForwardORM = Callable[[nn.Module, Tensor], Tensor]

_NETWORKS = (AHDRNet, HDRTransformer, SCTNet, TMRNet, TMRNetPlus)


def _tmrnet(*, scale: int = 1, **options: Any) -> TMRNet:
    """Make TMRNet, or TMRNet+ for ``scale`` 4."""
    return (TMRNetPlus if scale == 4 else TMRNet)(**options)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ahdrnet": AHDRNet,
    "ahdrnet-small": partial(AHDRNet, features=16, num_layers=4, growth=8),
    "hdr-transformer": HDRTransformer,
    "hdr-transformer-small": partial(HDRTransformer, features=24, depths=(2,) * 3, num_heads=(4,) * 3),
    "sctnet": SCTNet,
    "sctnet-small": partial(SCTNet, features=30, depths=(2,) * 4, num_heads=(2,) * 4, channel_heads=2),
    "tmrnet": _tmrnet,
    "tmrnet-small": partial(_tmrnet, features=16, num_blocks=(1, 2, 2, 1)),
}


def load_network(
    name: str, known: Mapping[str, Callable[..., nn.Module]], **options: Any
) -> tuple[nn.Module, ForwardORM]:
    """Make a network by a known name or as ``package.module:callable``, and say how to call it.

    Args:
        name: a key of ``known``, or the import path of a callable without arguments that returns a network, or a
            network and a function ``forward(network, bracket) -> hdr`` for one that is called differently. The
            working directory is searched too.
        known: makers by name.
        **options: for the makers of ``known``; a callable by its import path gets none.

    Raises:
        ValueError: there is no such name, it does not import, it needs arguments, or it gives no network.
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
        with suppress(ValueError):  # of a callable that does not say its arguments
            inspect.signature(maker).bind()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} does not give a network when called without arguments: {error}") from error
    made = maker()  # what fails in there needs its traceback
    network, forward = made if isinstance(made, tuple) and len(made) == 2 else (made, call_network)
    if not isinstance(network, nn.Module) or not callable(forward):
        raise ValueError(f"{name} must return an nn.Module, or one and a function, got {type(made).__name__}")
    return network, forward


def call_network(network: nn.Module, bracket: Tensor) -> Tensor:
    """Call a network in the plain way."""
    return network(bracket)


def save_weights(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write the model's own state dict as safetensors, atomically.

    Args:
        path: a ``.safetensors`` file; it is replaced if it exists, its folder must exist.
        model: the model; nothing but its state dict is written, and for a :class:`ReconstructionNetwork`, as the
            file's metadata, how it was made, so that :func:`load_model` can make it again.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: the folder does not exist.
        OSError: the disk is full or not writable; the old file is untouched.
    """
    # Clones, because safetensors refuses tensors that share memory, such as tied weights.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    metadata = None
    if isinstance(model, ReconstructionNetwork):
        metadata = {"network": type(model).__name__, "config": json.dumps(model.config)}
    write_safetensors(path, state, metadata)


def load_model(path: str | os.PathLike[str]) -> ReconstructionNetwork:
    """Make the network that :func:`save_weights` wrote, with its weights, on the CPU and in eval mode.

    Args:
        path: a ``.safetensors`` file of one of this library's networks.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file does not say which network it is from, or does not fit it.

    Example:
        >>> import tempfile
        >>> from skt_components import AHDRNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/orm.safetensors", AHDRNet(features=8, num_layers=2, growth=4))
        ...     load_model(f"{folder}/orm.safetensors").config["growth"]
        4
    """
    state = read_state_dict(path)  # says what is wrong with the file
    safetensors = import_safetensors("reading weights")
    metadata: dict[str, str] = {}
    if Path(path).suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    known = {network.__name__: network for network in _NETWORKS}
    if metadata.get("network") not in known:
        found = f"names {metadata['network']!r}" if "network" in metadata else "names none"
        raise ValueError(
            f"{path} must name one of the networks {', '.join(sorted(known))} in its metadata, as save_weights writes "
            f"it, but {found}; make the network yourself and use load_weights (--orm of evaluate.py)"
        )
    try:
        network = known[metadata["network"]](**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a broken config of {metadata['network']}: {error}") from error
    check_state_dict(path, state, network.state_dict())
    network.load_state_dict(state)
    return network.eval()


def load_weights(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load a state dict (``.safetensors``, ``.pth`` or ``.pt``) into ``model``, all keys or none.

    Raises:
        ImportError: a ``.safetensors`` file is given and safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, holds code, or its names or shapes are not the model's; the message
            lists them.
    """
    state = read_state_dict(path)
    check_state_dict(path, state, model.state_dict())  # before loading, which would stop halfway
    model.load_state_dict(state, strict=True)
