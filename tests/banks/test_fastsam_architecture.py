from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from skt_components.banks.fastsam_architecture import LEVELS, STRIDES, YOLOv8Seg, YOLOv8SegConfig
from skt_components.banks.fastsam_weights import load_fastsam_state


def small() -> YOLOv8Seg:
    """Return a narrow network with lively statistics: every test of its own behavior takes milliseconds."""
    config = YOLOv8SegConfig((8, 8, 16, 16, 24), (1, 1, 1, 1), 1, 4, 2, 6, 8, (16, 16, 8))
    network = YOLOv8Seg(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.05, 0.2)
            module.running_mean.uniform_(-0.1, 0.1)
    return network.eval().requires_grad_(False)


def all_outputs(network: YOLOv8Seg, images: Tensor) -> list[Tensor]:
    layers = network.run_layers(images, sorted(STRIDES))
    return [*layers.values(), *network.detect(layers)]


# matches_reference


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layers", ["fast", "paper"])
@pytest.mark.parametrize("variant", ["s", pytest.param("x", marks=pytest.mark.slow)])
def test_layers_equal_those_of_ultralytics(variant: str, layers: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"fastsam_{variant}")
    path = folder / f"FastSAM-{variant}.pt"
    network = YOLOv8Seg.from_state_dict(load_fastsam_state(path), str(path))
    reference = torch.load(folder / "reference.pt", weights_only=True)
    taps = reference[layers]["taps"]
    pictures = reference["pictures"][: len(taps[0])]  # one or two
    if layers == "paper":
        pictures = torch.nn.functional.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)
    with torch.no_grad():
        found = network.run_layers(pictures, list(taps))
    for layer, wanted in taps.items():
        torch.testing.assert_close(found[layer], wanted, rtol=1e-5, atol=1e-5, msg=f"layer {layer}")
        assert wanted.std() > 0.1  # a dead network would agree with everything


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [(YOLOv8SegConfig(), 11_790_483, 417), (YOLOv8SegConfig.fastsam_x(), 72_234_149, 657)],
)
def test_sizes_of_the_published_networks(config: YOLOv8SegConfig, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        network = YOLOv8Seg(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors
    assert YOLOv8SegConfig.from_shapes(network.state_dict()) == config


def test_boxes_are_the_expected_distances_around_the_anchors() -> None:
    network = small()
    head = network.model[22]
    for level in head.cv2:  # every side's distribution sits on bin 2, of four
        level[-1].weight.zero_()
        level[-1].bias.copy_(torch.tensor([-50.0, -50, 50, -50]).repeat(4))
    boxes = network.detect(network.run_layers(torch.rand(1, 3, 64, 96), LEVELS)).boxes[0]
    assert boxes.shape == (8 * 12 + 4 * 6 + 2 * 3, 4)
    torch.testing.assert_close(boxes[0], torch.tensor([-12.0, -12, 20, 20]))  # center 4, distance 2 cells of 8
    torch.testing.assert_close(boxes[13], torch.tensor([-4.0, -4, 28, 28]))  # second row and column of stride 8
    torch.testing.assert_close(boxes[96], torch.tensor([-24.0, -24, 40, 40]))  # first of stride 16
    torch.testing.assert_close(boxes[-1], torch.tensor([16.0, -16, 144, 112]))  # last of stride 32: center (80, 48)


def test_the_score_is_that_of_the_likeliest_class() -> None:
    network = small()
    for level in network.model[22].cv3:
        level[-1].weight.zero_()
        level[-1].bias.copy_(torch.tensor([-3.0, 1.0]))
    scores = network.detect(network.run_layers(torch.rand(1, 3, 32, 32), LEVELS)).scores
    torch.testing.assert_close(scores, torch.full_like(scores, 0.7310586))


@pytest.mark.parametrize("layer", sorted(STRIDES))
def test_strides_and_channels_are_as_stated(layer: int) -> None:
    network = small()
    feature = network.run_layers(torch.rand(1, 3, 64, 96), [layer])[layer]
    assert feature.shape == (1, network.channels(layer), 64 // STRIDES[layer], 96 // STRIDES[layer])


# state


def test_nothing_is_kept_between_calls() -> None:
    network, images = small(), torch.rand(1, 3, 64, 64)
    before = {name: dict(module.__dict__) for name, module in network.named_modules()}
    with torch.no_grad():
        first = all_outputs(network, images)
        network.detect(network.run_layers(torch.rand(2, 3, 96, 32), LEVELS))
    images.requires_grad_()
    again = all_outputs(network, images)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    (gradient,) = torch.autograd.grad(sum(a.square().sum() for a in again), images)
    assert gradient.abs().sum() > 0
    assert before == {name: dict(module.__dict__) for name, module in network.named_modules()}


def test_a_deep_copy_and_threads_give_the_same() -> None:
    network = small()
    batches = [torch.rand(1, 3, 32 * (1 + i % 3), 64) for i in range(12)]
    with torch.no_grad():
        wanted = [all_outputs(network, x) for x in batches]
        copied = [all_outputs(copy.deepcopy(network), x) for x in batches[:2]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(torch.no_grad()(lambda x: all_outputs(network, x)), batches))
    for a, b in [*zip(wanted, found, strict=True), *zip(wanted, copied, strict=False)]:
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_channels_last_gives_the_same() -> None:
    network, images = small(), torch.rand(2, 3, 64, 64)
    wanted = all_outputs(network, images)
    found = all_outputs(network.to(memory_format=torch.channels_last), images)
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_head_decodes_in_float32_under_autocast_and_in_bfloat16() -> None:
    network = small()
    for level in network.model[22].cv2:
        level[-1].weight.zero_()
        level[-1].bias.copy_(torch.tensor([-50.0, -50, 50, -50]).repeat(4))
    images = torch.rand(1, 3, 32, 2560)  # anchors beyond the whole numbers of bfloat16
    wanted = network.detect(network.run_layers(images, LEVELS)).boxes
    with torch.autocast("cpu", torch.bfloat16):
        found = network.detect(network.run_layers(images, LEVELS))
    assert found.boxes.dtype == found.scores.dtype == found.prototypes.dtype == torch.float32
    torch.testing.assert_close(found.boxes, wanted, rtol=0, atol=1e-3)
    half = network.bfloat16()
    found = half.detect(half.run_layers(images.bfloat16(), LEVELS))
    assert found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.boxes, wanted, rtol=0, atol=1e-3)


def test_compiles() -> None:
    network, images = small(), torch.rand(1, 3, 64, 64)
    compiled = torch.compile(lambda x: all_outputs(network, x), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(images), all_outputs(network, images), strict=True):
        torch.testing.assert_close(a, b)


# loading


def test_half_precision_weights_are_read_to_float32() -> None:
    network = small()
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    loaded = YOLOv8Seg.from_state_dict(state, "file.pt")
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[name].to(value.dtype))
    integers = {k: v.round().int() for k, v in state.items()}
    assert {p.dtype for p in YOLOv8Seg.from_state_dict(integers, "file.pt").parameters()} == {torch.float32}


def test_another_networks_weights_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"resnet\.pth is not a YOLOv8 segmentation network such as FastSAM-s"):
        YOLOv8Seg.from_state_dict({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "resnet.pth")
    state = small().state_dict()
    detection = {k: v for k, v in state.items() if ".proto." not in k and ".cv4." not in k}
    with pytest.raises(ValueError, match="not a YOLOv8 segmentation network"):
        YOLOv8Seg.from_state_dict(detection, "yolov8n.pt")
    flat = {**state, "model.0.conv.weight": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=r"among its \d+ tensors, the sizes do not fit \(tuple index out of range\)"):
        YOLOv8Seg.from_state_dict(flat, "odd.pt")
    many = {**state, **{f"model.2.m.{i}.x": torch.zeros(0) for i in range(6000)}}
    with pytest.raises(ValueError, match="at most 5000 are expected"):
        YOLOv8Seg.from_state_dict(many, "many.pt")
    del state["model.9.cv1.conv.weight"]
    with pytest.raises(ValueError, match=r"torn\.pt does not fit the network; keys 1 missing: model\.9\.cv1"):
        YOLOv8Seg.from_state_dict(state, "torn.pt")
    state = {**small().state_dict(), "model.2.cv1.bn.weight": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"1 of another shape: model\.2\.cv1\.bn\.weight \(5,\)"):
        YOLOv8Seg.from_state_dict(state, "torn.pt")
