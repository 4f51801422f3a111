"""The table of networks, networks by name, and their weight files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from skt_components.files.weights import read_state_dict, write_safetensors
from skt_components.models import (
    NETWORKS,
    AHDRNet,
    TMRNet,
    TMRNetPlus,
    bracket_options,
    load_model,
    load_network,
    load_official,
    load_weights,
    save_weights,
)
from skt_components.models.registry import _recognize

SMALL = [name for name in NETWORKS if name.endswith("-small")]


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of somebody else's networks."""
    module = ModuleType("strangers")
    module.net = lambda: nn.Conv2d(1, 1, 1)
    module.called = lambda: (nn.Conv2d(1, 1, 1), lambda network, bracket: 2 * network(bracket))
    module.text = lambda: "network"
    module.argument = lambda width: nn.Conv2d(width, 1, 1)
    monkeypatch.setitem(sys.modules, "strangers", module)
    return module


@pytest.mark.parametrize(("domain", "scale"), [("srgb", 1), ("raw", 1), ("raw", 4)])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_takes_the_brackets_of_every_domain(name, domain, scale):
    network, forward = load_network(name, **bracket_options(domain, scale=scale))
    hdr = forward(network, torch.rand(1, network.num_frames, network.in_channels, 8, 12))
    assert hdr.shape == (1, 4 if domain == "raw" else 3, 8 * scale, 12 * scale)
    assert (network.reference, network.peak) == ((0, 16.0) if domain == "raw" else (1, 1.0))


def test_tmrnet_has_its_scale_in_its_class():
    with torch.device("meta"):
        assert type(NETWORKS["tmrnet"]()) is TMRNet
        assert type(NETWORKS["tmrnet"](scale=4)) is TMRNetPlus
        assert type(NETWORKS["tmrnet-plus"]()) is TMRNetPlus
        with pytest.raises(ValueError, match="scale must be one of"):
            NETWORKS["tmrnet-plus"](scale=1)


@pytest.mark.parametrize(("domain", "scale"), [("rgb", 1), ("srgb", 4), ("raw", 2)])
def test_rejects_unknown_brackets(domain, scale):
    with pytest.raises(ValueError, match="must be one of"):
        bracket_options(domain, scale=scale)


def test_official_weights_by_name():
    official = AHDRNet(unused_layers=True)
    network = load_official(official.to_official(), "ahdrnet")
    assert torch.equal(network.conv1.weight, official.conv1.weight)
    small = {"features": 8, "num_blocks": (1, 1, 1, 1)}
    official = TMRNetPlus(**small).to_official()
    network = load_official(official, "tmrnet-plus", **small, **bracket_options("raw", scale=4))
    assert type(network) is TMRNetPlus
    with pytest.raises(ValueError, match=r"must be one of ahdrnet, .* to have official weights, got 'ahdrnet-small'"):
        load_official({}, "ahdrnet-small")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ahdr", "ahdrnet"),
        ("hdrt", "hdr-transformer"),
        ("sct", "sctnet"),
        ("tmr", "tmrnet"),
        ("tmrp", "tmrnet-plus"),
    ],
)
def test_the_authors_files_are_recognized_by_their_names(file, name, official_shapes):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_shapes(f"{file}.tsv").items()}
    assert _recognize({"state_dict": {f"module.{key}": value for key, value in state.items()}}) == name


def test_official_weights_without_a_name(tmp_path):
    options = {"features": 6, "num_layers": 3, "growth": 3}
    official = AHDRNet(**options)
    torch.save({"state_dict": official.to_official()}, tmp_path / "authors.pth")
    network = load_official(tmp_path / "authors.pth", **options)
    assert torch.equal(network.conv3.weight, official.conv3.weight)
    torch.save({"body.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth holds the weights of none of .*its names are body.weight"):
        load_official(tmp_path / "other.pth")


@pytest.mark.usefixtures("strangers")
def test_networks_by_import_path_get_no_options():
    known = {"conv": lambda out_channels: nn.Conv2d(3, out_channels, 1)}
    assert load_network("conv", known, out_channels=5)[0].weight.shape == (5, 3, 1, 1)
    assert load_network("strangers:net", out_channels=5)[0].weight.shape == (1, 1, 1, 1)
    network, forward = load_network("strangers:called")
    x = torch.rand(1, 1, 2, 2)
    assert torch.equal(forward(network, x), 2 * network(x))


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ahdrnt", "must be one of ahdrnet, .* or package.module:callable, got 'ahdrnt'"),
        ("strangers:none", "does not give a network"),
        ("nowhere:net", "does not give a network"),
        ("strangers:argument", "does not give a network"),
        ("strangers:text", "must return an nn.Module, or one and a function, got str"),
    ],
)
def test_rejects_names_that_give_no_network(name, message):
    with pytest.raises(ValueError, match=message):
        load_network(name)


# weight files


def test_weights_come_back_bit_for_bit(tmp_path):
    model, twin = make_model(), make_model()
    model(torch.rand(2, 3, 6, 6))  # moves the statistics and the integer counter
    save_weights(tmp_path / "m.safetensors", model)
    load_weights(tmp_path / "m.safetensors", twin)
    assert same(twin.state_dict(), model.state_dict())
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
    assert same(twin.state_dict(), model.state_dict())
    assert twin.a.weight is twin.b.weight
    last = make_model().to(memory_format=torch.channels_last)
    save_weights(tmp_path / "last.safetensors", last)
    plain = make_model()
    load_weights(tmp_path / "last.safetensors", plain)
    assert same(plain.state_dict(), last.state_dict())
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
    assert same(model.state_dict(), before)
    save_weights(path, other[:2])
    with pytest.raises(ValueError, match=r"2 missing: 3\.weight, 3\.bias"):
        load_weights(path, model)
    assert same(model.state_dict(), before)


def test_broken_and_missing_weights_are_rejected_by_name(tmp_path):
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
    assert same(twin.state_dict(), model.state_dict())
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole\.pth was rejected"):
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
    assert same(twin.state_dict(), model.state_dict())


def test_a_missing_safetensors_package_names_the_extra(tmp_path, monkeypatch):
    save_weights(tmp_path / "m.safetensors", make_model())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (save_weights, load_weights):
        with pytest.raises(ImportError, match=r'safetensors.*: pip install "skt-components\[fastsam\]"'):
            call(tmp_path / "m.safetensors", make_model())


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, AveragedModel])
def test_a_wrapped_network_is_saved_and_loaded_with_its_own_names(tmp_path, wrap):
    network = AHDRNet(features=4, num_layers=1, growth=2)
    save_weights(tmp_path / "net.safetensors", wrap(network))
    loaded = load_model(tmp_path / "net.safetensors")
    other = wrap(AHDRNet(features=4, num_layers=1, growth=2))
    load_weights(tmp_path / "net.safetensors", other)
    for twin in (loaded, getattr(other, "module", other)):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))


def test_a_compiled_part_is_saved_and_loaded_with_its_own_names(tmp_path):
    network, other = AHDRNet(features=4, num_layers=1, growth=2), AHDRNet(features=4, num_layers=1, growth=2)
    names = set(network.state_dict())
    network.RDB1 = torch.compile(network.RDB1)
    save_weights(tmp_path / "net.safetensors", network)
    assert set(read_state_dict(tmp_path / "net.safetensors")) == names
    load_weights(tmp_path / "net.safetensors", other)
    load_weights(tmp_path / "net.safetensors", network)
    assert torch.equal(other.RDB1.conv_1x1.weight, network.RDB1.conv_1x1.weight)


def test_a_network_of_this_library_is_made_from_its_file(tmp_path):
    network = AHDRNet(5, 4, 4, features=6, num_layers=2, growth=3, reference=0, peak=16.0)
    save_weights(tmp_path / "orm.safetensors", network)
    twin = load_model(tmp_path / "orm.safetensors")
    assert type(twin) is AHDRNet
    assert twin.config == network.config
    assert not twin.training
    assert same(twin.state_dict(), network.state_dict())


def test_a_file_that_does_not_say_its_network_is_rejected(tmp_path):
    save_weights(tmp_path / "other.safetensors", nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"other\.safetensors must name one of the networks AHDRNet, .* names none"):
        load_model(tmp_path / "other.safetensors")
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth must name one of .* names none: .* use load_weights"):
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


@pytest.mark.parametrize(
    "config",
    [
        '{"num_layers": 10000000}',
        '{"features": 8, "num_layers": 900, "growth": 4}',
        '{"features": 1000}',
        "[" * 100_000,
    ],
)
def test_a_small_file_cannot_ask_for_a_large_network(tmp_path, config):
    path = tmp_path / "small.safetensors"
    write_safetensors(path, {"a": torch.zeros(2000)}, {"network": "AHDRNet", "config": config})
    with pytest.raises(ValueError, match=r"small\.safetensors (has a broken config|does not fit the network)"):
        load_model(path)
