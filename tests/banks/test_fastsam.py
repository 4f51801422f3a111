from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from skt_components.banks import (
    ColorPositionKMeans,
    FastSAMFeatureExtractor,
    FastSAMRegions,
    FeatureKMeans,
    KnowledgeBank,
    SemanticPriors,
    TimmFeatureExtractor,
)
from skt_components.banks.fastsam_architecture import Detections, YOLOv8Seg
from skt_components.losses import SemanticHistogramLoss


@pytest.fixture(scope="module")
def bank(fastsam_s: Path) -> FastSAMFeatureExtractor:
    """FastSAM-s of the official file, the fast layers."""
    return FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast")


@pytest.fixture(scope="module")
def reference(fastsam_s: Path) -> dict:
    return torch.load(fastsam_s / "reference.pt", weights_only=True)


@pytest.fixture(scope="module")
def pictures(reference: dict) -> Tensor:
    """Three photographs, (3, 3, 128, 128); FastSAM finds nothing in the first."""
    return reference["pictures"][:3, :, 64:192, 64:192].contiguous()


def assert_same(a: SemanticPriors, b: SemanticPriors) -> None:
    for x, y in zip([*a.features, a.masks, a.valid], [*b.features, b.masks, b.valid], strict=True):
        assert torch.equal(x, y)


# matches_reference


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layers", ["fast", "paper"])
@pytest.mark.parametrize("variant", ["s", pytest.param("x", marks=pytest.mark.slow)])
def test_features_and_masks_are_those_of_ultralytics(variant: str, layers: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"fastsam_{variant}")
    bank = FastSAMFeatureExtractor(folder / f"FastSAM-{variant}.pt", layers="fast", max_regions=300, overlap=True)
    reference = torch.load(folder / "reference.pt", weights_only=True)
    count = len(reference[layers]["predictions"])
    pictures = reference["pictures"][:count]
    if layers == "paper":  # predict() saw the picture at twice its size: compare masks at that size
        pictures = F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)
    priors = bank(pictures)
    overlaps = []
    for picture, wanted in enumerate(reference[layers]["predictions"]):
        masks = priors.masks[picture, 1:][priors.valid[picture, 1:]]
        assert len(masks) == len(wanted["masks"])
        if len(masks):  # predict() folds the normalization into the weights: near-equal scores may change places
            ours, theirs = masks.flatten(1).float(), wanted["masks"].flatten(1).float()
            common = theirs @ ours.T
            iou = common / (theirs.sum(1)[:, None] + ours.sum(1) - common)
            overlaps += [iou.amax(0), iou.amax(1)]
    overlap = torch.cat(overlaps)
    assert len(overlap) > 90
    assert overlap.mean() >= 0.999
    assert overlap.min() > 0.9
    if layers == "paper":
        paper = FastSAMFeatureExtractor(folder / f"FastSAM-{variant}.pt", regions=ColorPositionKMeans(2))
        features = paper(reference["pictures"][:count]).features
    else:
        features = [f[:2] for f in bank(reference["pictures"][:2]).features]
    for layer, feature in zip({"fast": (6, 4, 2, 0), "paper": (21, 18, 15, 2)}[layers], features, strict=True):
        torch.testing.assert_close(feature, reference[layers]["taps"][layer], rtol=1e-5, atol=1e-5)


def test_the_paper_layers_see_the_picture_at_twice_its_size(bank: FastSAMFeatureExtractor, fastsam_s: Path) -> None:
    paper = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt")
    assert isinstance(bank, KnowledgeBank)
    assert (bank.layers, bank.scale, bank.channels) == ((6, 4, 2, 0), 1, (256, 128, 64, 32))
    assert (paper.layers, paper.scale, paper.channels) == ((21, 18, 15, 2), 2, (512, 256, 128, 64))
    assert bank.reduction == paper.reduction == (16, 8, 4, 2)


def test_masks_at_twice_the_size_agree_with_those_of_the_enlarged_picture(
    bank: FastSAMFeatureExtractor, fastsam_s: Path, pictures: Tensor
) -> None:
    paper = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", max_regions=8)
    large = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", max_regions=8)
    doubled = F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)
    found, wanted = paper(pictures).labels, large(doubled).labels[:, ::2, ::2]
    assert (found > 0).any()
    assert (found == wanted).float().mean() > 0.9  # but for borders, of which random weights make many


# regions


def test_regions_partition_the_picture(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    priors = bank(pictures)
    assert bank.num_regions == 17
    assert priors.masks.shape == (3, 17, 128, 128)
    assert torch.equal(priors.masks.sum(1), torch.ones(3, 128, 128, dtype=torch.long))
    assert priors.valid[1:].sum() > 6
    assert torch.equal(priors.labels, priors.masks.int().argmax(1))


def test_nothing_found_is_all_background(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    priors = bank(pictures[:1])
    assert not priors.labels.any()
    assert priors.valid.tolist() == [[True] + [False] * 16]
    student, teacher = pictures[:1].clone().requires_grad_(), pictures[1:2]
    loss = SemanticHistogramLoss()(student, teacher, labels=priors.labels, num_regions=17, valid=priors.valid)
    loss.backward()
    assert student.grad.abs().sum() > 0


def test_overlapping_masks(bank: FastSAMFeatureExtractor, fastsam_s: Path, pictures: Tensor) -> None:
    priors = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", overlap=True)(pictures)
    assert priors.labels is None
    assert (priors.masks[:, 1:].sum(1) > 1).any()
    assert torch.equal(priors.masks[:, 0], ~priors.masks[:, 1:].any(1))
    disjoint = bank(pictures).masks
    assert torch.equal(disjoint[:, 0], priors.masks[:, 0])
    assert not (disjoint[:, 1:] & ~priors.masks[:, 1:]).any()


def test_the_best_masks_are_kept(fastsam_s: Path, pictures: Tensor) -> None:
    few, many = (
        FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", overlap=True, max_regions=k) for k in (3, 12)
    )
    assert torch.equal(few(pictures).masks[:, 1:], many(pictures).masks[:, 1:4])
    strict = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", conf=1.0)
    assert not strict(pictures).labels.any()


def test_cells_instead_of_pixels(bank: FastSAMFeatureExtractor, fastsam_s: Path, pictures: Tensor) -> None:
    coarse = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", full_resolution=False)(pictures).labels
    assert coarse.shape == (3, 128, 128)
    assert torch.equal(coarse[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2), coarse)
    assert 0.6 < (coarse == bank(pictures).labels).float().mean() < 1  # random weights make ragged borders


@pytest.mark.parametrize("layers", ["fast", "paper"])
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (64, 97)])
def test_any_size(layers: str, size: tuple[int, int]) -> None:
    bank = FastSAMFeatureExtractor("random", layers=layers, max_regions=4)
    priors = bank(torch.rand(2, 3, *size))
    for feature, channels, stride in zip(priors.features, bank.channels, (16, 8, 4, 2), strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert priors.labels.shape == (2, *size)
    assert priors.masks.shape == (2, 5, *size)


def test_padding_hardly_changes_the_inside(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    whole, part = bank(pictures), bank(pictures[..., :122, :125])
    for a, b in zip(whole.features[2:], part.features[2:], strict=True):
        half = a.shape[-1] // 2
        torch.testing.assert_close(a[..., :half, :half], b[..., :half, :half], rtol=1e-3, atol=1e-3)


def test_no_region_is_chosen_in_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = FastSAMFeatureExtractor("random", max_regions=1)  # at twice the size, so boxes are in half pixels
    boxes = torch.tensor([[[80.0, 0, 96, 64], [8, 8, 40, 32]]])
    logits = torch.ones(1, 1, 16, 24)
    found = Detections(boxes, torch.tensor([[0.9, 0.8]]), torch.ones(1, 2, 1), logits)
    monkeypatch.setattr(YOLOv8Seg, "detect", lambda _self, _levels: found)
    for width, columns in ((40, (4, 20)), (41, (40, 41))):  # 80 half pixels: outside a picture of 40, inside of 41
        xs = bank(torch.rand(1, 3, 32, width)).masks[0, 1].nonzero()[:, 1]
        assert (int(xs.min()), int(xs.max()) + 1) == columns


# another source of regions


@pytest.mark.parametrize("source", [ColorPositionKMeans(3), FeatureKMeans(3)])
def test_other_regions_leave_the_head_out(
    bank: FastSAMFeatureExtractor, fastsam_s: Path, pictures: Tensor, source: ColorPositionKMeans | FeatureKMeans
) -> None:
    other = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", regions=source)
    other._yolo.model[22] = nn.Identity()  # would fail if it ran
    priors, wanted = other(pictures), bank(pictures)
    assert priors.masks.shape[1] == other.num_regions == 3
    for a, b in zip(priors.features, wanted.features, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(priors.labels, source(pictures, wanted.features))


def test_fastsams_regions_for_another_bank(fastsam_s: Path, bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    pytest.importorskip("timm")
    regions = FastSAMRegions(fastsam_s / "FastSAM-s.pt", layers="fast")
    other = TimmFeatureExtractor("resnet18", weights="random", regions=regions)
    priors = other(pictures)
    assert torch.equal(priors.labels, bank(pictures).labels)
    assert priors.masks.shape[1] == 17
    assert priors.features[3].shape[1] != bank.channels[3]
    assert not any("network" in name for name in other.state_dict())


# a frozen bank


class Parent(nn.Module):
    def __init__(self, bank: nn.Module) -> None:
        super().__init__()
        self.head, self.bank = nn.Conv2d(256, 4, 1), bank


def test_a_parent_neither_trains_nor_saves_it(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    parent, wanted = Parent(bank), bank(pictures)
    parent.train()
    assert sorted(parent.state_dict()) == ["head.bias", "head.weight"]
    assert len(list(parent.parameters())) == 2
    parent.load_state_dict(parent.state_dict(), strict=True)
    assert_same(parent.bank(pictures), wanted)  # batch statistics would change the features, and move
    assert_same(parent.bank(pictures), wanted)
    parent.head(wanted.features[0]).square().mean().backward()  # the maps can enter a graph that is trained
    assert parent.head.weight.grad.abs().sum() > 0


def test_gradient_reaches_the_picture_only_if_asked(
    bank: FastSAMFeatureExtractor, fastsam_s: Path, pictures: Tensor
) -> None:
    images = (pictures[1:2] * 0.9 + 0.05).requires_grad_()  # at 0 and 1 the clamp lets nothing through
    assert not any(f.requires_grad for f in bank(images).features)
    open_bank = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", grad_to_input=True)
    priors = open_bank(images)
    assert all(f.requires_grad for f in priors.features)
    assert not priors.labels.requires_grad
    assert_same(priors, bank(images))
    (through,) = torch.autograd.grad(sum(f.square().mean() for f in priors.features), images)
    wanted = sum(f.square().mean() for f in bank.extract_features(images))
    assert through.abs().sum() > 0
    torch.testing.assert_close(through, torch.autograd.grad(wanted, images)[0])
    assert all(p.grad is None for p in open_bank._yolo.parameters())
    with torch.no_grad():
        assert not open_bank(images).features[0].requires_grad


def test_calls_with_and_without_gradient_do_not_disturb_each_other(fastsam_s: Path, pictures: Tensor) -> None:
    bank = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast", grad_to_input=True)
    with torch.inference_mode():
        bank(pictures)
    images = pictures.clone().requires_grad_()
    bank(images).features[0].sum().backward()
    assert images.grad.abs().sum() > 0
    with torch.no_grad():
        bank(pictures)


def test_pictures_are_clamped(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    assert_same(bank(pictures * 3 - 1), bank((pictures * 3 - 1).clamp(0, 1)))


def test_a_picture_does_not_depend_on_the_others(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    together, alone = bank(pictures), bank(pictures[1:2])
    for a, b in zip(together.features, alone.features, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)
    assert (together.labels[1:2] == alone.labels).float().mean() > 0.999


def test_copies_and_threads(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    wanted = [bank(p[None]) for p in pictures]
    assert_same(copy.deepcopy(bank)(pictures[1:2]), wanted[1])
    with ThreadPoolExecutor(3) as pool:
        for found, one in zip(pool.map(lambda p: bank(p[None]), pictures), wanted, strict=True):
            assert_same(found, one)


def test_bfloat16_and_channels_last(bank: FastSAMFeatureExtractor, pictures: Tensor) -> None:
    images = pictures[1:, :, 32:96, 32:96]  # a CPU computes half precision slowly
    wanted = bank(images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = bank(images)
    moved = copy.deepcopy(bank).to(torch.bfloat16, memory_format=torch.channels_last)(images)
    last = copy.deepcopy(bank).to(memory_format=torch.channels_last)(images)
    for found, limit in ((cast, 0.1), (moved, 0.1), (last, 1e-4)):
        for a, b in zip(found.features, wanted.features, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).norm() <= limit * b.norm()
        assert found.labels.dtype == torch.int64
    assert (wanted.labels > 0).any()
    assert (last.labels == wanted.labels).float().mean() > 0.999


@pytest.mark.slow  # a narrow network of the same layers compiles in test_fastsam_architecture.py
def test_compiles() -> None:
    images = torch.rand(2, 3, 64, 64)
    bank = FastSAMFeatureExtractor("random", layers="fast", max_regions=3)
    compiled = torch.compile(bank, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(images), bank(images)
    assert (found.labels == wanted.labels).float().mean() > 0.99
    for a, b in zip(found.features, wanted.features, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compiles_at_sizes_that_change_and_need_padding() -> None:
    bank = FastSAMFeatureExtractor("random", layers="fast", regions=ColorPositionKMeans(2))
    compiled = torch.compile(bank.extract_features, fullgraph=True, backend="aot_eager", dynamic=True)
    for height, width in ((64, 64), (70, 99)):
        images = torch.rand(1, 3, height, width)
        for a, b in zip(compiled(images), bank.extract_features(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


HOST = ("lift_fresh", "_local_scalar_dense", "nonzero", "item", "_to_copy", "masked_select", "unique")


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"full_resolution": False}, {"layers": "paper"}])
def test_nothing_is_copied_from_or_read_back_to_the_host(pictures: Tensor, options: dict) -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    bank = FastSAMFeatureExtractor("random", **{"layers": "fast", "max_regions": 3, **options})
    images = pictures[..., :70, :99].contiguous()
    with Watch():
        bank(images)
    assert "convolution" in seen
    assert not set(seen) & (set(HOST) - {"_to_copy"})  # a change of dtype on the device is no copy to the host


def test_half_precision_pictures_are_enlarged_in_float32(fastsam_s: Path, pictures: Tensor) -> None:
    bank = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", regions=ColorPositionKMeans(2))
    rounded = pictures[1:2].bfloat16()
    for a, b in zip(bank(rounded).features, bank(rounded.float()).features, strict=True):
        assert torch.equal(a, b)


def test_a_bank_made_in_inference_mode_lets_gradients_through(fastsam_s: Path, pictures: Tensor) -> None:
    with torch.inference_mode():
        bank = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers="fast")
    images = pictures[1:2].clone().requires_grad_()
    bank.extract_features(images)[0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_weights_do_not_depend_on_the_file_afterwards(fastsam_s: Path, tmp_path: Path, pictures: Tensor) -> None:
    state = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt")._yolo.state_dict()
    save_file(state, tmp_path / "float32.safetensors")
    bank = FastSAMFeatureExtractor(tmp_path / "float32.safetensors", layers="fast")
    wanted = bank(pictures)
    size = (tmp_path / "float32.safetensors").stat().st_size
    with open(tmp_path / "float32.safetensors", "r+b") as file:  # as cp writes over a file
        file.write(bytes(size))
    assert_same(bank(pictures), wanted)


def test_the_fingerprint_tells_banks_apart(bank: FastSAMFeatureExtractor, fastsam_s: Path) -> None:
    path = fastsam_s / "FastSAM-s.pt"
    assert FastSAMFeatureExtractor(path, layers="fast").fingerprint == bank.fingerprint
    others = [
        FastSAMFeatureExtractor("random", layers="fast"),
        *(
            FastSAMFeatureExtractor(path, **{"layers": "fast", **options})
            for options in (
                {"layers": "paper"},
                {"max_regions": 4},
                {"overlap": True},
                {"conf": 0.4000001},
                {"iou": 0.5},
                {"full_resolution": False},
                {"regions": ColorPositionKMeans(16)},
                {"regions": ColorPositionKMeans(17)},
            )
        ),
    ]
    assert len({bank.fingerprint, *(other.fingerprint for other in others)}) == 10
    wrapped = [
        FastSAMFeatureExtractor(path, layers="fast", regions=FastSAMRegions(path, layers="fast", **options))
        for options in ({}, {"full_resolution": False}, {"conf": 0.4000001})
    ]
    assert len({other.fingerprint for other in wrapped}) == 3
    half = copy.deepcopy(bank).half()
    assert half.fingerprint != bank.fingerprint


def test_regions_that_do_not_tell_their_options_have_no_fingerprint() -> None:
    class Secret(nn.Module):
        num_regions = 2

        def __init__(self, threshold: float) -> None:
            super().__init__()
            self.threshold = threshold

        def forward(self, images: Tensor, features: object = None) -> Tensor:
            return (images.mean(1) > self.threshold).long()

    class Plain:
        num_regions = 2

        def __call__(self, images: Tensor, features: object = None) -> Tensor:
            return images.mean(1).long()

    for regions in (Secret(0.2), Plain()):
        bank = FastSAMFeatureExtractor("random", layers="fast", regions=regions)
        bank(torch.rand(1, 3, 32, 32))
        with pytest.raises(ValueError, match=f"{type(regions).__name__} must have an attribute fingerprint"):
            _ = bank.fingerprint
    regions = Secret(0.2)
    regions.fingerprint = "threshold 0.2"  # type: ignore[assignment]
    assert len(FastSAMFeatureExtractor("random", layers="fast", regions=regions).fingerprint) == 64


# on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("layers", ["fast", "paper"])
def test_the_gpu_gives_the_same_and_is_never_waited_for(fastsam_s: Path, pictures: Tensor, layers: str) -> None:
    bank = FastSAMFeatureExtractor(fastsam_s / "FastSAM-s.pt", layers=layers)
    wanted = bank(pictures)
    bank, images = bank.cuda(), pictures.cuda()
    bank(images)  # cuDNN may choose algorithms in the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = bank(images)
        with torch.autocast("cuda", torch.bfloat16):
            cast = bank(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b, c in zip(found.features, wanted.features, cast.features, strict=True):
        assert (a.cpu() - b).norm() <= 1e-2 * b.norm()  # TF32
        assert c.dtype == torch.float32
    assert (found.labels.cpu() == wanted.labels).float().mean() > 0.9


# loading


def test_extra_large_has_its_own_widths() -> None:
    bank = FastSAMFeatureExtractor("random-x", layers="fast", regions=ColorPositionKMeans(2))
    assert bank.channels == (640, 320, 160, 80)
    assert bank(torch.rand(1, 3, 32, 32)).features[0].shape == (1, 640, 2, 2)


def test_missing_weights_say_where_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SKT_FASTSAM_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"(?s)FastSAM-s.*download=True.*AGPL-3\.0|AGPL-3\.0.*download=True"):
        FastSAMFeatureExtractor()
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(FileNotFoundError, match="absent"):
        FastSAMFeatureExtractor(tmp_path / "absent" / "FastSAM-s.pt")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "slow"}, "layers must be one of"),
        ({"layers": (6, 4, 2)}, "layers must be 'paper', 'fast' or four layers, coarse to fine, with strides"),
        ({"layers": (0, 2, 4, 6)}, r"got \(0, 2, 4, 6\)"),
        ({"layers": (6, 4, 2, 11)}, r"got \(6, 4, 2, 11\)"),
        ({"max_regions": 0}, "max_regions must be a whole number >= 1, got 0"),
        ({"conf": 1.5}, r"conf must be in \[0, 1\], got 1.5"),
        ({"iou": "high"}, r"iou must be in \[0, 1\], got 'high'"),
        ({"overlap": True, "regions": ColorPositionKMeans(2)}, "regions must be None with overlap=True"),
    ],
)
def test_rejects_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastSAMFeatureExtractor("random", **options)


def test_rejects_bad_input(bank: FastSAMFeatureExtractor) -> None:
    with pytest.raises(ValueError, match=r"tonemapped must have 4 axes"):
        bank(torch.rand(3, 32, 32))
    with pytest.raises(TypeError, match="tonemapped must be a floating-point tensor"):
        bank(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"tonemapped must have pixels, got shape \(1, 3, 0, 8\)"):
        bank(torch.rand(1, 3, 0, 8))
    with pytest.raises(ValueError, match=r"images must have pixels"):
        bank.extract_features(torch.rand(1, 3, 8, 0))
    with pytest.raises(TypeError, match="regions must be callable"):
        FastSAMFeatureExtractor("random", regions=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no option overlap"):
        FastSAMRegions("random", overlap=True)


# the user's process

TRACES = """
import json, logging, os, socket, subprocess, sys, urllib.request, warnings
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch._dynamo  # torch loads it at the first need, with loggers and warning filters of its own

calls = []
for module, name in [(socket.socket, "connect"), (socket, "getaddrinfo"), (subprocess, "Popen"), (os, "system")]:
    setattr(module, name, lambda *a, _name=name, **k: calls.append(_name))

def state():
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "environment": dict(os.environ),
        "torch.save and torch.load": [repr(torch.save), repr(torch.load), torch.load.__module__],
        "PIL.Image.open": repr(PIL.Image.open),
        "print options": [str(np.get_printoptions()), str(vars(torch._tensor_str.PRINT_OPTS))],
        "loggers": sorted(map(str, logging.root.manager.loggerDict.items())) + [str(logging.root.handlers)],
        "warning filters": repr(warnings.filters),
        "files": sorted(str(p) for p in Path.home().rglob("*")),  # the working and temporary folders are in it
        "network and processes": list(calls),
        "safe globals": sorted(map(repr, torch.serialization.get_safe_globals())),
        "default dtype and generator": [str(torch.get_default_dtype()), torch.get_rng_state().sum().item()],
    }

import skt_components as skt  # what the import does is tests/test_architecture.py's matter
before = state()
bank = skt.FastSAMFeatureExtractor(sys.argv[1], layers="fast")
bank(torch.full((1, 3, 64, 64), 0.5))
after = state()
after["modules"] = [m for m in sys.modules if m.split(".")[0] in ("ultralytics", "cv2", "matplotlib", "polars")]
before["modules"] = []
print(json.dumps([before, after]))
"""
KINDS = (
    *("threads", "environment", "torch.save and torch.load", "PIL.Image.open", "print options", "loggers"),
    *("warning filters", "files", "network and processes", "safe globals", "default dtype and generator", "modules"),
)


@pytest.fixture(scope="module")
def traces(fastsam_s: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    home = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "YOLO", "XDG"))}
    command = [sys.executable, "-c", TRACES, str(fastsam_s / "FastSAM-s.pt")]
    (home / "tmp").mkdir()
    environment |= {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    (home / "cwd").mkdir()
    done = subprocess.run(command, env=environment, cwd=home / "cwd", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_no_trace_is_left_on_the_process(kind: str, traces: list[dict]) -> None:
    before, after = traces
    assert set(before) == set(KINDS)
    assert after[kind] == before[kind]
