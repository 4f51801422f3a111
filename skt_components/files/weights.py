"""Read weight files without running code in them; write and check state dicts."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from skt_components.files.atomic import atomic_write
from skt_components.files.packages import import_package

_MOST_SHARING = 4  # tied weights are stored once and named several times
_DIGEST = "sha256"  # key of the metadata
_SHOWN = 8  # names listed per kind in an error, so that a wrong architecture does not print 300 lines


def read_state_dict(path: str | os.PathLike[str], *, prefix: str = "") -> dict[str, Tensor]:
    """Read a state dict of plain tensors from a ``.pth``/``.pt`` or ``.safetensors`` file, onto the CPU.

    A state dict wrapped as ``{"state_dict": ...}`` or ``{"model": ...}`` is unwrapped. Pickled objects other than
    tensors are rejected. The digest in files of :func:`write_safetensors` is checked.

    Args:
        path: the file; ``.safetensors`` needs safetensors.
        prefix: removed from the start of each name, such as the ``"module."`` of DistributedDataParallel.

    Raises:
        FileNotFoundError: if ``path`` is not a file.
        ValueError: if the file is damaged, or holds anything but named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights file not found: {file}")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    state = unwrap_state_dict(content, file)
    check_plain_tensors(state, file)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def unwrap_state_dict(content: object, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict in ``content``, under "state_dict" or "model" if it is wrapped; else raise ValueError."""
    if isinstance(content, Mapping) and {"module", "optimizer", "samples_per_step"} <= content.keys():
        files = sorted(Path(source).absolute().parent.parent.glob("*.safetensors"))
        use = f"use {' or '.join(map(str, files))}" if files else "the run has not written its weights yet"
        raise ValueError(f"{source} is a checkpoint, from which a training run continues: {use}")
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        kind = "an empty mapping" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{source} must hold a state dict (parameter name to tensor), got {kind}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} must hold only named tensors, got {type(value).__name__} under {key!r}; "
                "save model.state_dict() alone"
            )
    return dict(content)


def check_plain_tensors(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless a file's tensors are dense real numbers on the CPU that the file can hold.

    A crafted file may claim more than it holds: views that repeat one number, or tensors without data.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
            kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
            raise ValueError(f"{path} must hold dense real numbers only, got {name}: {kind}")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    size = Path(path).stat().st_size
    if claimed > _MOST_SHARING * size:
        raise ValueError(f"{path} has {size} bytes but its tensors claim {claimed}: it is not a file of weights")


def hub_cache() -> Path:
    """Return the folder in which PyTorch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def import_safetensors(purpose: str) -> ModuleType:
    """Import safetensors; the ImportError names ``purpose`` and the extra to install."""
    import_package("safetensors.torch", f"{purpose} needs safetensors", "fastsam")
    return sys.modules["safetensors"]


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, metadata and the digest of both; the same content gives the same bytes.

    Errors as of :func:`atomic_write`, and ImportError if safetensors is not installed.
    """
    safetensors, metadata = import_safetensors("writing tensors"), metadata or {}
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, {**metadata, _DIGEST: tensor_digest(tensors, metadata)})
        except safetensors.SafetensorError as error:
            raise OSError(f"{Path(path)} could not be written: {error}") from error
        _sort_metadata(temporary)


def tensor_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 of tensors (names, dtypes, shapes and values) and of metadata, in any order.

    Example:
        >>> tensor_digest({"a": torch.ones(2), "b": torch.ones(1)})[:8]
        '60dd5134'
    """
    digest = hashlib.sha256(json.dumps(metadata or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sort_metadata(file: Path) -> None:
    """Sort the metadata in the header of a safetensors file, which its writer leaves in random order."""
    with open(file, "rb+") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # safetensors escapes characters as JSON must, so that the length stays
            opened.seek(8)
            opened.write(text.ljust(length))


def check_state_dict(source: str | os.PathLike[str], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless ``found`` has exactly the keys and shapes of ``wanted``; ``source`` names the file."""
    missing = [k for k in wanted if k not in found]
    unexpected = [k for k in found if k not in wanted]
    shapes = [
        f"{k} {tuple(found[k].shape)}, wanted {tuple(wanted[k].shape)}"
        for k in wanted
        if k in found and found[k].shape != wanted[k].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    lines = []
    for kind, names in problems:
        rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        if names:
            lines.append(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{rest}")
    if lines:
        raise ValueError(f"{source} does not fit the network; keys " + "; ".join(lines))


def check_archive(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> None:
    """Raise ValueError if the parts of a zip file are compressed or overlap: a small one could unpack to anything."""
    entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
        raise ValueError("its parts are compressed or overlap, which torch.save does not do")


def _read_torch(file: Path) -> object:
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                check_archive(archive, file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of PyTorch's message explains how to load the file unsafely.
        reason = re.search(r"WeightsUnpickler error:\s*(.*?)(?:\.? Please |$)", str(error), flags=re.MULTILINE)
        raise ValueError(
            f"{file} was rejected: it is damaged, not a file of torch.save (a .safetensors file must have that suffix),"
            " or holds Python objects other than tensors, which could run code when loaded; save model.state_dict() "
            f"alone. {reason[1] if reason else ''}".rstrip()
        ) from None
    except Exception as error:  # a damaged file can make the reader fail in any way
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is not a readable PyTorch weights file: {first}") from None


def _read_safetensors(file: Path) -> object:
    safetensors = import_safetensors(f"reading {file}")
    try:
        with open(file, "rb"):  # safetensors calls a file that may not be read missing
            tensors = safetensors.torch.load_file(file)
            metadata = read_safetensors_metadata(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    stored = metadata.pop(_DIGEST, None)  # files of others have none
    if stored is not None and stored != tensor_digest(tensors, metadata):
        raise ValueError(f"{file} is damaged: its tensors do not have the digest that the file names")
    return tensors


def read_safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a ``.safetensors`` file; raise FileNotFoundError, or ValueError for another file."""
    safetensors = import_safetensors(f"reading {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
