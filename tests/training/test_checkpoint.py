"""Checkpoints: never half a file, never code, all the keys or none."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from skt_components.models import save_weights
from skt_components.training import load_checkpoint, save_checkpoint


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_training_state_comes_back_as_it_was_and_training_goes_on_the_same(tmp_path):
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    model, x = make_model(), torch.rand(2, 3, 6, 6)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, x)
    state = {
        "step": 1,
        "module": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "note": "ü",
        "list": [1, 2.5],
    }
    save_checkpoint(tmp_path / "a.ckpt", state)
    loaded = load_checkpoint(str(tmp_path / "a.ckpt"))
    assert same(loaded, state)
    twin = make_model()
    twin_optimizer = torch.optim.Adam(twin.parameters())
    twin.load_state_dict(loaded["module"])
    twin_optimizer.load_state_dict(loaded["optimizer"])
    step(model, optimizer, x)
    step(twin, twin_optimizer, x)
    assert same(twin.state_dict(), model.state_dict())


def test_saving_replaces_the_file_and_leaves_no_other(tmp_path):
    for value in (1, 2):
        save_checkpoint(tmp_path / "a.ckpt", {"value": value})
    assert load_checkpoint(tmp_path / "a.ckpt") == {"value": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be replaced on Windows")
def test_whoever_reads_the_old_file_reads_it_to_the_end(tmp_path):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"value": 1})
    before = path.read_bytes()
    with open(path, "rb", buffering=0) as reader:
        start = reader.read(100)
        save_checkpoint(path, {"value": torch.rand(50)})
        assert start + reader.read() == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_fails_midway_leaves_the_old_file_alone(tmp_path, monkeypatch, error):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"value": 1})
    before = path.read_bytes()

    def write_half(_state: object, target: str) -> None:
        Path(target).write_bytes(before[: len(before) // 2])
        assert path.read_bytes() == before  # whoever reads now still sees the old one
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"value": 2})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert load_checkpoint(path) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_first_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(tmp_path / "a.ckpt", {"function": lambda: None})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_files_get_the_rights_that_any_new_file_gets(tmp_path, kind):
    (tmp_path / "plain").write_text("")
    path = tmp_path / "saved.safetensors"
    if kind == "checkpoint":
        save_checkpoint(path, {})
    else:
        save_weights(path, make_model())
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_missing_folder_is_named(tmp_path):
    for save in (lambda p: save_checkpoint(p, {}), lambda p: save_weights(p, make_model())):
        with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist, a\.bin was not written"):
            save(tmp_path / "nowhere" / "a.bin")
    assert not (tmp_path / "nowhere").exists()


def test_a_pickle_bomb_is_rejected_by_name_and_does_not_go_off(tmp_path):
    marker, path = tmp_path / "exploded", tmp_path / "bomb.ckpt"
    torch.save({"state": Bomb(marker)}, path)
    with pytest.raises(ValueError, match=r"bomb\.ckpt is not a readable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"state": Bomb(marker)}, protocol=2))
    with pytest.raises(ValueError, match=r"bomb\.ckpt is not a readable checkpoint"):
        load_checkpoint(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # the bomb was a real one


@pytest.mark.parametrize("content", ["truncated", "empty", "text"])
def test_a_broken_file_is_rejected_by_name(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    save_checkpoint(path, {"weight": torch.rand(1000)})
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"step = 3"}[content])
    with pytest.raises(ValueError, match=r"broken\.ckpt is not a readable checkpoint: "):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_rejected_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path)


def test_something_other_than_a_dict_is_rejected(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match=r"list\.ckpt must hold a dict, got list"):
        load_checkpoint(tmp_path / "list.ckpt")
