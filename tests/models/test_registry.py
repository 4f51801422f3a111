"""The table of networks, and networks by name."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from skt_components.models import (
    NETWORKS,
    AHDRNet,
    TMRNet,
    TMRNetPlus,
    bracket_options,
    load_network,
    load_official,
)

SMALL = [name for name in NETWORKS if name.endswith("-small")]


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
    network = load_official("ahdrnet", official.to_official())
    assert torch.equal(network.conv1.weight, official.conv1.weight)
    small = {"features": 8, "num_blocks": (1, 1, 1, 1)}
    official = TMRNetPlus(**small).to_official()
    network = load_official("tmrnet-plus", official, **small, **bracket_options("raw", scale=4))
    assert type(network) is TMRNetPlus
    with pytest.raises(ValueError, match=r"must be one of ahdrnet, .* to have official weights, got 'ahdrnet-small'"):
        load_official("ahdrnet-small", {})


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
