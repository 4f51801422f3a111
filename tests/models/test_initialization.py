"""Networks that begin with a picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from skt_components.losses import mu_l1_loss
from skt_components.metrics import psnr_mu
from skt_components.models import NETWORKS, bracket_options, fit_last_layer, initialize_from_samples
from skt_components.models.network import ReconstructionNetwork
from skt_components.simulation import RawCamera, SyntheticScenes


def samples(count: int = 6, size: int = 24, scale: int = 0):
    camera = RawCamera(scale=scale) if scale else None
    scenes = SyntheticScenes(count, size, camera=camera)
    return default_collate([scenes[index] for index in range(count)])


@pytest.mark.parametrize("sigmoid", [True, False])
def test_the_solution_is_the_least_squares_fit_of_the_last_layer(sigmoid: bool) -> None:
    """A picture that the last layer can make exactly is made."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(18, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
    wanted = nn.Conv2d(8, 3, 3, padding=1)
    bracket = torch.rand(4, 3, 6, 20, 24)
    features = network[1](bracket.flatten(1, 2))
    target = (torch.sigmoid(wanted(features)) if sigmoid else wanted(features).abs() * 0 + wanted(features)).detach()
    if not sigmoid:
        target = target - target.min()
    frozen = network[1].weight.clone()
    fit_last_layer(network, bracket, target, layer="2", sigmoid=sigmoid)
    made = network(bracket)
    made = torch.sigmoid(made) if sigmoid else made
    assert (made - target).abs().max() < 5e-3
    assert torch.equal(network[1].weight, frozen)


@pytest.mark.parametrize("name", ["ahdrnet-small", "hdr-transformer-small", "sctnet-small"])
def test_a_network_begins_with_a_picture_instead_of_gray(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](**bracket_options("srgb"))
    assert isinstance(network, ReconstructionNetwork)
    sample = samples()
    with torch.no_grad():
        before = psnr_mu(network.eval()(sample.bracket), sample.target).mean()
        initialize_from_samples(network, sample.bracket, sample.target)
        after = psnr_mu(network(sample.bracket), sample.target).mean()
        gray = psnr_mu(torch.full_like(sample.target, 0.5), sample.target).mean()
    assert before < gray + 5
    assert after > before + 10


@pytest.mark.parametrize("scale", [1, 4])
def test_raw_networks_and_enlarged_outputs_begin_with_a_picture(scale: int) -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = NETWORKS["tmrnet-small"](**bracket_options("raw", scale=scale))
    sample = samples(3, 16, scale)
    with torch.no_grad():
        before = psnr_mu(network.eval()(sample.bracket), sample.target, peak=16.0).mean()
        initialize_from_samples(network, sample.bracket, sample.target)
        made = psnr_mu(network(sample.bracket), sample.target, peak=16.0).mean()
    assert made > before + 5


def test_the_mode_and_other_weights_stay_as_they_are() -> None:
    network = NETWORKS["hdr-transformer-small"](**bracket_options("srgb"))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sample = samples(2)
    initialize_from_samples(network.train(), sample.bracket, sample.target)
    assert network.training
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == {"conv_last.weight", "conv_last.bias"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("no", "layer must name a convolution of stride 1 in one group, got 'no'"),
        ("0", "layer must name a convolution"),
        ("1", r"layer must make the picture \(2, 3, 8, 8\), got \(2, 3, 8, 8\)|layer must make the picture"),
    ],
)
def test_rejects_a_layer_that_does_not_make_the_picture(layer: str, message: str) -> None:
    network = nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(18, 4, 1), nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match=message):
        fit_last_layer(network, torch.rand(2, 3, 6, 8, 8), torch.rand(2, 3, 8, 8), layer=layer)


def test_rejects_a_target_of_another_size() -> None:
    network = nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(18, 3, 1))
    with pytest.raises(ValueError, match=r"layer must make the picture \(1, 3, 9, 8\), got \(1, 3, 8, 8\) from '1'"):
        fit_last_layer(network, torch.rand(1, 3, 6, 8, 8), torch.rand(1, 3, 9, 8), layer="1")


def test_the_first_steps_of_adam_destroy_less_of_sctnet_where_its_layers_are_rescaled() -> None:
    sample, losses = samples(), {}
    for rescaled in (True, False):
        torch.manual_seed(0)
        network = NETWORKS["sctnet-small"](**bracket_options("srgb")).eval()
        assert isinstance(network, ReconstructionNetwork)
        if rescaled:
            network.rescale_layers()
        fit_last_layer(network, sample.bracket, sample.target, layer=network.last_layer)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
        for _ in range(4):
            losses[rescaled] = mu_l1_loss(network(sample.bracket), sample.target)
            optimizer.zero_grad()
            losses[rescaled].backward()
            optimizer.step()
    assert losses[True] < 0.2 < 0.4 < losses[False]
