"""The networks that come with the library, and weights to start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

import skt_components
from skt_components import AHDRNet, load_pretrained, merge_exposures, psnr_mu, reference_exposure, save_weights
from skt_components.models import NETWORKS, bracket_options, load_initial_weights, pretrained_names
from skt_components.simulation import RawCamera, SyntheticScenes

FOLDER = Path(skt_components.__file__).parent / "pretrained"
DOMAINS = {"ahdrnet-small": "srgb", "hdr-transformer-small": "srgb", "tmrnet-small": "raw"}


def network_of(name: str) -> torch.nn.Module:
    if name == "tmrnet-small":
        pytest.importorskip("torchvision")
    return NETWORKS[name](**bracket_options(DOMAINS[name]))


def test_all_names_have_a_network_a_card_and_less_than_two_megabytes_together() -> None:
    assert pretrained_names() == sorted(DOMAINS)
    cards = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text(encoding="utf-8")
    assert all(f"## {name}" in cards for name in pretrained_names())
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2e6


@pytest.mark.parametrize("name", DOMAINS)
def test_a_pretrained_network_is_better_than_reference_exposure(name: str) -> None:
    network_of(name)
    network = load_pretrained(name)
    assert not network.training
    raw = DOMAINS[name] == "raw"
    scenes = SyntheticScenes(4, 48 if raw else 96, split="val", camera=RawCamera() if raw else None)
    sample = default_collate([scenes[index] for index in range(4)])
    with torch.no_grad():
        pictures = {"ours": network(sample.bracket), "reference": reference_exposure(sample.bracket)}
    pictures["merge"] = merge_exposures(sample.bracket, sample.exposure_times)
    peak = network.peak
    scores = {key: psnr_mu(picture, sample.target, peak=peak).mean().item() for key, picture in pictures.items()}
    assert scores["ours"] > scores["reference"] + 2, scores


@pytest.mark.parametrize("name", DOMAINS)
def test_pretrained_weights_are_a_start_for_the_network_of_that_name(name: str) -> None:
    network = network_of(name)
    load_initial_weights(name, network)
    trained = load_pretrained(name).state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in network.state_dict().items())


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*ahdrnet-small.*, got 'ahdrnet'"):
        load_pretrained("ahdrnet")
    with pytest.raises(FileNotFoundError, match=r"init=missing\.pt is neither a file nor one of ahdrnet-small"):
        load_initial_weights("missing.pt", AHDRNet())


def test_a_start_for_another_network_is_rejected_and_nothing_is_loaded() -> None:
    network = AHDRNet(features=8, num_layers=2, growth=4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"init=ahdrnet-small has features=16, the network has features=8"):
        load_initial_weights("ahdrnet-small", network)
    with pytest.raises(ValueError, match=r"init=ahdrnet-small is a AHDRNet, the network is a Linear"):
        load_initial_weights("ahdrnet-small", torch.nn.Linear(1, 1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_start_from_a_file_of_ours_of_a_plain_state_dict_and_of_the_authors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, network = (AHDRNet(features=8, num_layers=2, growth=4) for _ in range(2))
    save_weights(tmp_path / "ours.safetensors", trained)
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    torch.save({"state_dict": trained.to_official()}, tmp_path / "authors.pth")
    bracket = torch.rand(1, 3, 6, 16, 16)
    for file, official in (("ours.safetensors", False), ("plain.pt", False), ("authors.pth", True)):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
        load_initial_weights(tmp_path / file, network, official=official)
        torch.testing.assert_close(network(bracket), trained(bracket))


def test_a_start_for_a_network_of_your_own_is_its_state_dict(tmp_path: Path) -> None:
    trained, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    torch.save(trained.state_dict(), tmp_path / "mine.pt")
    load_initial_weights(tmp_path / "mine.pt", network)
    assert torch.equal(network.weight, trained.weight)
    with pytest.raises(ValueError, match="init_official is for networks of this library, got Linear"):
        load_initial_weights(tmp_path / "mine.pt", network, official=True)
