""".npy files that somebody else made: arrays without a copy in memory, pickled dicts without running anything."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# BracketIRE's files have about a thousand bytes and twenty numbers.
_METADATA_LIMIT, _MOST_NUMBERS = 2**16, 10_000
_HEADER_LIMIT = 2**14
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=]?[A-Za-z]\d{0,4})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(\d{1,12}, ?){0,32}(\d{1,12})?)\),? ?\}"
)
# What makes arrays, scalars and tensors in a pickle; numpy.core became numpy._core with version 2.
_KEPT = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", "dtype"), ("numpy", "ndarray")),
    *(("torch.storage", "_load_from_bytes"), ("torch._utils", "_rebuild_tensor_v2")),
}


def map_array(path: Path, *, channels: int | None = None, kinds: str = "uf", ndim: int = 3) -> Array:
    """Map an array file into memory, read-only: nothing is read until it is used. See :func:`read_header`."""
    shape, fortran, dtype, offset = read_header(path, channels=channels, kinds=kinds, ndim=ndim)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def read_header(
    path: Path, *, channels: int | None = None, kinds: str = "uf", ndim: int = 3
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether in Fortran's order, type, and where the numbers begin.

    Args:
        path: the file.
        channels: what the last axis must have; None: anything.
        kinds: NumPy kinds of number that it may hold.
        ndim: number of axes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no array file, holds other numbers or another shape, or is not as long as its header says.
    """
    with open_file(path) as file:
        shape, fortran, dtype = _read_header(path, file)
        offset = file.tell()
        size = file.seek(0, io.SEEK_END)
    if dtype.hasobject or dtype.kind not in kinds or dtype.itemsize > 8:
        wanted = " or ".join({"u": "unsigned integers", "f": "floats"}[kind] for kind in kinds)
        raise ValueError(f"{path}: must hold {wanted}, got {dtype}")
    if len(shape) != ndim or min(shape) < 1 or (channels is not None and shape[-1] != channels):
        wanted = ", ".join([*("any" for _ in range(ndim - 1)), str(channels or "any")])
        raise ValueError(f"{path}: must have shape ({wanted}), got {shape}")
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{path}: {size} bytes, but its header promises {expected}: the file is broken or truncated")
    return shape, fortran, dtype, offset


def check_mapped(array: Array) -> None:
    """Raise ValueError if the file of a mapped array was cut short since: reading it would end the process."""
    if isinstance(array, np.memmap) and array.filename is not None:
        size = os.stat(array.filename).st_size
        if size < array.offset + array.nbytes:
            raise ValueError(f"{array.filename}: was cut short to {size} bytes while in use")


def open_file(path: Path) -> io.BufferedReader:
    """Open a file that must be there and not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return path.open("rb")


def _read_header(path: Path, file: io.BufferedReader) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of format 1, 2 or 3, which is a Python dict of three entries in the form NumPy writes it.

    NumPy's own reader parses it as Python code, which costs more than all else here.
    """
    start = file.read(8)
    wide = start[6:7] in (b"\x02", b"\x03")
    length = int.from_bytes(file.read(4 if wide else 2), "little")
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03") or length > _HEADER_LIMIT:
        raise ValueError(f"{path}: no .npy array")
    header = file.read(length)
    found = _HEADER.fullmatch(header.strip())
    if len(header) < length or not found:
        raise ValueError(
            f"{path}: broken, truncated or unusual header of a .npy array: {header[:80].decode('latin1')!r}"
        )
    try:
        dtype = np.dtype(found["descr"].decode())
    except TypeError:
        raise ValueError(f"{path}: an array of unknown type {found['descr'].decode()!r}") from None
    shape = tuple(int(n) for n in found["shape"].split(b",") if n.strip())
    return shape, found["order"] == b"True", dtype


def read_metadata(path: Path) -> dict[str, Array]:
    """Read a pickled dict of numbers and small arrays, as ``np.save(path, {...})`` writes it, running nothing in it.

    The pickle may name NumPy's arrays, types and scalars, and PyTorch's tensors; it gets stand-ins of ours that only
    keep what they are given. A file that names anything else is refused.

    Returns:
        Names to float64 arrays; numbers become arrays without axes. Entries that are no numbers are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is larger than 64 KiB, broken, no dict, or names something else.
    """
    with open_file(path) as file:
        if path.stat().st_size > _METADATA_LIMIT:
            raise ValueError(f"{path}: metadata must be at most {_METADATA_LIMIT} bytes, got {path.stat().st_size}")
        shape, _, dtype = _read_header(path, file)
        data = file.read()
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"{path}: must hold one pickled dict, got {dtype} of shape {shape}")
    try:
        content = _only_item(_InertReader(io.BytesIO(data), encoding="latin1").load())
        entries = content.items() if isinstance(content, dict) else ()
        numbers = {str(name): _as_numbers(value) for name, value in entries}
    except _Refused as error:
        raise ValueError(f"{path} was refused: {error}") from None
    except Exception as error:  # a crafted or cut pickle can make the reader fail in any way
        reason = str(next(iter(str(error).splitlines()), type(error).__name__))[:200]
        raise ValueError(f"{path}: broken or truncated pickle ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold one pickled dict, got {type(content).__name__}")
    return {name: value for name, value in numbers.items() if value is not None}


class _Refused(Exception):
    """The file names something that metadata does not need."""


class _Inert:
    """Stands in for every class and function of a pickle: keeps what it is given, does nothing."""

    def __init__(self, kind: str, arguments: tuple[Any, ...]) -> None:
        self.kind, self.arguments, self.state = kind, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Not a subclass of pickle.Unpickler, whose C code makes room for any memo index that a file names.
class _InertReader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in _KEPT:
            return lambda *arguments: _Inert(name, arguments)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _encode
        if (module, name) == ("collections", "OrderedDict"):
            return lambda items=(): dict(items)
        raise _Refused(f"it names {module}.{name}, which metadata does not need and which could run code"[:300])

    def load_bytearray8(self) -> None:
        """Read what is there; the library's own makes room for whatever length is named first."""
        reader: Any = self
        (length,) = struct.unpack("<Q", reader.read(8))
        if length > _METADATA_LIMIT:
            raise ValueError(f"{length} bytes")
        reader.append(bytearray(reader.read(length)))

    dispatch: ClassVar[Any] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to something outside the file")

    def get_extension(self, code: int) -> None:
        raise _Refused("it uses a registered extension")


def _only_item(array: Any) -> Any:
    """Return what an array of one object without axes holds."""
    _, shape, _, _, items = array.state
    if shape != () or not isinstance(items, list) or len(items) != 1:
        raise ValueError(f"it must hold one object, got {str(items)[:80]}")
    return items[0]


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("encodes something that is no text")
    return text.encode("latin1")


def _as_numbers(value: Any) -> Array | None:
    """Turn what was kept into a float64 array, anything else into None."""
    if isinstance(value, (bool, int, float)):
        return np.array(float(value))
    if isinstance(value, (list, tuple)):
        return np.array([float(item) for item in value]) if all(isinstance(v, (int, float)) for v in value) else None
    if not isinstance(value, _Inert):
        return None
    if value.kind == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, data = value.state
        return _array(_dtype(dtype), data, shape, "F" if fortran else "C")
    if value.kind == "scalar" and len(value.arguments) == 2:
        return _array(_dtype(value.arguments[0]), value.arguments[1], (), "C")
    if value.kind == "_frombuffer" and len(value.arguments) == 4:
        data, dtype, shape, order = value.arguments
        return _array(_dtype(dtype), data, shape, order)
    if value.kind == "_rebuild_tensor_v2":
        return _tensor(*value.arguments[:4])
    return None


def _dtype(value: Any) -> np.dtype[Any]:
    if not isinstance(value, _Inert) or value.kind != "dtype" or not isinstance(value.arguments[0], str):
        raise ValueError("an array of unknown type")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    dtype = np.dtype(value.arguments[0])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype}, expected numbers")
    return dtype.newbyteorder(">") if order == ">" else dtype.newbyteorder("<")


def _array(dtype: np.dtype[Any], data: Any, shape: Any, order: Any) -> Array:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(np.float64)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    """Read a tensor that was pickled with its storage inside it, through torch's own safe loader."""
    import torch

    if not isinstance(storage, _Inert) or storage.kind != "_load_from_bytes":
        raise ValueError("a tensor without its storage")
    numbers = (offset, *size, *stride)
    if len(size) > 4 or any(not 0 <= n <= _MOST_NUMBERS for n in numbers) or math.prod(size) > _MOST_NUMBERS:
        raise ValueError(f"a tensor of shape {str(size)[:80]}")
    if storage.arguments[0][:2] == b"PK":  # a zip file, which could unpack to anything; such tensors have none
        raise ValueError("a tensor in a zip file")
    stored = torch.load(io.BytesIO(storage.arguments[0]), weights_only=True)
    flat = torch.empty(0, dtype=stored.dtype).set_(stored).double().numpy()
    index = np.full(size, offset)
    for axis, (length, step) in enumerate(zip(size, stride, strict=True)):
        index = index + (np.arange(length) * step).reshape([-1 if i == axis else 1 for i in range(len(size))])
    return np.asarray(flat[index])
