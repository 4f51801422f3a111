"""LPIPS against the distance written out from torchvision's layers and the package's weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from skt_components.metrics.lpips import _distance, lpips


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A random AlexNet of torchvision and its file of weights."""
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("lpips")
    torch.manual_seed(1)
    network = torchvision.models.alexnet(weights=None).eval()
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(network.state_dict(), path)
    return network, path


def pictures(size: tuple[int, int] = (40, 53)) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.rand(3, 3, *size)
    return target + torch.tensor([0.0, 0.05, 0.3]).view(3, 1, 1, 1) * torch.randn(target.shape), target


# matches_reference


@torch.no_grad()
def test_matches_the_distance_written_out(alexnet, agrees_with_original):
    import lpips as package

    network, path = alexnet
    stored = torch.load(Path(package.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    prediction, target = pictures()
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def activations(picture: torch.Tensor) -> list[torch.Tensor]:
        x, kept = (2 * picture - 1 - mean.view(3, 1, 1)) / std.view(3, 1, 1), []
        for layer in network.features[:12]:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                kept.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-10))
        return kept

    expected = torch.zeros(3)
    for i, (p, t) in enumerate(zip(activations(prediction), activations(target), strict=True)):
        expected += ((p - t).square() * stored[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
    found = lpips(prediction, target, weights=path)
    assert found.dtype == torch.float64
    assert found[0] == 0
    assert found[2] > found[1] > 1e-5
    for value, written_out in zip(found.tolist(), expected.tolist(), strict=True):
        agrees_with_original("LPIPS", value, written_out, rel=1e-4)


def test_scale_of_the_pictures_is_the_peaks(alexnet):
    prediction, target = pictures()
    expected = lpips(prediction, target, weights=alexnet[1])
    torch.testing.assert_close(lpips(65535 * prediction, 65535 * target, peak=65535.0, weights=alexnet[1]), expected)


# invariants


def test_pictures_are_independent_and_gradients_reach_them(alexnet):
    prediction, target = pictures()
    prediction.requires_grad_()
    values = lpips(prediction, target, weights=alexnet[1])
    alone = torch.cat([lpips(prediction[i : i + 1], target[i : i + 1], weights=alexnet[1]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=1e-4, atol=1e-8)
    (gradient,) = torch.autograd.grad(values[2], prediction)
    assert gradient[2].abs().max() > 0
    assert gradient[:2].abs().max() == 0


def test_a_loaded_network_is_kept_and_the_callers_random_numbers_too(alexnet):
    _distance.cache_clear()
    state = torch.random.get_rng_state()
    first = lpips(*(x.double() for x in [torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)]), weights="random")
    assert torch.equal(torch.random.get_rng_state(), state)
    again = lpips(torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), weights="random")
    assert torch.equal(first, again)
    assert (_distance.cache_info().misses, _distance.cache_info().hits) == (1, 1)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "weights must be given: a file such as torchvision's alexnet"),
        ({"weights": "nowhere.pth"}, FileNotFoundError, "weights file not found: nowhere.pth"),
        ({"weights": "random", "network": "resnet"}, ValueError, "network must be one of .*alex.*'resnet'"),
        ({"weights": "random", "peak": 0.0}, ValueError, "peak must be a finite number > 0"),
    ],
)
def test_rejects_bad_options(options, error, message):
    pytest.importorskip("lpips")
    with pytest.raises(error, match=message):
        lpips(*pictures(), **options)


@pytest.mark.parametrize("shape", [(1, 3, 31, 40), (1, 1, 40, 40)])
def test_rejects_bad_pictures(shape):
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), at least 32x32, got"):
        lpips(torch.rand(shape), torch.rand(shape), weights="random")


def test_weights_of_another_network_are_named(alexnet, tmp_path):
    with pytest.raises(
        ValueError, match=r"torchvision's for network='vgg'.* has not features.0.weight \(64, 3, 3, 3\)"
    ):
        lpips(*pictures(), network="vgg", weights=alexnet[1])
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth was rejected"):
        lpips(*pictures(), weights=tmp_path / "text.pth")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    _distance.cache_clear()
    with pytest.raises(ImportError, match=r"skt-components\[lpips\]"):
        lpips(*pictures(), weights="random")


def test_pictures_of_another_scale_warn():
    pytest.importorskip("lpips")
    _, target = pictures()
    for wrong, found in ((2 * target - 1, "down to -"), (255 * target, "up to 25")):
        with pytest.warns(UserWarning, match=rf"target must be in \[0, 1\], got values {found}"):
            lpips(wrong, wrong, weights="random")
