"""Read .npy files of untrusted origin: map arrays into memory, read pickled dicts of numbers without running code."""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skt_components.files.unpickle import Inert, RestrictedUnpickler, value_errors

Array = npt.NDArray[Any]

# BracketIRE's files have about a thousand bytes and twenty numbers.
_METADATA_LIMIT, _MOST_NUMBERS = 2**16, 10_000
_HEADER_LIMIT = 2**14
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=]?[A-Za-z]\d{0,4})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(\d{1,12}, ?){0,32}(\d{1,12})?)\),? ?\}"
)


def map_array(path: Path, *, channels: int | None = None, kinds: str = "uf", ndim: int = 3) -> Array:
    """Map an array file into memory, read-only; arguments and errors as of :func:`read_header`."""
    shape, fortran, dtype, offset = read_header(path, channels=channels, kinds=kinds, ndim=ndim)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def read_header(
    path: Path, *, channels: int | None = None, kinds: str = "uf", ndim: int = 3
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, True for Fortran order, data type, and the byte offset of the numbers.

    Args:
        path: the file.
        channels: required size of the last axis; None: any.
        kinds: allowed NumPy kinds, "u" (unsigned integers) and "f" (floats).
        ndim: required number of axes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such an array, or its length and header differ.
    """
    shape, fortran, dtype, offset, size = _read_layout(path)
    if dtype.hasobject or dtype.kind not in kinds or dtype.itemsize > 8:
        wanted = " or ".join({"u": "unsigned integers", "f": "floats"}[kind] for kind in kinds)
        raise ValueError(f"{path}: must hold {wanted}, got {dtype}")
    if len(shape) != ndim or min(shape) < 1 or (channels is not None and shape[-1] != channels):
        wanted = ", ".join([*("any" for _ in range(ndim - 1)), str(channels or "any")])
        raise ValueError(f"{path}: must have shape ({wanted}), got {shape}")
    _check_size(path, shape, dtype, offset, size)
    return shape, fortran, dtype, offset


def read_array(path: Path) -> Array:
    """Read an array of numbers of any shape, after checking that the file holds all of them; never a pickle.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds anything but numbers.
    """
    shape, fortran, dtype, offset, size = _read_layout(path)
    if dtype.hasobject or dtype.kind not in "biufc":
        raise ValueError(f"{path}: must hold numbers, got {dtype}")
    _check_size(path, shape, dtype, offset, size)
    flat = np.fromfile(path, dtype, math.prod(shape), offset=offset)
    return flat.reshape(shape, order="F" if fortran else "C")


def _read_layout(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int, int]:
    """Return shape, True for Fortran order, data type, the offset of the numbers, and the size of the file in bytes."""
    with open_file(path) as file:
        shape, fortran, dtype = _read_header(path, file)
        offset = file.tell()
        return shape, fortran, dtype, offset, file.seek(0, io.SEEK_END)


def _check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, size: int) -> None:
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{path}: must have {expected} bytes by its header, got {size}: the file is damaged")


def check_mapped(array: Array) -> None:
    """Raise ValueError if the file of a mapped array became shorter: reading the array would end the process."""
    if isinstance(array, np.memmap) and array.filename is not None:
        size = os.stat(array.filename).st_size
        if size < array.offset + array.nbytes:
            raise ValueError(f"{array.filename}: became shorter while in use, got {size} bytes")


def open_file(path: Path) -> io.BufferedReader:
    """Open a file; raise FileNotFoundError if there is none, ValueError if it is empty."""
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
        raise ValueError(f"{path}: must be a .npy array")
    header = file.read(length)
    found = _HEADER.fullmatch(header.strip())
    if len(header) < length or not found:
        raise ValueError(f"{path}: damaged or unusual header of a .npy array: {header[:80].decode('latin1')!r}")
    try:
        dtype = np.dtype(found["descr"].decode())
    except TypeError:
        raise ValueError(f"{path}: unknown data type {found['descr'].decode()!r}") from None
    shape = tuple(int(n) for n in found["shape"].split(b",") if n.strip())
    return shape, found["order"] == b"True", dtype


def read_metadata(path: Path) -> dict[str, Array]:
    """Read a pickled dict of numbers and small arrays, as ``np.save(path, {...})`` writes it, without running code.

    The pickle may name NumPy's arrays, types and scalars, and PyTorch's tensors.

    Returns:
        Names to float64 arrays; numbers become arrays without axes. Other entries are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is larger than 64 KiB, damaged, not a dict, or names anything else.
    """
    with open_file(path) as file:
        if path.stat().st_size > _METADATA_LIMIT:
            raise ValueError(f"{path}: metadata must be at most {_METADATA_LIMIT} bytes, got {path.stat().st_size}")
        shape, _, dtype = _read_header(path, file)
        data = file.read()
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"{path}: must hold one pickled dict, got {dtype} of shape {shape}")
    with value_errors(path, "a readable pickle of metadata"):
        content = _only_item(RestrictedUnpickler(data, "metadata").load())
        entries = content.items() if isinstance(content, dict) else ()
        numbers = {str(name): _as_numbers(value) for name, value in entries}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold one pickled dict, got {type(content).__name__}")
    return {name: value for name, value in numbers.items() if value is not None}


def _only_item(array: Any) -> Any:
    """Return the object in an array of one object without axes."""
    _, shape, _, _, items = array.state
    if shape != () or not isinstance(items, list) or len(items) != 1:
        raise ValueError(f"it must hold one object, got {str(items)[:80]}")
    return items[0]


def _as_numbers(value: Any) -> Array | None:
    """Return a float64 array of a number, list, array or tensor; None for anything else."""
    if isinstance(value, (bool, int, float)):
        return np.array(float(value))
    if isinstance(value, (list, tuple)):
        return np.array([float(item) for item in value]) if all(isinstance(v, (int, float)) for v in value) else None
    if not isinstance(value, Inert):
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
    if not isinstance(value, Inert) or value.kind != "dtype" or not isinstance(value.arguments[0], str):
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
    """Return a tensor that was pickled with its storage inside it; PyTorch's safe loader reads the storage."""
    if not isinstance(storage, Inert) or storage.kind != "_load_from_bytes":
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
