"""Read pickles of untrusted files without running any code: the one reader, and the state dict of a pickled model."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from skt_components.files.weights import check_archive, check_plain_tensors, unwrap_state_dict

# The names that a pickle may use, by what is read from it. Each becomes an Inert or what RestrictedUnpickler makes.
_ALLOWED = {
    "metadata": re.compile(
        r"numpy\.(dtype|ndarray)|numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
        r"|torch\.storage\._load_from_bytes|torch\._utils\._rebuild_tensor_v2"
        r"|collections\.OrderedDict|_codecs\.encode"
    ),
    # YOLO checkpoints of all generations; protocol 2 writes a method, such as Detect.forward, as a call of getattr.
    "a model of ultralytics": re.compile(
        r"(ultralytics|torch\.nn\.modules)(\.\w+)+"
        r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
        r"|builtins\.(getattr|set|frozenset)|types\.SimpleNamespace|argparse\.Namespace"
        r"|numpy\.(dtype|ndarray)|numpy\._?core\.multiarray\.(scalar|_reconstruct)"
        r"|torch\.(device|Size|b?float\d*|half|double|u?int\d+|long|bool)"
        r"|torch\._utils\._rebuild_(tensor_v2|parameter|parameter_with_state)|collections\.OrderedDict"
        r"|torch\.(Half|BFloat16|Float|Double|Char|Short|Int|Long|Byte|Bool)Storage"
    ),
}
_DTYPES = {
    **{"Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64},
    **{"Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64},
    **{"Byte": torch.uint8, "Bool": torch.bool},
}
_MAX_DEPTH, _MAX_MODULES = 64, 20_000  # far above any real network; stops graphs that contain themselves


class RefusedPickleError(Exception):
    """The pickle names something that is not allowed."""


class Inert:
    """Stand in for a class or function of a pickle: keep the arguments and the state, do nothing.

    ``kind`` is its name; ``arguments`` are the positional ones; ``state`` is set afterwards, or None.
    """

    kind: str
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: object, **_: object) -> Inert:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


class _OrderedDict(dict[Any, Any]):
    """A dict that ignores the attributes that a pickle sets on it."""

    def __setstate__(self, state: Any) -> None:
        pass


# Not a subclass of pickle.Unpickler, whose C code makes room for any memo index that a file names.
class RestrictedUnpickler(pickle._Unpickler):
    """Read a pickle with an :class:`Inert` for each allowed class and function; reject every other name.

    Args:
        data: the pickle.
        purpose: a key of the table of allowed names.
        functions: what stands for some of the allowed names instead of an ``Inert``, by full name.
        load_storage: function that resolves references to data outside the pickle; without it they are rejected.
    """

    def __init__(
        self,
        data: bytes,
        purpose: str,
        functions: Mapping[str, Any] | None = None,
        load_storage: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._length, self._purpose, self._load_storage = len(data), purpose, load_storage
        # All but immutable classes are made anew for every file, so that a pickle that changes them affects no other.
        self._known: dict[str, Any] = {
            "collections.OrderedDict": _OrderedDict,
            "builtins.set": set,
            "builtins.frozenset": frozenset,
            "_codecs.encode": lambda text, _: str.encode(text, "latin1"),  # how protocol 2 writes bytes
            **(functions or {}),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for an allowed name."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if not _ALLOWED[self._purpose].fullmatch(full):
            reason = f"it names {full[:200]}, which {self._purpose} does not need and which could run code"
            raise RefusedPickleError(reason)
        if full not in self._known:
            self._known[full] = type(name, (Inert,), {"kind": name})
        return self._known[full]

    def persistent_load(self, pid: Any) -> Any:
        """Resolve a reference to data outside the pickle."""
        if self._load_storage is None:
            raise RefusedPickleError("it refers to something outside the file")
        return self._load_storage(pid)

    def get_extension(self, code: int) -> None:
        """Refuse names that are registered in the process."""
        raise RefusedPickleError("it uses a registered extension")

    def load_bytearray8(self) -> None:
        """Check the length first: the inherited method allocates any length that the file names."""
        reader: Any = self
        (length,) = struct.unpack("<Q", reader.read(8))
        if length > self._length:
            raise ValueError(f"{length} bytes")
        reader.append(bytearray(reader.read(length)))

    dispatch: ClassVar[Any] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}


@contextmanager
def value_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn all that a damaged or crafted file can raise into a ValueError: "``path`` is not ``kind``"."""
    try:
        yield
    except RefusedPickleError as error:
        raise ValueError(f"{path} was rejected: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a crafted file can make a reader fail in any way
        text = str(error).removeprefix(f"{path}: ")
        reason = str(next(iter(text.splitlines()), type(error).__name__))[:200]
        raise ValueError(f"{path} is not {kind}: {reason}") from None


def read_pickled_model(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a pickled ``nn.Module``, as ultralytics writes them, without building the module.

    The pickle may name only classes of ultralytics and ``torch.nn.modules`` and a few harmless others, all replaced by
    inert stand-ins: no code in the file runs. Nothing in the process is changed, so threads may read other files.

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
    content = _read_archive(file)
    model = content
    if isinstance(content, Mapping):
        model = content.get("ema") if content.get("ema") is not None else content.get("model")
    state = dict(_walk(model, file)) if isinstance(model, Inert) else unwrap_state_dict(content, file)
    if not state:
        raise ValueError(f"{file} must hold a pickled model, got an object without parameters")
    check_plain_tensors(state, file)
    return state


def _read_archive(file: Path) -> Any:
    """Return the content of a file of ``torch.save``, with inert modules and real tensors."""
    with value_errors(file, "a readable PyTorch file"), zipfile.ZipFile(file) as archive:
        check_archive(archive, file)
        names = [entry.filename for entry in archive.infolist() if re.fullmatch(r"([^/]+/)?data\.pkl", entry.filename)]
        if len(names) != 1:
            raise ValueError("it is not a file of torch.save")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        storages: dict[str, torch.UntypedStorage] = {}

        def load_storage(pid: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
            kind, dtype, key, *_ = pid
            if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
                raise pickle.UnpicklingError(f"a storage of unknown kind: {str(pid)[:80]}")
            if key not in storages:
                data = bytearray(archive.read(f"{root}data/{key}"))
                values = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
                storages[key] = values.untyped_storage()
            return storages[key], dtype

        functions = {
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _rebuild_tensor(*arguments[:4]),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            **{f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()},
        }
        return RestrictedUnpickler(archive.read(names[0]), "a model of ultralytics", functions, load_storage).load()


def _rebuild_tensor(storage: tuple[torch.UntypedStorage, torch.dtype], offset: int, size: Any, stride: Any) -> Tensor:
    memory, dtype = storage
    needed = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if min([offset, 0, *size, *stride]) < 0 or (0 not in size and needed * dtype.itemsize > memory.nbytes()):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} reaches beyond its storage")
    return torch.empty(0, dtype=dtype).set_(memory, offset, tuple(size), tuple(stride))


def _walk(model: Inert, file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the items of the pickled module's ``state_dict()``: own tensors first, then its children's."""
    pending: list[tuple[str, object]] = [("", model)]
    for _ in range(_MAX_MODULES):
        if not pending:
            return
        prefix, module = pending.pop()
        members = module.state if isinstance(module, Inert) and isinstance(module.state, dict) else {}
        skipped = members.get("_non_persistent_buffers_set") or ()
        buffers = {name: value for name, value in _members(members, "_buffers").items() if name not in skipped}
        for name, value in {**_members(members, "_parameters"), **buffers}.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{file} must hold tensors, got {type(value).__name__} under {prefix}{name}")
            yield f"{prefix}{name}", value
        children = [(f"{prefix}{name}.", child) for name, child in _members(members, "_modules").items()]
        if children and prefix.count(".") >= _MAX_DEPTH:
            break
        pending.extend(reversed(children))
    raise ValueError(f"{file} nests its modules too deeply or endlessly: {prefix[:60]}...")


def _members(state: Mapping[str, Any], kind: str) -> dict[str, Any]:
    members = state.get(kind)
    return {str(k): v for k, v in members.items() if v is not None} if isinstance(members, Mapping) else {}
