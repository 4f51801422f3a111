"""State dicts of whole pickled models, taken out without running any code and without the model's package."""

from __future__ import annotations

import os
import pickle
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skt_components.banks.checkpoint import named_tensors

# What YOLO checkpoints of all generations name; whatever the file does with it, it gets an _Inert and nothing runs.
# getattr: how protocol 2 writes a method, such as the Detect.forward that segmentation heads of 8.0 carry.
_HARMLESS = re.compile(
    r"(ultralytics|torch\.nn\.modules)(\.\w+)+"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
    r"|builtins\.getattr|types\.SimpleNamespace|argparse\.Namespace"
    r"|numpy\.(dtype|ndarray)|numpy\._?core\.multiarray\.(scalar|_reconstruct)"
)
_LOCK = threading.RLock()  # PyTorch's list of allowed names belongs to the process
_MAX_DEPTH, _MAX_MODULES = 64, 20_000  # far above any real network; stops graphs that contain themselves


class _Inert:
    """Stands in for every class and function of a pickle: takes anything, does nothing, keeps the state."""

    __slots__ = ("state",)
    state: object

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.state = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def read_pickled_model(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a pickled ``nn.Module``, as ultralytics writes them, without building the module.

    The pickle may name only classes of ultralytics and of ``torch.nn.modules`` and a few harmless others. All of
    them are replaced by one class that does nothing, so neither ultralytics nor any code in the file is needed or
    run; a file that names anything else is refused before it is read. While the file is read, names that other code
    gave to ``torch.serialization.add_safe_globals`` are set aside.

    Args:
        path: a file written by ``torch.save`` of a module, or of a dict with one under "ema" or "model"
            ("ema" wins, as in ultralytics). A plain state dict is returned as it is.

    Returns:
        Parameter and persistent buffer names to tensors on the CPU, in the file's dtypes and in the order of
        ``state_dict()``.

    Raises:
        FileNotFoundError: if ``path`` is not a file.
        ValueError: if the file names anything but the above, is damaged, or holds no model.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights file not found: {file}")
    content = _load_inert(file)
    model = content
    if isinstance(content, Mapping):
        model = content.get("ema") if content.get("ema") is not None else content.get("model")
    if not isinstance(model, _Inert):
        return named_tensors(content, file)
    state = dict(_walk(model, file))
    if not state:
        raise ValueError(f"{file} must hold a pickled model, got an object without parameters")
    return state


def _load_inert(file: Path) -> Any:
    with _LOCK:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            return _load_allowed(file)
        finally:
            torch.serialization.add_safe_globals(others)


def _load_allowed(file: Path) -> Any:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        refused = sorted(name for name in names if not _HARMLESS.fullmatch(name))
        if not refused:
            with torch.serialization.safe_globals([(_Inert, name) for name in names]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of PyTorch's message explains how to load the file unsafely.
        told = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        raise ValueError(f"{file} was refused: {told[1] if told else error}") from None
    except Exception as error:  # a crafted or cut file can make the reader fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{file} is not a readable PyTorch file: {reason}") from None
    raise ValueError(
        f"{file} was refused: it names {', '.join(refused)}, which a model of ultralytics does not need and which "
        "could run code when loaded"
    )


def _walk(model: _Inert, file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield what ``state_dict()`` of the pickled module would hold: own tensors first, then the children's."""
    pending: list[tuple[str, object]] = [("", model)]
    for _ in range(_MAX_MODULES):
        if not pending:
            return
        prefix, module = pending.pop()
        members = module.state if isinstance(module, _Inert) and isinstance(module.state, dict) else {}
        skipped = members.get("_non_persistent_buffers_set") or ()
        buffers = {name: value for name, value in _members(members, "_buffers").items() if name not in skipped}
        for name, value in {**_members(members, "_parameters"), **buffers}.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{file} holds a {type(value).__name__} and no tensor under {prefix}{name}")
            yield f"{prefix}{name}", value.detach()
        children = [(f"{prefix}{name}.", child) for name, child in _members(members, "_modules").items()]
        if children and prefix.count(".") >= _MAX_DEPTH:
            break
        pending.extend(reversed(children))
    raise ValueError(f"{file} nests its modules too deeply or endlessly: {prefix[:60]}...")


def _members(state: Mapping[str, Any], kind: str) -> dict[str, Any]:
    members = state.get(kind)
    return {str(k): v for k, v in members.items() if v is not None} if isinstance(members, Mapping) else {}
