"""Checkpoints: never half a file, never code, all the keys or none."""

from __future__ import annotations

import os
import pickle
import stat
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from skt_components.models import AHDRNet, load_model, load_weights, save_weights
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


# checkpoints


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


def test_a_pickle_bomb_is_refused_by_name_and_does_not_go_off(tmp_path):
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
def test_a_broken_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    save_checkpoint(path, {"weight": torch.rand(1000)})
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"step = 3"}[content])
    with pytest.raises(ValueError, match=r"broken\.ckpt is not a readable checkpoint: "):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path)


def test_something_other_than_a_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match=r"list\.ckpt must hold a dict, got list"):
        load_checkpoint(tmp_path / "list.ckpt")


# weights


def test_weights_come_back_bit_for_bit(tmp_path):
    model, twin = make_model(), make_model()
    model(torch.rand(2, 3, 6, 6))  # moves the statistics and the integer counter
    save_weights(tmp_path / "m.safetensors", model)
    load_weights(tmp_path / "m.safetensors", twin)
    assert same(dict(twin.state_dict()), dict(model.state_dict()))
    assert twin[1].num_batches_tracked == 1


def test_the_file_holds_the_models_own_names_and_nothing_else(tmp_path):
    from safetensors import safe_open

    save_weights(tmp_path / "m.safetensors", make_model())
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(file.keys()) == set(make_model().state_dict())


def test_tied_and_non_contiguous_weights_are_handled(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.c = nn.Parameter(torch.randn(5, 4).t())
            self.register_buffer("view", self.c.detach()[0])

    model, twin = Tied(), Tied()
    assert not model.c.is_contiguous()
    save_weights(tmp_path / "tied.safetensors", model)
    load_weights(tmp_path / "tied.safetensors", twin)
    assert same(dict(twin.state_dict()), dict(model.state_dict()))
    assert twin.a.weight is twin.b.weight
    last = make_model().to(memory_format=torch.channels_last)
    save_weights(tmp_path / "last.safetensors", last)
    plain = make_model()
    load_weights(tmp_path / "last.safetensors", plain)
    assert same(dict(plain.state_dict()), dict(last.state_dict()))
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)  # the model itself is not rearranged


def test_a_failing_weights_writer_leaves_the_old_file_alone(tmp_path, monkeypatch):
    import safetensors.torch

    path = tmp_path / "m.safetensors"
    save_weights(path, make_model())
    before = path.read_bytes()

    def write_half(_state: object, target: str, _metadata: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", write_half)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, make_model())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "other.safetensors"
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 7, 1), nn.Linear(2, 2))
    save_weights(path, other)
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"other\.safetensors does not fit the network; keys ") as error:
        load_weights(path, model)
    message = str(error.value)
    assert "2 unexpected: 4.bias, 4.weight" in message
    assert "3.weight (7, 4, 1, 1), wanted (2, 4, 1, 1)" in message
    assert same(dict(model.state_dict()), before)
    save_weights(path, other[:2])
    with pytest.raises(ValueError, match=r"2 missing: 3\.weight, 3\.bias"):
        load_weights(path, model)
    assert same(dict(model.state_dict()), before)


def test_broken_and_missing_weights_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights file not found: .*none\.safetensors"):
        load_weights(tmp_path / "none.safetensors", make_model())
    for content in (b"", b"not safetensors", b"\xff" * 64):
        (tmp_path / "broken.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.safetensors is not a readable safetensors file"):
            load_weights(tmp_path / "broken.safetensors", make_model())


def test_weights_saved_by_torch_load_too(tmp_path):
    model, twin = make_model(), make_model()
    with torch.no_grad():
        model[0].weight.add_(1)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    load_weights(tmp_path / "m.pth", twin)
    assert same(dict(twin.state_dict()), dict(model.state_dict()))
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole\.pth was refused"):
        load_weights(tmp_path / "whole.pth", twin)


def test_a_network_whose_part_is_called_module_comes_back(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = make_model()

    model, twin = Wrapper(), Wrapper()
    with torch.no_grad():
        model.module[0].weight.add_(1)
    save_weights(tmp_path / "m.safetensors", model)
    load_weights(tmp_path / "m.safetensors", twin)
    assert same(dict(twin.state_dict()), dict(model.state_dict()))


def test_a_missing_safetensors_package_names_the_extra(tmp_path, monkeypatch):
    save_weights(tmp_path / "m.safetensors", make_model())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (save_weights, load_weights):
        with pytest.raises(ImportError, match=r'safetensors.*: pip install "skt-components\[fastsam\]"'):
            call(tmp_path / "m.safetensors", make_model())


# models made from their file


def test_a_network_of_this_library_is_made_from_its_file(tmp_path):
    network = AHDRNet(5, 4, 4, features=6, num_layers=2, growth=3, reference=0, peak=16.0)
    save_weights(tmp_path / "orm.safetensors", network)
    twin = load_model(tmp_path / "orm.safetensors")
    assert type(twin) is AHDRNet
    assert twin.config == network.config
    assert not twin.training
    assert all(torch.equal(twin.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


def test_a_file_that_does_not_say_its_network_is_refused(tmp_path):
    save_weights(tmp_path / "other.safetensors", nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"other\.safetensors must name one of the networks AHDRNet, .* names none"):
        load_model(tmp_path / "other.safetensors")
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth must name one of .* names none; .* use load_weights"):
        load_model(tmp_path / "w.pth")
    safetensors = pytest.importorskip("safetensors.torch")
    for metadata, message in [
        ({"network": "os.system", "config": "{}"}, r"names 'os\.system'"),
        ({"network": "AHDRNet"}, "broken config of AHDRNet"),
        ({"network": "AHDRNet", "config": "{"}, "broken config of AHDRNet"),
        ({"network": "AHDRNet", "config": '{"color": 3}'}, "broken config of AHDRNet"),
        ({"network": "AHDRNet", "config": '{"features": 8}'}, "does not fit"),
    ]:
        safetensors.save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors", metadata)
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "m.safetensors")
