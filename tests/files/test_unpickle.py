from __future__ import annotations

import contextlib
import os
import pickle
import re
import struct
import sys
import threading
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skt_components.files.unpickle import read_pickled_model
from skt_components.files.weights import read_state_dict


@contextmanager
def stub_ultralytics(**classes: str) -> Iterator[types.SimpleNamespace]:
    """Let ``ultralytics`` exist for a moment: class name to module; modules, but for the namespace of options."""
    before, made = dict(sys.modules), types.SimpleNamespace()
    for name, module_name in classes.items():
        parts = module_name.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        base = types.SimpleNamespace if name == "IterableSimpleNamespace" else nn.Module
        stub = type(name, (base,), {"__module__": module_name})
        if base is nn.Module:

            def forward(self: nn.Module, x: Tensor) -> Tensor:
                return x

            forward.__module__, forward.__qualname__ = module_name, f"{name}.forward"
            stub.forward = forward
        setattr(sys.modules[module_name], name, stub)
        setattr(made, name, stub)
    try:
        yield made
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


# Module paths of ultralytics 8.0.0, 8.0.120 (of which FastSAM is) and 8.3.
GENERATIONS = {
    "8.0.0": {
        **dict.fromkeys(("Conv", "Detect", "Segment"), "ultralytics.nn.modules"),
        "SegmentationModel": "ultralytics.nn.tasks",
        "IterableSimpleNamespace": "ultralytics.yolo.utils",
    },
    "8.0.120": {
        "Conv": "ultralytics.nn.modules.conv",
        **dict.fromkeys(("Detect", "Segment"), "ultralytics.nn.modules.head"),
        "SegmentationModel": "ultralytics.nn.tasks",
        "IterableSimpleNamespace": "ultralytics.yolo.utils",
    },
    "8.3.0": {
        "Conv": "ultralytics.nn.modules.conv",
        **dict.fromkeys(("Detect", "Segment"), "ultralytics.nn.modules.head"),
        "SegmentationModel": "ultralytics.nn.tasks",
        "IterableSimpleNamespace": "ultralytics.utils",
    },
}


def build(u: Any, *, bound_method: bool = True) -> nn.Module:
    """A small model with everything that such files hold."""
    conv = u.Conv()
    conv.conv, conv.bn, conv.act = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(inplace=True)
    conv.register_buffer("stride", torch.ones(3), persistent=False)
    conv.register_buffer("absent", None)
    head = u.Segment()
    head.cv4 = nn.ModuleList([nn.Sequential(conv, nn.Conv2d(4, 2, 1)), nn.Identity()])
    if bound_method:
        head.detect = u.Detect.forward
    model = u.SegmentationModel()
    model.model = nn.Sequential(conv, nn.Upsample(scale_factor=2), head)  # ``conv`` stands under two names
    model.tied = model.model[2].cv4[0][1].weight
    model.names, model.args = {0: "object"}, u.IterableSimpleNamespace(imgsz=1024, task="segment")
    return model


def wrap(model: nn.Module | None, ema: nn.Module | None = None) -> dict[str, Any]:
    options = {"task": "segment", "save_dir": Path("runs"), "lr0": 0.01}
    return {"epoch": -1, "best_fitness": None, "model": model, "ema": ema, "train_args": options, "version": "8.0.120"}


def write_small(path: Path, generation: str = "8.0.120") -> dict[str, Tensor]:
    """Write a checkpoint of a small model, and return the state dict that it holds."""
    with stub_ultralytics(**GENERATIONS[generation]) as u:
        model = build(u).half()
        torch.save(wrap(model), path)
        return model.state_dict()


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert type(found[name]) is Tensor
        assert not found[name].requires_grad
        assert found[name].dtype == tensor.dtype
        assert found[name].device.type == "cpu"
        assert torch.equal(found[name], tensor), name


# matches_reference


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_reads_as_its_own_state_dict(tmp_path: Path, generation: str) -> None:
    wanted = write_small(tmp_path / "old.pt", generation)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "old.pt")
    assert {f"{module}.{name}" for name, module in GENERATIONS[generation].items()} <= set(names)
    assert "builtins.getattr" in names
    assert_same(read_pickled_model(tmp_path / "old.pt"), wanted)
    assert_same(read_pickled_model(str(tmp_path / "old.pt")), wanted)
    assert not any(name.split(".")[0] == "ultralytics" for name in sys.modules)


def assert_reads_official(path: Path) -> None:
    classes = {}
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        module, _, attribute = name.rpartition(".")
        if module.startswith("ultralytics."):
            classes[attribute] = module
    assert len(classes) >= 8
    with stub_ultralytics(**classes):
        wanted = torch.load(path, weights_only=False)["model"].state_dict()  # our own file
    found = read_pickled_model(path)
    assert_same(found, wanted)
    assert found["model.22.proto.cv1.conv.weight"].dtype == torch.float16
    assert len(found) > 400


def test_official_files_read_as_the_state_dict_of_the_real_model(fastsam_s: Path) -> None:
    assert_reads_official(fastsam_s / "FastSAM-s.pt")


@pytest.mark.slow
def test_the_large_official_file_reads_too(fastsam_x: Path) -> None:
    assert_reads_official(fastsam_x / "FastSAM-x.pt")


def test_a_bare_module_and_the_moving_average_are_found(tmp_path: Path) -> None:
    model, average = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(model, tmp_path / "bare.pt")
    assert_same(read_pickled_model(tmp_path / "bare.pt"), model.state_dict())
    torch.save(wrap(model, average), tmp_path / "both.pt")
    assert_same(read_pickled_model(tmp_path / "both.pt"), average.state_dict())
    torch.save(wrap(None, average), tmp_path / "average.pt")
    assert_same(read_pickled_model(tmp_path / "average.pt"), average.state_dict())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plain_state_dict_is_returned(tmp_path: Path, wrapped: bool) -> None:
    state = nn.Linear(2, 3).state_dict()
    torch.save(wrap(state) if wrapped else state, tmp_path / "state.pt")
    assert_same(read_pickled_model(tmp_path / "state.pt"), dict(state))


# files that want to run code


def write_pickle(path: Path, content: bytes) -> None:
    """Put a hand-made pickle into the archive that torch.load expects."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


class Call:
    """A pickle that calls a function when it is loaded carelessly."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def system(marker: Path) -> Call:
    return Call(os.system, f"mkdir {marker}")


def in_a_layer(marker: Path) -> object:
    layer = nn.Conv2d(1, 1, 1)
    layer.hook = system(marker)
    return wrap(layer)


def getattr_chain(marker: Path) -> bytes:
    """os.system by nothing but names that real files have or could have: getattr, and one below torch.nn.modules."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def call(function: bytes, *arguments: bytes) -> bytes:
        return function + b"(" + b"".join(arguments) + b"tR"

    def attribute(value: bytes, name: str) -> bytes:
        return call(b"c__builtin__\ngetattr\n", value, text(name))

    modules = attribute(attribute(b"ctorch.nn.modules.module\nwarnings\n", "sys"), "modules")
    found = call(attribute(modules, "get"), text("os"))
    return b"\x80\x02" + call(attribute(found, "system"), text(f"mkdir {marker}")) + b"."


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "os.system": (system, r"names (posix|nt)\.system"),
    "eval": (lambda marker: Call(eval, f"__import__('os').mkdir({str(marker)!r})"), r"names builtins\.eval"),
    "in a layer": (in_a_layer, r"names (posix|nt)\.system"),
    "in train_args": (lambda marker: wrap(nn.Linear(1, 1)) | {"train_args": {"x": [system(marker)]}}, r"\.system"),
    "in the state dict": (lambda marker: {"weight": torch.ones(1), "x": system(marker)}, r"\.system"),
    "subprocess": (
        lambda marker: Call(__import__("subprocess").call, ["mkdir", str(marker)]),
        r"names (subprocess|commands)\.call",
    ),
    "import": (lambda marker: Call(exec, f"import os; os.mkdir({str(marker)!r})"), r"names builtins\.exec"),
    "getattr chain": (getattr_chain, r"object is not callable"),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_payloads_are_rejected_and_not_run(tmp_path: Path, kind: str) -> None:
    make, message = ATTACKS[kind]
    file, marker = tmp_path / "evil.pt", tmp_path / "made_by_the_payload"
    content = make(marker)
    if isinstance(content, bytes):
        write_pickle(file, content)
    else:
        torch.save(content, file)
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match=rf"evil\.pt (was rejected|is not a readable PyTorch file): .*{message}"):
        read_pickled_model(file)
    assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == before
    torch.load(file, weights_only=False)
    assert marker.exists()  # so the file was a danger


def test_files_that_claim_more_than_they_hold_are_rejected(tmp_path: Path) -> None:
    file = tmp_path / "bomb.pt"
    torch.save({"weight": torch.zeros(1).expand(100_000, 100_000)}, file)  # 40 GB of one number
    with pytest.raises(ValueError, match=r"bomb\.pt has \d+ bytes but its tensors claim 40000000000"):
        read_pickled_model(file)
    torch.save({"weight": torch.zeros(10_000_000)}, tmp_path / "zeros.pt")
    with zipfile.ZipFile(tmp_path / "zeros.pt") as zeros, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in zeros.infolist():
            archive.writestr(entry.filename, zeros.read(entry))
    with pytest.raises(ValueError, match="its parts are compressed or overlap"):
        read_pickled_model(file)
    write_pickle(file, b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".")  # Python's C reader makes 2 ** 32 memos
    tracemalloc.start()
    with pytest.raises(ValueError, match="got an empty mapping"):
        read_pickled_model(file)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_tensors_beyond_their_storage_are_rejected(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(6.0)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "torn.pt", "w") as torn:
        for entry in whole.infolist():
            data = whole.read(entry)
            torn.writestr(entry.filename, data[:16] if entry.filename.endswith("data/0") else data)
    with pytest.raises(ValueError, match=r"torn\.pt is not a readable .*shape \(6,\) reaches beyond its storage"):
        read_pickled_model(tmp_path / "torn.pt")


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=["complex", "sparse", "meta", "quantized"],
)
def test_only_dense_real_numbers_are_read(tmp_path: Path, weight: Tensor) -> None:
    torch.save({"weight": weight}, tmp_path / "odd.pt")
    for read in (read_pickled_model, read_state_dict):
        with pytest.raises(ValueError, match=r"odd\.pt .*(rejected|not a readable|dense real numbers only)"):
            read(tmp_path / "odd.pt")


def test_a_pickle_cannot_spoil_the_next_one(tmp_path: Path) -> None:
    # BUILD with a slot state sets attributes on whatever object it is given, here on a stand-in itself.
    for name in (b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n", b"cultralytics.nn\nx\n"):
        attack = b"\x80\x02" + name + b"(N}X\x06\x00\x00\x00__call__K\x01stb."
        write_pickle(tmp_path / "evil.pt", attack)
        with contextlib.suppress(ValueError):
            read_pickled_model(tmp_path / "evil.pt")
    wanted = write_small(tmp_path / "old.pt")
    assert_same(read_pickled_model(tmp_path / "old.pt"), wanted)


def test_similar_names_are_rejected(tmp_path: Path) -> None:
    others = ["ultralytics_evil.x", "xultralytics.nn.a", "torch.nn.functional.silu", "torch.hub.load", "os.system"]
    for name in [*others, "builtins.getattr.x", "builtins.getattribute", "builtins.setattr"]:
        module, _, attribute = name.rpartition(".")
        write_pickle(tmp_path / "other.pt", f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"))
        with pytest.raises(ValueError, match=rf"other\.pt was rejected: it names {re.escape(name)},"):
            read_pickled_model(tmp_path / "other.pt")


def test_names_registered_elsewhere_are_neither_used_nor_lost(tmp_path: Path) -> None:
    wanted = write_small(tmp_path / "old.pt")
    marker = tmp_path / "made_by_the_payload"
    torch.save(Call(eval, f"__import__('os').mkdir({str(marker)!r})"), tmp_path / "evil.pt")
    ours = [getattr, eval, nn.BatchNorm2d, (nn.Identity, "ultralytics.nn.modules.conv.Conv")]
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals(ours):
        assert_same(read_pickled_model(tmp_path / "old.pt"), wanted)
        with pytest.raises(ValueError, match=r"names builtins\.eval"):
            read_pickled_model(tmp_path / "evil.pt")
        assert set(torch.serialization.get_safe_globals()) == before | set(ours)
    assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_nothing_stays_registered(tmp_path: Path) -> None:
    write_small(tmp_path / "old.pt")
    before = set(torch.serialization.get_safe_globals())
    read_pickled_model(tmp_path / "old.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "old.pt", weights_only=True)


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    wanted = [write_small(tmp_path / f"{i}.pt", generation) for i, generation in enumerate(GENERATIONS)]
    together = threading.Barrier(6)

    def read(i: int) -> bool:
        together.wait()
        for _ in range(8):
            assert_same(read_pickled_model(tmp_path / f"{i % 3}.pt"), wanted[i % 3])
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


# rejects_bad_input


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="weights file not found: "):
            read_pickled_model(path)


@pytest.mark.parametrize("keep", [0, 10, 1000, 5000, -4000, -100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    write_small(tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.pt is not a readable PyTorch file: \S"):
        read_pickled_model(tmp_path / "cut.pt")


def test_other_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("paper.txt", "text")
    with pytest.raises(ValueError, match=r"other\.pt is not a readable PyTorch file: \S"):
        read_pickled_model(file)
    file.write_bytes(pickle.dumps(system(tmp_path / "made_by_the_payload")))
    with pytest.raises(ValueError, match=r"other\.pt is not a readable PyTorch file: \S"):
        read_pickled_model(file)
    assert not (tmp_path / "made_by_the_payload").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"only named tensors, got int under 'epoch'"),
        ({"model": None, "ema": None}, r"only named tensors, got NoneType under 'model'"),
        ([1, 2], r"must hold a state dict .* got list"),
        (nn.SiLU(), r"got an object without parameters"),
        ({"model": Path("x")}, r"got an object without parameters"),
    ],
)
def test_files_without_a_model_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=rf"odd\.pt.*{message}"):
        read_pickled_model(tmp_path / "odd.pt")


def test_a_parameter_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)
    layer._parameters["weight"] = nn.SiLU()  # type: ignore[assignment]
    torch.save(nn.Sequential(layer), tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt must hold tensors, got SiLU under 0\.weight"):
        read_pickled_model(tmp_path / "odd.pt")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["ring", "long names", "two rings", "tree of shared modules"])
def test_endless_graphs_are_rejected(tmp_path: Path, kind: str) -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    if kind == "tree of shared modules":
        for _ in range(50):
            model = nn.Sequential(model, model)
    else:
        model._modules["again" * (20_000 if kind == "long names" else 1)] = model
        model._modules["once more"] = model if kind == "two rings" else None
    torch.save(model, tmp_path / "ring.pt")
    with pytest.raises(ValueError, match=r"ring\.pt nests its modules too deeply or endlessly"):
        read_pickled_model(tmp_path / "ring.pt")


# invariants


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_are_read_or_named_but_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole.pt"
    if not whole.exists():
        write_small(whole)
    content = bytearray(whole.read_bytes())
    end = content.index(b"archive/byteorder") if b"archive/byteorder" in content else 6000
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.pt"
    file.write_bytes(content)
    before = set(torch.serialization.get_safe_globals())
    try:
        assert all(isinstance(tensor, Tensor) for tensor in read_pickled_model(file).values())
    except ValueError as error:
        assert "damaged.pt" in str(error)  # noqa: PT017
    assert set(torch.serialization.get_safe_globals()) == before
