"""Array and metadata files that somebody else made: right, broken and hostile ones."""

from __future__ import annotations

import _codecs
import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skt_components.files.numpy_files import map_array, read_metadata

COLORS = {"red_gain": 2.0, "blue_gain": np.float32(1.5), "cam2rgb": np.arange(9, dtype=np.float32).reshape(3, 3)}


def write_object(path, content, protocol=4):
    """Write what ``np.save`` writes of any object, with any protocol of pickle."""
    array = np.empty((), object)
    array[()] = content
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickle.dumps(array, protocol=protocol))


# matches_reference


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["<u2", ">u2", "u1", "<f4", ">f4", "<f2", "<f8", "<u4"]),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4)),
    ),
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0), (3, 0), None]),
)
def test_arrays_are_what_numpy_reads(tmp_path_factory, array, fortran, version):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.asfortranarray(array) if fortran else array, version=version)
    np.testing.assert_array_equal(map_array(path, channels=4), np.load(path))


def test_nothing_is_read_before_it_is_used(tmp_path):
    path = tmp_path / "a.npy"
    np.lib.format.open_memmap(path, "w+", np.uint16, (4000, 2000, 4)).flush()  # 64 MB, sparse
    tracemalloc.start()
    mapped = map_array(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mapped.shape == (4000, 2000, 4)
    assert peak < 100_000
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_metadata_of_numbers_arrays_and_tensors(tmp_path, protocol):
    tensors = {
        "tensor": torch.arange(6.0).reshape(2, 3).T,
        "number": torch.tensor(0.25),
        "half": torch.tensor([1.5], dtype=torch.float16),
    }
    arrays = {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.array([1.0, 2.0], ">f4")}
    content = {**COLORS, **tensors, **arrays, "list": [1, 2.5], "int": 7, "text": "no number", "none": None}
    write_object(tmp_path / "m.npy", content, protocol)
    found = read_metadata(tmp_path / "m.npy")
    assert found.keys() == content.keys() - {"text", "none"}
    for key, value in found.items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, np.asarray(content[key], np.float64))


def test_metadata_that_numpy_wrote(tmp_path):
    np.save(tmp_path / "m.npy", OrderedDict(COLORS), allow_pickle=True)
    assert read_metadata(tmp_path / "m.npy").keys() == COLORS.keys()


# rejects_bad_input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04", "must be a .npy array"),
        (b"\x93NUMPY\x09\x00\x10\x00", "must be a .npy array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "must be a .npy array"),
        (b"\x93NUMPY\x01\x00\xff\x3f{'descr'", "damaged or unusual header"),
        (b"\x93NUMPY\x01\x00\x1f\x00__import__('os').system('true')", "damaged or unusual header"),
    ],
)
def test_no_array_files(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.npy: {message}"):
        map_array(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=f"a.npy: {message}"):
        read_metadata(tmp_path / "a.npy")


def test_a_missing_file(tmp_path):
    for read in (map_array, read_metadata):
        with pytest.raises(FileNotFoundError, match=r"a.npy: no such file"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((999_999_999_999, 999_999_999_999, 4), "<u2", "must have .* bytes by its header"),
        ((0, 5, 4), "<u2", r"must have shape \(any, any, 4\), got \(0, 5, 4\)"),
        ((5, 4), "<u2", r"must have shape \(any, any, 4\), got \(5, 4\)"),
        ((5, 4, 4), "<i2", "must hold unsigned integers or floats, got int16"),
        ((5, 4, 4), "|O", "must hold unsigned integers or floats, got object"),
        ((5, 4, 4), "<f16", "must hold unsigned integers or floats"),
        ((5, 4, 4), "<U3", "must hold unsigned integers or floats"),
        ((5, 4, 4), "|V8", "must hold unsigned integers or floats"),
        ((5, 4, 4), "<q9", "unknown data type"),
    ],
)
def test_headers_that_promise_something_else(tmp_path, shape, dtype, message):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(160))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"a.npy: .*{message}"):
        map_array(path, channels=4)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.booleans())
def test_every_cut_and_every_excess_is_an_error(tmp_path_factory, cut, longer):
    path = tmp_path_factory.mktemp("cut") / "a.npy"
    np.save(path, np.ones((5, 4, 4), np.uint16))
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(cut + 1) if longer else whole[: min(cut, len(whole) - 1)])
    with pytest.raises(ValueError, match=r"a\.npy: "):
        map_array(path)


class Bomb:
    """Runs a command when it is unpickled by ``pickle``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, print, getattr, np.load, torch.load, io.open])
@pytest.mark.parametrize("nested", [False, True])
def test_pickles_that_would_run_something_are_rejected(tmp_path, function, nested):
    mark = tmp_path / "ran"
    bomb = Bomb(function, f"touch {mark}") if function is os.system else Bomb(function, str(mark), "w")
    write_object(tmp_path / "m.npy", {"cam2rgb": [bomb]} if nested else bomb)
    with pytest.raises(ValueError, match=r"m.npy was rejected: it names \w+.* which could run code"):
        read_metadata(tmp_path / "m.npy")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (
            b"\x80\x02]r\xff\xff\xff\x7f.",
            "m.npy is not a readable pickle of metadata",
        ),  # a memo of two thousand million
        (
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
            "m.npy is not a readable pickle of metadata",
        ),  # that many bytes
        (
            b"\x80\x05\x96\x00\x00\x00\x80\x00\x00\x00\x00.",
            "m.npy is not a readable pickle of metadata",
        ),  # 2 GB of bytearray
        (b"\x80\x02}(X\x01\x00\x00\x00aQ.", "m.npy was rejected: it refers to something outside"),
        (b"\x80\x02\x82\x01.", "m.npy was rejected: it uses a registered extension"),
        (b"\x80\x02}.", "m.npy is not a readable pickle of metadata"),  # no array around it
        (b"0" * 40, "m.npy is not a readable pickle of metadata"),
    ],
)
def test_crafted_pickles(tmp_path, pickled, message):
    with open(tmp_path / "m.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickled)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_metadata(tmp_path / "m.npy")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def nest(levels, make):
    """Return something of ``levels`` levels in which each holds the one below twice: small, unless it is expanded."""
    value = make(0)
    for level in range(levels):
        value = [value, value] if make is list_of else {"a": value, "b": value, "c": level}
    return value


def list_of(_):
    return ["x" * 50]


class Encoded:
    """Pickles as a call of ``_codecs.encode`` with something that is no text."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return _codecs.encode, (self.content, "latin1")


class WideTensor:
    """Pickles as a tensor of no elements and an absurd size."""

    def __init__(self, size, stride, storage=None):
        self.arguments = (storage or torch.zeros(2).storage(), 0, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Loaded:
    """Pickles as a storage that is read from these bytes."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def zipped_zeros():
    """A deflated zip file of ``torch.save``'s layout, a thousandth of what it unpacks to."""
    stored, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(2_000_000).storage(), stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "content",
    [
        nest(60, lambda _: {"x": 1.0}),
        nest(60, list_of),
        Encoded(nest(26, list_of)),
        WideTensor((200_000_000, 0), (1, 1)),
        WideTensor((2, 2), (-1, 1)),
        WideTensor((1,) * 30, (1,) * 30),
        WideTensor((2,), (1,), Loaded(zipped_zeros())),
    ],
    ids=["dicts", "lists", "encode", "empty", "negative", "axes", "zip"],
)
def test_small_files_that_would_become_large(tmp_path, content):
    write_object(tmp_path / "m.npy", {"red_gain": 2.0, "cam2rgb": content})
    assert (tmp_path / "m.npy").stat().st_size < 2**16
    tracemalloc.start()
    try:
        assert read_metadata(tmp_path / "m.npy").keys() == {"red_gain"}
    except ValueError as error:
        assert "m.npy is not a readable pickle of metadata" in str(error)  # noqa: PT017
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_metadata_that_is_no_dict_or_too_large(tmp_path):
    write_object(tmp_path / "m.npy", [1, 2])
    with pytest.raises(ValueError, match="must hold one pickled dict, got"):
        read_metadata(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"must hold one pickled dict, got float64 of shape \(3,\)"):
        read_metadata(tmp_path / "m.npy")
    write_object(tmp_path / "m.npy", {"cam2rgb": np.zeros(2**14)})
    with pytest.raises(ValueError, match="metadata must be at most 65536 bytes"):
        read_metadata(tmp_path / "m.npy")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_metadata_gives_numbers_or_a_named_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "m.npy"
    write_object(path, {**COLORS, "tensor": torch.ones(2)}, data.draw(st.sampled_from([2, 4, 5])))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    tracemalloc.start()
    try:
        found = read_metadata(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert all(value.dtype == np.float64 for value in found.values())
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
