"""Files of a run: atomic checkpoints, plain weights, and the guard against non-finite numbers."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skt_components.models.ahdrnet import AHDRNet
from skt_components.models.hdr_transformer import HDRTransformer
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.sctnet import SCTNet
from skt_components.models.tmrnet import TMRNet, TMRNetPlus
from skt_components.modules.weights import (
    check_state_dict,
    import_safetensors,
    read_state_dict,
    replacing,
    write_safetensors,
)

_NETWORKS = (AHDRNet, HDRTransformer, SCTNet, TMRNet, TMRNetPlus)


class NonFiniteError(FloatingPointError):
    """A tensor of the training step is NaN or infinite; the message names it.

    Attributes:
        step: number of the training step, where it is known.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Within the block SIGINT (Ctrl-C) and SIGTERM are only noted, so that a training step is never cut in two.

    What the block gets returns the signal's number, or 0. A second Ctrl-C ends at once. In a thread other than the main
    one, where Python has no signals, nothing is noted.

    Example:
        >>> with deferred_interrupt() as interrupted:
        ...     interrupted()
        0
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        seen.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` with ``torch.save``; a reader sees the old file or the new one, never half of one.

    Args:
        path: the file; it is replaced if it exists, its folder must exist.
        state: tensors, numbers, strings, lists and dicts of them, so that it loads with ``weights_only=True``.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the disk is full or not writable; the old file is untouched.
    """
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, without executing anything in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or holds something other than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict, got {type(state).__name__}")
    return state


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
