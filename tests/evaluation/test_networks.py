"""Networks under evaluation: names, identities, tiles, and brackets that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skt_components.evaluation import Protocol, load_networks
from skt_components.files.weights import tensor_digest
from skt_components.models import AHDRNet, TMRNetPlus, save_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(tmp_path / "ours.safetensors", AHDRNet(features=8, num_layers=2, growth=4))
    return tmp_path / "ours.safetensors"


def test_a_pretrained_network_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = load_networks([(Path("ahdrnet-small"), "saved", False)])
    assert found.name == "ahdrnet-small"
    assert found.identity["sha256"] == tensor_digest(found.network.state_dict())
    (tmp_path / "ahdrnet-small").write_bytes(b"a file of that name is meant")
    with pytest.raises(ValueError, match="ahdrnet-small"):
        load_networks([(Path("ahdrnet-small"), "saved", False)])


def test_a_file_names_its_network_and_the_tensors_identify_it(weights, tmp_path):
    (model,) = load_networks([(weights, "saved", False)])
    assert model.name == "ours"
    assert model.identity["network"] == "AHDRNet"
    assert model.identity["config"]["growth"] == 4
    assert model.identity["sha256"] == tensor_digest(model.network.state_dict())
    save_weights(tmp_path / "copy.safetensors", model.network)
    (copy,) = load_networks([(tmp_path / "copy.safetensors", "saved", False)])
    assert copy.identity == model.identity
    assert (tmp_path / "copy.safetensors").read_bytes() == weights.read_bytes()
    with torch.no_grad():
        next(model.network.parameters()).flatten()[0] += 1e-6
    save_weights(weights, model.network)
    assert load_networks([(weights, "saved", False)])[0].identity != copy.identity
    assert not model.network.training
    assert [model.name for model in load_networks([(weights, "saved", False)] * 2)] == ["ours-1", "ours-2"]


def test_tiles_replace_the_inference_of_the_protocol(weights):
    bracket = torch.rand(1, 3, 6, 60, 230)
    (whole,) = load_networks([(weights, "saved", False)])
    (tiled,) = load_networks([(weights, "saved", False)], tile=208)  # a quarter is wider than what the network sees
    protocol = Protocol("whole pictures")
    torch.testing.assert_close(tiled.reconstruct(bracket, protocol), whole.reconstruct(bracket, protocol))


def test_a_prediction_that_is_not_finite_is_an_error(weights):
    (model,) = load_networks([(weights, "saved", False)])
    with pytest.raises(ValueError, match=r"ours: \d+ of 300 predicted values are infinite or NaN"):
        model.reconstruct(torch.full((1, 3, 6, 10, 10), torch.nan), Protocol("whole pictures"))


def test_networks_for_other_brackets_are_rejected(weights, tmp_path):
    with pytest.raises(ValueError, match="3 exposures of 6 channels, scale 1; the data are 5 exposures of 4"):
        load_networks([(weights, "saved", False)], domain="raw")
    save_weights(tmp_path / "plus.safetensors", TMRNetPlus(features=8, num_blocks=(1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"plus is for 5 exposures of 4 channels, scale 4; the data are .* scale 1"):
        load_networks([(tmp_path / "plus.safetensors", "saved", False)], domain="raw")
    with pytest.raises(ValueError, match="checkpoint must be a file of weights for the network 'sctnet', got None"):
        load_networks([(None, "sctnet", False)])


@pytest.mark.parametrize("stem", ["..", "exposure merge", "sections"])
def test_names_stay_inside_the_folder_and_apart_from_its_other_files(tmp_path, stem):
    save_weights(tmp_path / f"{stem}.safetensors", AHDRNet(features=8, num_layers=1, growth=4))
    (model,) = load_networks([(tmp_path / f"{stem}.safetensors", "saved", False)])
    assert model.name not in ("..", "exposure merge", "sections")
    assert (tmp_path / model.name).parent == tmp_path
