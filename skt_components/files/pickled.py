"""State dicts of whole pickled models, taken out without running any code and without the model's package."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skt_components.files.weights import named_tensors, plain_tensors

# What YOLO checkpoints of all generations name; whatever the file does with it, it gets an _Inert and nothing runs.
# getattr: how protocol 2 writes a method, such as the Detect.forward that segmentation heads of 8.0 carry.
_HARMLESS = re.compile(
    r"(ultralytics|torch\.nn\.modules)(\.\w+)+"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
    r"|builtins\.getattr|types\.SimpleNamespace|argparse\.Namespace"
    r"|numpy\.(dtype|ndarray)|numpy\._?core\.multiarray\.(scalar|_reconstruct)"
    r"|torch\.(device|Size|b?float\d*|half|double|u?int\d+|long|bool)"
)
_DTYPES = {
    **{"Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64},
    **{"Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64},
    **{"Byte": torch.uint8, "Bool": torch.bool},
}
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
    run; a file that names anything else is refused. Nothing is registered with or taken from the process, so other
    threads may read files of their own meanwhile.

    Args:
        path: a file written by ``torch.save`` (its zip format, of PyTorch 1.6 and later) of a module, or of a dict
            with one under "ema" or "model" ("ema" wins, as in ultralytics). A plain state dict is returned as it is.

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
    return plain_tensors(state, file)


class _Refused(pickle.UnpicklingError):
    """The file names something that a model does not need."""


class _Reader(pickle.Unpickler):
    """Builds tensors, containers and inert objects from the zip archive that ``torch.save`` writes; nothing else."""

    def __init__(self, archive: zipfile.ZipFile, root: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.UntypedStorage] = {}
        # Made anew for every file, so that a pickle that tampers with them spoils only its own.
        self._real = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "collections.OrderedDict": type("OrderedDict", (dict,), {}),
            "builtins.set": lambda items=(): set(items),
            "builtins.frozenset": lambda items=(): frozenset(items),
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full in self._real:
            return self._real[full]
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in _DTYPES:
            return _DTYPES[name.removesuffix("Storage")]
        if _HARMLESS.fullmatch(full):
            return _Inert
        raise _Refused(f"it names {full}, which a model of ultralytics does not need and which could run code")

    def persistent_load(self, pid: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"a storage of unknown kind: {str(pid)[:80]}")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = (
                torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
            ).untyped_storage()
        return self._storages[key], dtype

    @staticmethod
    def _tensor(
        storage: tuple[torch.UntypedStorage, torch.dtype], offset: int, size: Any, stride: Any, *_: object
    ) -> Tensor:
        memory, dtype = storage
        needed = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if min([offset, 0, *size, *stride]) < 0 or (0 not in size and needed * dtype.itemsize > memory.nbytes()):
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} reaches beyond its storage")
        return torch.empty(0, dtype=dtype).set_(memory, offset, tuple(size), tuple(stride))


def _load_inert(file: Path) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > file.stat().st_size:
                raise ValueError("its parts are compressed or overlap, which torch.save does not do")
            names = [entry.filename for entry in entries if re.fullmatch(r"([^/]+/)?data\.pkl", entry.filename)]
            if len(names) != 1:
                raise ValueError("it is not a file of torch.save")
            root = names[0].removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("it was written on a big-endian machine")
            data = archive.read(names[0])
            _check_memo(data)
            return _Reader(archive, root, data).load()
    except _Refused as error:
        raise ValueError(f"{file} was refused: {error}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a crafted or cut file can make the reader fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{file} is not a readable PyTorch file: {reason}") from None


def _check_memo(data: bytes) -> None:
    """Refuse memo indices that no pickle of this length needs: the unpickler makes room up to the largest."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"its pickle has a memo index of {argument}")


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
            yield f"{prefix}{name}", value
        children = [(f"{prefix}{name}.", child) for name, child in _members(members, "_modules").items()]
        if children and prefix.count(".") >= _MAX_DEPTH:
            break
        pending.extend(reversed(children))
    raise ValueError(f"{file} nests its modules too deeply or endlessly: {prefix[:60]}...")


def _members(state: Mapping[str, Any], kind: str) -> dict[str, Any]:
    members = state.get(kind)
    return {str(k): v for k, v in members.items() if v is not None} if isinstance(members, Mapping) else {}
