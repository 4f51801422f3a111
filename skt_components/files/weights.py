"""Weight files, read without running any code that they may carry, and files written whole or not at all."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from skt_components.files.atomic import atomic_write

_MOST_SHARING = 4  # tied weights are stored once and named several times
_SHOWN = 8  # names listed per kind in an error, so that a wrong architecture does not print 300 lines


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict of plain tensors from a ``.pth``/``.pt`` or ``.safetensors`` file, onto the CPU.

    A state dict wrapped as ``{"state_dict": ...}`` or ``{"model": ...}`` is unwrapped, and the ``module.``
    prefix of DistributedDataParallel is removed. Pickled objects other than tensors are refused unread.

    Args:
        path: the file.

    Returns:
        Parameter name to tensor.

    Raises:
        FileNotFoundError: if ``path`` is not a file.
        ValueError: if the file is damaged, holds code or anything else than named tensors.
        ImportError: if a ``.safetensors`` file is given and safetensors is missing.
    """
    return {key.removeprefix("module."): value for key, value in read_state_dict(path).items()}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read what :func:`load_weights` reads, with the names as they stand in the file; it raises the same."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights file not found: {file}")
    return named_tensors(_read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file), file)


def named_tensors(content: object, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict in what a file held, fit for making a network of; arguments and errors as below."""
    return plain_tensors(unwrap_state_dict(content, source), source)


def unwrap_state_dict(content: object, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return a state dict without the wrapping that training scripts put around it.

    Args:
        content: a state dict, or a dict with one under "state_dict" or "model".
        source: the file's name, for the message.

    Raises:
        ValueError: if it is anything else than named tensors.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source} must hold a state dict (parameter name to tensor), got {_describe(content)}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} must hold only named tensors, got {type(value).__name__} under {key!r}; "
                "save model.state_dict() alone"
            )
    return dict(content)


def plain_tensors(state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict if a network can be made of it; a crafted file may claim more than it holds.

    Args:
        state: names to tensors.
        source: the file they are from.

    Raises:
        ValueError: if a tensor is sparse, quantised, complex or without data, or the tensors are far larger than the
            file, as views that repeat one number are.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
            kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
            raise ValueError(f"{source} must hold dense real numbers only, got {name}: {kind}")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    size = Path(source).stat().st_size
    if claimed > _MOST_SHARING * size:
        raise ValueError(f"{source} has {size} bytes but its tensors claim {claimed}: it is not a file of weights")
    return dict(state)


def hub_cache() -> Path:
    """Return the folder in which PyTorch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def import_safetensors(purpose: str) -> ModuleType:
    """Return safetensors with its part for PyTorch; ImportError says what for, and names the extra."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f'{purpose} needs safetensors: pip install "skt-components[fastsam]"') from error
    return safetensors


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, whole or not at all.

    Raises:
        ImportError: if safetensors is not installed.
        FileNotFoundError: if the folder does not exist.
        OSError: if the disk is full or not writable.
    """
    safetensors = import_safetensors("writing tensors")
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # which is no OSError, whatever happened
            raise OSError(f"{Path(path)} could not be written: {error}") from error


def check_state_dict(source: str | os.PathLike[str], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError, listing names and shapes, unless ``found`` has exactly the keys and shapes ``wanted``.

    Args:
        source: the file's name, for the message.
        found: the state dict that was read.
        wanted: the state dict of the network that shall receive it.
    """
    missing = [k for k in wanted if k not in found]
    unexpected = [k for k in found if k not in wanted]
    shapes = [
        f"{k} {tuple(found[k].shape)}, wanted {tuple(wanted[k].shape)}"
        for k in wanted
        if k in found and found[k].shape != wanted[k].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    lines = [f"{len(names)} {kind}: {_shorten(names)}" for kind, names in problems if names]
    if lines:
        raise ValueError(f"{source} does not fit the network; keys " + "; ".join(lines))


def _read_torch(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of PyTorch's message explains how to load the file unsafely.
        told = re.search(r"WeightsUnpickler error:\s*(.*?)(?:\.? Please |$)", str(error), flags=re.MULTILINE)
        raise ValueError(
            f"{file} was refused: it is damaged, not a file of torch.save (a .safetensors file must have that suffix), "
            "or holds Python objects other than tensors, which could run code when loaded; save model.state_dict() "
            f"alone. {told[1] if told else ''}".rstrip()
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is not a readable PyTorch weights file: {first}") from None


def _read_safetensors(file: Path) -> object:
    safetensors = import_safetensors(f"reading {file}")
    try:
        with open(file, "rb"):  # safetensors calls a file that may not be read missing
            return safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None


def read_safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the texts that a ``.safetensors`` file holds beside its tensors, which are not read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a safetensors file.
        ImportError: if safetensors is not installed.
    """
    safetensors = import_safetensors(f"reading {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _describe(content: object) -> str:
    return "an empty mapping" if isinstance(content, Mapping) else type(content).__name__


def _shorten(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
