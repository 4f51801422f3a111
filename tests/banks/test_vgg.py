from __future__ import annotations

import copy
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skt_components.banks import VGG19Features

torchvision = pytest.importorskip("torchvision")

RELU = {(0, 1): 1, (0, 2): 3, (1, 2): 8, (2, 1): 11, (2, 4): 17, (3, 4): 26, (4, 4): 35}
"""Where torchvision's ``vgg19().features`` has relu1_1, relu1_2, relu2_2, relu3_1, relu3_4, relu4_4, relu5_4."""


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    """Torchvision's own convolutional part, seeded."""
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features
    features = features.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in features.state_dict().values():
        fan_in = tensor[0].numel() if tensor.ndim == 4 else 100
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return features.eval()


@pytest.fixture(scope="module")
def official(plain: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of torchvision's vgg19-dcbb9e9d.pth, its classifier cut short."""
    state = {f"features.{k}": v for k, v in plain.state_dict().items()}
    state |= {f"classifier.{i}.{n}": torch.zeros(1) for i in (0, 3, 6) for n in ("weight", "bias")}
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path


def reference(plain: nn.Sequential, images: Tensor, layer: tuple[int, int]) -> Tensor:
    mean = images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return plain[: RELU[layer] + 1]((images - mean) / std)


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_matches_torchvision(plain: nn.Sequential, official: Path, size: tuple[int, int]) -> None:
    layers = tuple(RELU)
    vgg = VGG19Features(layers, weights=official)
    images = torch.rand(2, 3, *size)
    for layer, found in zip(layers, vgg(images), strict=True):
        assert torch.equal(found, reference(plain, images, layer)), layer


def test_gradients_match_torchvision(plain: nn.Sequential, official: Path) -> None:
    # In float64: float32 sums the four maps' gradients in another order, which differs by 1e-2 where they cancel.
    vgg, plain = VGG19Features(weights=official).double(), copy.deepcopy(plain).double()
    images = torch.rand(1, 3, 32, 40, dtype=torch.float64)
    a, b = (images.clone().requires_grad_(True) for _ in range(2))
    upstream = [torch.randn_like(m) for m in vgg(images)]
    torch.autograd.backward(vgg(a), upstream)
    torch.autograd.backward([reference(plain, b, layer) for layer in vgg.layers], upstream)
    assert a.grad is not None
    assert a.grad.abs().max() > 0
    torch.testing.assert_close(a.grad, b.grad)
    assert all(p.grad is None and not p.requires_grad for p in vgg.network.network.parameters())


def test_gradcheck() -> None:
    vgg = VGG19Features([(0, 1), (1, 1)], weights="random").double()
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    total = lambda x: sum(m.square().mean() for m in vgg(x))  # noqa: E731
    assert torch.autograd.grad(total(x), x)[0].abs().max() > 0
    assert torch.autograd.gradcheck(total, (x,))


def test_maps_come_in_the_order_asked_for_and_are_rectified(official: Path) -> None:
    images = torch.rand(1, 3, 32, 32)
    forward = VGG19Features([(0, 2), (2, 1)], weights=official)(images)
    backward = VGG19Features([(2, 1), (0, 2)], weights=official)(images)
    assert torch.equal(forward[0], backward[1])
    assert torch.equal(forward[1], backward[0])
    assert all((m >= 0).all() and (m == 0).any() and (m > 0).any() for m in forward)


def test_the_network_ends_at_the_last_map(official: Path) -> None:
    vgg = VGG19Features([(1, 2), (0, 1)], weights=official)
    assert sum(isinstance(m, nn.Conv2d) for m in vgg.network.network.modules()) == 4


def test_it_is_frozen_and_not_saved(official: Path) -> None:
    vgg = VGG19Features([(0, 1)], weights=official).train()
    assert not vgg.state_dict()
    assert not list(vgg.parameters())
    assert not vgg.network.network.training


def test_safe_with_autocast_and_compile(official: Path) -> None:
    vgg = VGG19Features([(0, 2)], weights=official)
    images = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vgg(images)[0].dtype == torch.float32
    compiled = torch.compile(vgg, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), vgg(images))


def test_random_weights_follow_the_callers_seed_and_keep_their_size() -> None:
    maps = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        maps.append(VGG19Features([(3, 4)], weights="random")(torch.linspace(0, 1, 3072).view(1, 3, 32, 32))[0])
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert 0.01 < maps[0].mean() < 100


def test_pretrained_is_torchvisions_download(monkeypatch: pytest.MonkeyPatch, plain: nn.Sequential) -> None:
    asked = []

    def fake(self: Any, *args: Any, **options: Any) -> dict[str, Tensor]:
        asked.append((self.name, options))
        return {f"features.{k}": v for k, v in plain.state_dict().items()}

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fake)
    vgg = VGG19Features([(0, 2)], weights="pretrained")
    assert asked == [("IMAGENET1K_V1", {"progress": False, "check_hash": True})]
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(vgg(images)[0], reference(plain, images, (0, 2)))

    def unreachable(self: Any, **options: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", unreachable)
    with pytest.raises(ConnectionError, match=r"dcbb9e9d\.pth cannot be downloaded .*no route.* pass weights=FILE"):
        VGG19Features(weights="pretrained")


def test_no_weights_says_where_to_get_them() -> None:
    with pytest.raises(ValueError, match=r"weights must be given: .*vgg19-dcbb9e9d\.pth.*weights='pretrained'"):
        VGG19Features()


@pytest.mark.parametrize("layers", [[(0, 3)], [(0, 0)], [(5, 1)], [(0, 1), (-1, 1)], []])
def test_layers_that_do_not_exist_are_rejected(layers: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"layers must be among \[\(0, 1\), \(0, 2\), \(1, 1\).*\(4, 4\)\], got"):
        VGG19Features(layers, weights="random")


def test_weights_of_another_network_list_the_keys(tmp_path: Path, plain: nn.Sequential) -> None:
    state = {f"features.{k}": v for k, v in plain.state_dict().items()}
    del state["features.34.bias"]
    state["features.3.running_mean"] = torch.zeros(64)
    torch.save(state, tmp_path / "vgg19_bn.pth")
    with pytest.raises(ValueError, match=r"vgg19_bn\.pth .* 1 missing: features.34.bias; 1 unexpected: features.3.run"):
        VGG19Features([(0, 1)], weights=tmp_path / "vgg19_bn.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        VGG19Features(weights=tmp_path / "absent.pth")


def test_rejects_bad_pictures() -> None:
    vgg = VGG19Features([(0, 1), (2, 1)], weights="random")
    with pytest.raises(ValueError, match=r"images must have 3 channels"):
        vgg(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"images must be at least 4 pixels a side, got shape \(1, 3, 3, 8\)"):
        vgg(torch.rand(1, 3, 3, 8))
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor, got torch\.int64"):
        vgg(torch.zeros(1, 3, 8, 8, dtype=torch.long))


def test_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.vgg", None)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[timm\]"'):
        VGG19Features(weights="random")
