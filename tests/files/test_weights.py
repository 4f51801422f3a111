from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from skt_components.files.atomic import atomic_write
from skt_components.files.weights import (
    check_state_dict,
    read_safetensors_metadata,
    read_state_dict,
    unwrap_state_dict,
    write_safetensors,
)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {k: v.clone() for k, v in nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict().items()}


class Payload:
    """A pickle that makes a folder when it is loaded carelessly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for key in wanted:
        assert torch.equal(found[key], wanted[key])


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_reads_a_bare_state_dict(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    torch.save(state, tmp_path / f"weights{suffix}")
    assert_same(read_state_dict(tmp_path / f"weights{suffix}"), state)
    assert_same(read_state_dict(str(tmp_path / f"weights{suffix}")), state)


def test_reads_safetensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    found = read_state_dict(tmp_path / "weights.safetensors")
    assert_same({k: found[k] for k in state}, state)


def test_reads_the_metadata_of_safetensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "weights.safetensors", {"network": "AHDRNet"})
    assert read_safetensors_metadata(tmp_path / "weights.safetensors") == {"network": "AHDRNet"}
    save_file(state, tmp_path / "bare.safetensors")
    assert read_safetensors_metadata(str(tmp_path / "bare.safetensors")) == {}
    (tmp_path / "odd.safetensors").write_bytes(b"odd")
    with pytest.raises(ValueError, match=r"odd\.safetensors is not a readable safetensors file"):
        read_safetensors_metadata(tmp_path / "odd.safetensors")
    with pytest.raises(FileNotFoundError):
        read_safetensors_metadata(tmp_path / "absent.safetensors")


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    metadata = {f"key {i}": f'"ü\\ \n\x7f {i}' for i in range(9)}
    for name, entries in (("a", metadata), ("b", dict(reversed(metadata.items())))):
        write_safetensors(tmp_path / name, state, entries)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = read_safetensors_metadata(tmp_path / "a")
    assert {key: found[key] for key in metadata} == metadata


def test_no_flipped_bit_gives_other_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["half"], state["none"] = torch.ones(2, dtype=torch.bfloat16), torch.zeros(0, 3)
    file = tmp_path / "weights.safetensors"
    write_safetensors(file, state, {"network": "Net", "config": "{}"})
    whole, rejected = file.read_bytes(), 0
    for place in range(0, 8 * len(whole), 67):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            found = read_state_dict(file)
        except ValueError:
            rejected += 1
            continue
        assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)
    assert rejected > 50


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_unwraps_and_strips_the_parallel_prefix(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    wrapped = {key: {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "weights.pth")
    assert_same(read_state_dict(tmp_path / "weights.pth", prefix="module."), state)


def test_names_as_they_stand_can_be_had(tmp_path: Path, state: dict[str, Tensor]) -> None:
    parallel = {f"module.{k}": v for k, v in state.items()}
    torch.save({"state_dict": parallel}, tmp_path / "weights.pth")
    assert_same(read_state_dict(tmp_path / "weights.pth"), parallel)
    assert_same(unwrap_state_dict({"model": parallel}, "weights.pth"), parallel)
    with pytest.raises(ValueError, match=r"^some\.pt must hold only named tensors, got int under 'a'"):
        unwrap_state_dict({"a": 1}, "some.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights file not found: .*absent\.pth"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="weights file not found"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_rejected_and_not_run(tmp_path: Path, legacy: bool) -> None:
    file, folder = tmp_path / "evil.pth", tmp_path / "made_by_the_payload"
    torch.save({"weight": Payload(folder)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"evil\.pth was rejected.*could run\s+code"):
        read_state_dict(file)
    assert not folder.exists()


def test_code_in_a_plain_pickle_is_rejected_and_not_run(tmp_path: Path) -> None:
    file, folder = tmp_path / "evil.pt", tmp_path / "made_by_the_payload"
    file.write_bytes(pickle.dumps(Payload(folder)))
    with pytest.raises(ValueError, match=r"evil\.pt"):
        read_state_dict(file)
    assert not folder.exists()


def test_a_whole_pickled_module_is_rejected(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth was rejected.*save model\.state_dict\(\) alone"):
        read_state_dict(tmp_path / "module.pth")


@pytest.mark.parametrize("keep", [0, 10, 300, -200])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, state: dict[str, Tensor], keep: int, suffix: str) -> None:
    file = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.(pth|safetensors)"):
        read_state_dict(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], r"must hold a state dict .* got list"),
        ({}, r"got an empty mapping"),
        ({"weight": torch.zeros(1), "epoch": 3}, r"only named tensors, got int under 'epoch'"),
        ({3: torch.zeros(1)}, r"only named tensors, got Tensor under 3"),
    ],
)
def test_anything_but_named_tensors_is_rejected(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth.*{message}"):
        read_state_dict(tmp_path / "odd.pth")


def test_missing_safetensors_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[fastsam\]"'):
        read_state_dict(tmp_path / "a.safetensors")


def test_matching_keys_pass(state: dict[str, Tensor]) -> None:
    check_state_dict("file", dict(reversed(state.items())), state)


def test_every_kind_of_mismatch_is_listed(state: dict[str, Tensor]) -> None:
    found = dict(state)
    del found["0.bias"]
    found["extra"] = torch.zeros(1)
    found["0.weight"] = torch.zeros(4, 1, 3, 3)
    with pytest.raises(ValueError, match=r"some\.pth does not fit the network") as caught:
        check_state_dict("some.pth", found, state)
    message = str(caught.value)
    assert "1 missing: 0.bias" in message
    assert "1 unexpected: extra" in message
    assert "1 of another shape: 0.weight (4, 1, 3, 3), wanted (4, 3, 3, 3)" in message


def test_a_long_list_is_cut() -> None:
    with pytest.raises(ValueError, match=r"30 missing: k0, k1, k2, k3, k4, k5, k6, k7 and 22 more$"):
        check_state_dict("file", {}, {f"k{i}": torch.zeros(1) for i in range(30)})


# replacing


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    (tmp_path / "other.bin").touch()
    for content in (b"first", b"second"):
        with atomic_write(file) as temporary:
            assert temporary.parent == tmp_path
            temporary.chmod(0o600)
            temporary.write_bytes(content[:2])
            assert not file.exists() or file.read_bytes() == b"first"
            temporary.write_bytes(content)
        assert file.read_bytes() == content
    assert file.stat().st_mode == (tmp_path / "other.bin").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "other.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(file) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("sync", [True, False])
def test_the_disk_is_waited_for_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    with atomic_write(tmp_path / "a.bin", sync=sync) as temporary:
        temporary.write_bytes(b"new")
    assert len(waited) == sync


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"folder .*absent does not exist, a\.bin was not written"),
        atomic_write(tmp_path / "absent" / "a.bin"),
    ):
        pytest.fail("nothing can be written")
